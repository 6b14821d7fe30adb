"""Test causal and prefix language modelling, and source-target pairs."""

import numpy as np
import pytest
from support.texts import END, PAD, VOCABULARY, build_objective, make_batch


def test_causal_predicts_the_next_token():
    objective = build_objective("causal", 5)
    assert (objective.window, objective.stride) == (6, 5)
    batch = make_batch(objective, np.arange(12, dtype=np.int32).reshape(2, 6))
    assert batch.tokens.tolist() == [[0, 1, 2, 3, 4], [6, 7, 8, 9, 10]]
    assert np.array_equal(batch.targets, batch.tokens + 1)
    assert batch.weights.sum() == 10


def test_prefixes_are_uniform_and_only_what_follows_counts():
    objective = build_objective("prefix", 9)
    assert (objective.window, objective.stride) == (10, 9)
    rows = 8000
    text = np.tile(np.arange(200, 210, dtype=np.int32), (rows, 1))
    batch = make_batch(objective, text)
    assert np.array_equal(batch.tokens, text[:, :-1])
    assert np.array_equal(batch.targets, text[:, 1:])
    lengths, counts = np.unique(batch.prefix_lengths, return_counts=True)
    assert lengths.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert abs(counts - rows / 8).max() < 5 * np.sqrt(rows * 1 / 8 * 7 / 8)  # binomial
    # A position within the prefix sees all of it, so no token of the prefix may be a target.
    for prefix, weights in zip(batch.prefix_lengths[:50], batch.weights[:50], strict=True):
        assert [200 + 1 + i >= 200 + prefix for i in range(9)] == weights.astype(bool).tolist()


@pytest.mark.parametrize(("start", "token"), [("pad", PAD), ("end_of_text", END)])
def test_pairs_are_split_and_shifted(start, token):
    objective = build_objective("pairs", 4, target_length=3, decoder_start=start)
    assert (objective.window, objective.stride, objective.length, objective.source_length) == (
        7,
        1,
        3,
        4,
    )
    text = [
        [201, 202, END, PAD, 301, END, PAD],
        [203, 204, 205, END, 302, 303, END],
        [END, PAD, PAD, PAD, 304, 305, 306],
    ]
    batch = make_batch(objective, np.array(text, np.int32))
    assert batch.source.tolist() == [row[:4] for row in text]
    assert batch.source_lengths.tolist() == [3, 4, 1]
    assert batch.targets.tolist() == [row[4:] for row in text]
    assert batch.tokens.tolist() == [[token, 301, END], [token, 302, 303], [token, 304, 305]]
    # The last target was cut and has no end.
    assert batch.weights.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]


def test_padding_of_pairs_may_be_the_end_of_text():
    objective = build_objective("pairs", 3, VOCABULARY._replace(pad=END))
    batch = make_batch(objective, np.array([[201, END, END, 301, 302, END]], np.int32))
    assert (batch.source_lengths.tolist(), batch.weights.tolist()) == ([2], [[1, 1, 1]])
    assert build_objective("pairs", 3).window == 6
