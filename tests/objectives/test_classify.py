"""Classification: texts between the tokens that the library `tokenizers` puts there."""

from dataclasses import replace

import numpy as np
import pytest
from support import tokenizer_files

from jaxlm import objectives
from jaxlm.config import ClassifierConfig, ModelConfig, ObjectiveConfig
from jaxlm.data.example_array import ExampleArray, ListedParts
from jaxlm.data.vocabulary import SpecialTokens, build_vocabulary
from jaxlm.objectives import Vocabulary

LABELS = ClassifierConfig(kind="sequence", labels=("no", "yes"))
ENCODER = ModelConfig(family="encoder", vocabulary_size=400, token_types=2, classifier=LABELS)
LENGTH = 16
TEXTS = [
    ("the river of wisdom.", ""),
    ("no", "the Stone of times, A birds of wisdom!"),
    ("the Stone of times, A birds of wisdom!", "no river"),
    ("the Stone of times, A birds of wisdom!", "the Stone of wisdom, A birds of times, no!"),
]
BUILD = {
    "bert": (tokenizer_files.bert, "[SEP]"),
    "roberta": (tokenizer_files.roberta, "</s>"),
    "t5": (tokenizer_files.t5, "</s>"),
    "llama": (tokenizer_files.llama, "</s>"),
}


def make_batch(objective, examples):
    array = ExampleArray(ListedParts(examples))
    numbers = np.arange(array.start_count(objective))
    return objective.make_batch(array.read_samples(numbers, objective), numbers, 0)


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("length", [LENGTH, 7, 64])
def test_texts_and_pairs_are_framed_and_cut_as_by_the_library(name, length):
    build, end = BUILD[name]
    inner = build()
    vocabulary = build_vocabulary(inner, SpecialTokens(end), inner.get_vocab_size())
    objective = objectives.build(ObjectiveConfig(kind="classify"), length, vocabulary, ENCODER)
    examples = [
        [
            *(np.array(inner.encode(text, add_special_tokens=False).ids) for text in pair),
            np.array([pair[1] != "", 0]),
        ]
        for pair in TEXTS
    ]
    batch = make_batch(objective, examples)

    inner.enable_truncation(length)
    for row, (text, second) in enumerate(TEXTS):
        expected = inner.encode(text, second or None)
        count = int(batch.lengths[row])
        assert batch.tokens[row, :count].tolist() == expected.ids
        assert batch.token_types[row, :count].tolist() == expected.type_ids


def plain_vocabulary(**roles: int) -> Vocabulary:
    return Vocabulary(size=50, end_of_text=0, special=np.zeros(50, bool), **roles)


@pytest.mark.parametrize(
    ("family", "roles", "single", "pair"),
    [
        ("encoder", {"begin_of_text": 2}, [2, 5, 6, 0], [2, 5, 6, 0, 7, 0]),
        ("encoder", {}, [5, 6, 0], [5, 6, 0, 7, 0]),
        ("decoder", {"begin_of_text": 2}, [2, 5, 6], [2, 5, 6, 0, 7]),
        ("decoder", {}, [5, 6], [5, 6, 0, 7]),
    ],
)
def test_a_tokenizer_that_adds_nothing_gets_begin_and_end(family, roles, single, pair):
    model = ModelConfig(family=family, vocabulary_size=64, classifier=LABELS)
    objective = objectives.build(
        ObjectiveConfig(kind="classify"), 8, plain_vocabulary(**roles), model
    )
    text, second = np.array([5, 6]), np.array([7])
    batch = make_batch(
        objective,
        [[text, second[:0], np.array([0, 1])], [text, second, np.array([1, 0])]],
    )
    for row, expected in enumerate((single, pair)):
        assert batch.tokens[row, : batch.lengths[row]].tolist() == expected
    assert batch.targets.tolist() == [[1], [0]]
    assert batch.token_types is None


def test_the_decoder_of_an_encoder_decoder_reads_the_source_shifted():
    model = ModelConfig(family="encoder_decoder", vocabulary_size=64, classifier=LABELS)
    objective = objectives.build(
        ObjectiveConfig(kind="classify", decoder_start="end_of_text"),
        6,
        plain_vocabulary(pad=1, begin_of_text=2),
        model,
    )
    none = np.zeros(0, np.int32)
    batch = make_batch(objective, [[np.array([5, 6]), none, np.array([0, 1])]])
    assert batch.source.tolist() == [[2, 5, 6, 0, 1, 1]]
    assert batch.tokens.tolist() == [[0, 2, 5, 6, 0, 1]]
    assert batch.source_lengths.tolist() == batch.lengths.tolist() == [4]


def test_labels_of_tokens_move_with_the_frame_and_end_with_the_text():
    model = replace(ENCODER, classifier=ClassifierConfig(kind="token", labels=("O", "B")))
    objective = objectives.build(
        ObjectiveConfig(kind="classify", class_weights=(1.0, 2.0)),
        5,
        plain_vocabulary(begin_of_text=2),
        model,
    )
    text, none = np.array([5, 6, 7, 8]), np.zeros(0, np.int32)
    batch = make_batch(objective, [[text, none, np.array([2, 0, 1, 2])]])
    assert batch.tokens.tolist() == [[2, 5, 6, 7, 0]]
    assert batch.targets.tolist() == [[0, 1, 0, 0, 0]]
    assert batch.weights.tolist() == [[0, 2, 0, 1, 0]]
