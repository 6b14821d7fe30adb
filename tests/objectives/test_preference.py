"""Preferences: two answers side by side, each after the same prompt."""

import jax
import numpy as np
from support.tiny_models import build_tiny

from jaxlm import objectives
from jaxlm.config import ModelConfig, ObjectiveConfig
from jaxlm.data.example_array import ExampleArray, ListedParts
from jaxlm.objectives import Vocabulary
from jaxlm.types import Batch

END, PAD, BEGIN = 0, 1, 2
VOCABULARY = Vocabulary(
    size=61, end_of_text=END, pad=PAD, begin_of_text=BEGIN, special=np.arange(61) < 3
)


def example(*parts: list[int]) -> list[np.ndarray]:
    return [np.array(part, np.int32) for part in parts]


def build(length: int, **fields):
    config = ObjectiveConfig(kind="preference", **fields)
    return objectives.build(config, length, VOCABULARY, ModelConfig(vocabulary_size=61))


def make_batch(objective, *examples):
    array = ExampleArray(ListedParts(examples))
    numbers = np.arange(array.start_count(objective))
    return objective.make_batch(array.read_samples(numbers, objective), numbers, 0)


def test_answers_stand_in_two_segments():
    batch = make_batch(build(5), example([10, 11], [12, 13, END], [14, END]))
    assert batch.tokens.tolist() == [[10, 11, 12, 13, PAD, 10, 11, 14, PAD, PAD]]
    assert batch.targets.tolist() == [[11, 12, 13, END, PAD, 11, 14, END, PAD, PAD]]
    assert batch.segments.tolist() == [[1, 1, 1, 1, 0, 2, 2, 2, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 0, 1, 2, 0, 0]]
    assert batch.weights.tolist() == [[0, 1, 1, 1, 0, 0, 1, 1, 0, 0]]


def test_both_answers_keep_the_same_prompt():
    long = example([BEGIN, 10, 11, 12], [13, 14, END], [15, END])
    batch = make_batch(build(4), long)
    assert batch.tokens.tolist() == [[BEGIN, 12, 13, 14, BEGIN, 12, 15, PAD]]
    # An answer that is too long is cut, behind one token of the prompt.
    batch = make_batch(build(2), long)
    assert batch.tokens.tolist() == [[BEGIN, 13, BEGIN, 15]]
    assert batch.targets.tolist() == [[13, 14, 15, END]]
    array = ExampleArray(ListedParts([long]))
    assert array.start_count(build(4, too_long="drop")) == 0
    assert array.start_count(build(6, too_long="drop")) == 1


def test_scores_are_those_of_each_answer_alone():
    model, params = build_tiny("rotary")
    apply = jax.jit(model.apply)
    pair = example([10, 11, 12], [20, 21, 22, END], [30, END])
    batch = make_batch(build(8), pair)
    logits = np.asarray(apply(params, batch))
    for number, answer in enumerate(pair[1:]):
        tokens = np.concatenate([pair[0], answer])[None, :-1]
        alone = np.asarray(apply(params, Batch(tokens=tokens)))
        side = logits[0, 8 * number :][: tokens.shape[1]]
        np.testing.assert_allclose(side, alone[0], rtol=0, atol=2e-5)
