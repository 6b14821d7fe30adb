"""Instruction tuning: what counts, what is cut, and rows of several examples."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from support.marks import quick_and_slow
from support.tiny_models import MODELS, build_tiny

from jaxlm import objectives
from jaxlm.config import ConfigError, ModelConfig, ObjectiveConfig
from jaxlm.data.conversations import measure_runs
from jaxlm.data.example_array import ExampleArray, ListedParts
from jaxlm.data.example_rows import ExampleRows, make_rows
from jaxlm.losses import loss_sums
from jaxlm.objectives import Vocabulary
from jaxlm.objectives.instruction import expand_runs

END, PAD, BEGIN = 0, 1, 2
VOCABULARY = Vocabulary(
    size=61, end_of_text=END, pad=PAD, begin_of_text=BEGIN, special=np.arange(61) < 3
)
DECODER = ModelConfig(vocabulary_size=61)
PAIRS = ModelConfig(family="encoder_decoder", vocabulary_size=61)


def conversation(tokens: list[int], counts: list[int]) -> list[np.ndarray]:
    """Return the parts of an example whose tokens with 1 in `counts` are the assistant's."""
    is_turn = np.array(counts, bool)
    end = int(np.flatnonzero(is_turn)[-1]) + 1 if any(counts) else len(counts)
    before = np.flatnonzero(~is_turn[:end])
    start = int(before[-1]) + 1 if len(before) else 0
    if not any(counts):
        start = end
    ids = np.array(tokens, np.int32)
    return [ids[:start], ids[start:end], ids[end:], measure_runs(is_turn[:start])]


def build(length: int, model: ModelConfig = DECODER, **fields):
    config = ObjectiveConfig(kind="instruction", **fields)
    return objectives.build(config, length, VOCABULARY, model)


def make_batch(objective, examples):
    array = ExampleArray(ListedParts(examples))
    numbers = np.arange(array.start_count(objective))
    return objective.make_batch(array.read_samples(numbers, objective), numbers, 0)


def test_runs_give_back_what_counts():
    rng = np.random.default_rng(0)
    for size in (0, 1, 7, 300):
        counts = rng.random(size) < 0.5
        assert expand_runs(measure_runs(counts)).tolist() == counts.tolist()
    long = np.repeat([True, False, True], [70_000, 200_000, 3])
    runs = measure_runs(long)
    assert runs.max() < 1 << 16
    assert expand_runs(runs).tolist() == long.tolist()


def test_each_turn_of_the_assistant_is_learned():
    tokens, counts = [2, 10, 11, 12, 13, 14, 15], [0, 0, 1, 1, 0, 1, 0]
    batch = make_batch(build(8), [conversation(tokens, counts)])
    assert batch.tokens.tolist() == [[2, 10, 11, 12, 13, 14, PAD, PAD]]
    assert batch.targets.tolist() == [[10, 11, 12, 13, 14, 15, PAD, PAD]]
    assert batch.weights.tolist() == [[0, 1, 1, 0, 1, 0, 0, 0]]
    assert batch.segments is None


@pytest.mark.parametrize(
    ("tokens", "counts", "expected", "weights"),
    [
        # The start of the prompt is cut, but for its begin_of_text.
        ([2, 10, 11, 12, 13, 14, 15], [0, 0, 0, 0, 0, 1, 1], [2, 13, 14, 15], [0, 1, 1]),
        ([9, 10, 11, 12, 13, 14, 15], [0, 0, 0, 0, 0, 1, 1], [12, 13, 14, 15], [0, 1, 1]),
        # An earlier turn is cut as the rest of the prompt is.
        ([9, 10, 11, 12, 13, 14, 15], [0, 1, 1, 1, 0, 1, 1], [12, 13, 14, 15], [0, 1, 1]),
        # The end of a long turn is cut; one token of the prompt is kept.
        ([9, 10, 11, 12, 13, 14, 15], [0, 0, 1, 1, 1, 1, 1], [10, 11, 12, 13], [1, 1, 1]),
        ([9, 10, 11, 12, 13, 14, 15], [1] * 7, [9, 10, 11, 12], [1, 1, 1]),
    ],
)
def test_a_long_example_is_cut(tokens, counts, expected, weights):
    example = conversation(tokens, counts)
    batch = make_batch(build(3), [example])
    assert [*batch.tokens[0], batch.targets[0, -1]] == expected
    assert batch.weights.tolist() == [weights]
    array = ExampleArray(ListedParts([example, [*example[:3], np.zeros(0, np.int32)]]))
    assert array.start_count(build(3, too_long="drop")) == 0


def test_an_example_of_which_nothing_counts_is_left_out():
    masked, learned = conversation([9, 10, 11], [0, 0, 0]), conversation([9, 10], [0, 1])
    array, objective = ExampleArray(ListedParts([masked, learned])), build(8)
    assert array.measure(objective)[0].tolist() == [1]
    assert "1 left out" in array.describe(objective)


def test_an_encoder_decoder_writes_the_last_turn():
    example = conversation([9, 10, 11, 12, 13, 14, 15], [0, 1, 0, 0, 1, 1, 0])
    batch = make_batch(build(6, PAIRS), [example])
    assert batch.source.tolist() == [[9, 10, 11, 12, END, PAD]]
    assert batch.source_lengths.tolist() == [5]
    assert batch.targets.tolist() == [[13, 14, END, PAD, PAD, PAD]]
    assert batch.tokens.tolist() == [[PAD, 13, 14, END, PAD, PAD]]
    assert batch.weights.tolist() == [[1, 1, 1, 0, 0, 0]]
    # Of the source the start is cut, of the target the end.
    batch = make_batch(build(2, PAIRS), [example])
    assert (batch.source.tolist(), batch.targets.tolist()) == ([[12, END]], [[13, END]])
    with pytest.raises(ConfigError, match=r"data\.sequences"):
        objectives.packed_rows(build(6, PAIRS), "packed")


# Rows of several examples


def random_examples(count: int, seed: int = 0) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        size = int(rng.integers(4, 14))
        counts = (rng.random(size) < 0.5).astype(int)
        counts[[0, -1]] = 0, 1
        examples.append(conversation(rng.integers(3, 61, size).tolist(), counts.tolist()))
    return examples


def pack(examples, length=32):
    """Return the examples of each row, and the batch of all rows."""
    objective = build(length)
    rows = ExampleRows(ExampleArray(ListedParts(examples)), objective)
    numbers = np.arange(len(rows))
    batch = make_rows([rows], np.zeros_like(numbers), numbers, objective)
    return [rows.row_examples(row) for row in numbers], batch


def test_rows_hold_each_example_once_with_its_mask():
    examples = random_examples(40)
    rows, batch = pack(examples)
    unpacked = make_batch(build(32), examples)
    assert sorted(np.concatenate(rows).tolist()) == [*range(40)]
    assert len(rows) < 16  # of 40
    for row, numbers in enumerate(rows):
        for segment, number in enumerate(numbers, 1):
            cells = batch.segments[row] == segment
            size = sum(map(len, examples[number][:3])) - 1
            assert batch.positions[row, cells].tolist() == [*range(size)]
            for name in ("tokens", "targets", "weights"):
                packed = getattr(batch, name)[row, cells]
                assert packed.tolist() == getattr(unpacked, name)[number, :size].tolist()
    assert not batch.weights[batch.segments == 0].any()


MASKED = {
    "learned": MODELS["learned"],
    "rotary": MODELS["rotary"],
    "alibi, window": MODELS["alibi, window"],
    "relative": replace(MODELS["learned"], positions="relative"),
    "none": replace(MODELS["learned"], positions="none"),
}


@pytest.mark.parametrize(("name",), quick_and_slow([("rotary",)], [(name,) for name in MASKED]))
def test_examples_of_a_row_know_nothing_of_each_other(name, monkeypatch):
    monkeypatch.setitem(MODELS, name, MASKED[name])
    model, params = build_tiny(name)
    apply = jax.jit(model.apply)
    examples = random_examples(6)
    rows, batch = pack(examples)
    logits = np.asarray(apply(params, batch))

    # The loss is that of the examples alone.
    alone = make_batch(build(32), examples)
    sums = [
        loss_sums(np.asarray(scores), each.targets, each.weights)
        for scores, each in ((logits, batch), (apply(params, alone), alone))
    ]
    packed, unpacked = (float(each.loss) / float(each.count) for each in sums)
    assert packed == pytest.approx(unpacked, abs=1e-5)

    # Another text in the place of one example changes no bit of the others.
    first = rows[0]
    assert len(first) > 1
    for place, changed in enumerate(first):
        others = [list(parts) for parts in examples]
        others[changed] = [np.where(part > 2, 63 - part, part) for part in others[changed][:3]]
        others[changed].append(examples[changed][3])
        same_rows, other_batch = pack(others)
        assert [each.tolist() for each in same_rows] == [each.tolist() for each in rows]
        other = np.asarray(apply(params, other_batch))
        is_same = (batch.segments != place + 1) & (batch.segments > 0)
        is_same[1:] = batch.segments[1:] > 0
        assert np.array_equal(other[is_same], logits[is_same])
        assert not np.array_equal(other[0], logits[0])
