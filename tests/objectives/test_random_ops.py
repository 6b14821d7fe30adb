import math

import numpy as np

from jaxlm import counter_rng
from jaxlm.objectives import random_ops

STREAM = 1000 << 32
SAMPLES = np.arange(20_000)


def agree(counts, probabilities):
    """Return whether counts of independent draws lie within 5 standard deviations."""
    probabilities, draws = np.asarray(probabilities), np.sum(counts)
    deviation = np.sqrt(draws * probabilities * (1 - probabilities))
    return (np.abs(counts - draws * probabilities) / deviation).max() < 5


def test_orders_are_uniform():
    keys = random_ops.order_keys(0, SAMPLES, STREAM, 3)
    orders = random_ops.key_positions(np.sort(keys, axis=1))
    _, counts = np.unique(orders @ [9, 3, 1], return_counts=True)
    assert len(counts) == 6
    assert agree(counts, [1 / 6] * 6)


def test_subsets_are_uniform_and_ascend():
    keys = random_ops.order_keys(0, SAMPLES, STREAM, 5)
    pairs = random_ops.choose_subset(keys, 2, 2)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    _, counts = np.unique(pairs @ [5, 1], return_counts=True)
    assert agree(counts, [1 / math.comb(5, 2)] * math.comb(5, 2))
    assert random_ops.choose_subset(keys[:4], np.array([0, 1, 3, 2]), 3)[:, 1:].tolist()[:2] == [
        [5, 5],
        [5, 5],
    ]


def test_compositions_are_uniform():
    parts = random_ops.random_composition(0, SAMPLES, STREAM, total=7, parts=3)
    assert (parts.sum(axis=1) == 7).all()
    assert parts.min() == 1
    _, counts = np.unique(parts @ [100, 10, 1], return_counts=True)
    ways = math.comb(6, 2)  # to cut at 2 of 6 places
    assert agree(counts, [1 / ways] * ways)
    assert random_ops.random_composition(0, SAMPLES[:2], STREAM, total=1, parts=1).tolist() == [
        [1],
        [1],
    ]


def test_groups_stay_together_in_random_order():
    # The groups are 0, 1 2, 3 and 4.
    is_start = np.tile(np.array([False, True, False, True, True]), (len(SAMPLES), 1))
    first = random_ops.group_starts(is_start)
    assert first[0].tolist() == [0, 1, 1, 3, 4]
    keys = random_ops.group_keys(random_ops.order_keys(0, SAMPLES, STREAM, 5), first)
    places = random_ops.key_positions(np.sort(keys, axis=1))
    at_one = np.argmax(places == 1, axis=1)
    assert (np.take_along_axis(places, at_one[:, None] + 1, axis=1) == 2).all()
    _, counts = np.unique(places @ [625, 125, 25, 5, 1], return_counts=True)
    assert agree(counts, [1 / 24] * 24)


def test_numbers_below_a_bound_and_thresholds_are_fair_and_independent():
    bits = counter_rng.random_bits(0, SAMPLES, STREAM, 0)
    counts = np.bincount(random_ops.integers_below(bits, 7), minlength=7)
    assert agree(counts, [1 / 7] * 7)
    hits = random_ops.high_bits(bits) < random_ops.probability_threshold(0.3)
    assert agree(np.array([hits.sum(), (~hits).sum()]), [0.3, 0.7])
    assert agree(np.bincount(random_ops.integers_below(bits, 7)[hits], minlength=7), [1 / 7] * 7)
    assert (random_ops.high_bits(bits) < random_ops.probability_threshold(1.0)).all()
    assert not (random_ops.high_bits(bits) < random_ops.probability_threshold(0.0)).any()
