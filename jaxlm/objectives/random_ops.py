"""Random choices from the bits of `counter_rng`: orders, subsets, compositions, integers.

The low half of every sort key is the position. So sorting keys gives positions without an index
array, several times faster than argsort, and keys with equal random bits still have one order,
whatever the sorting algorithm.
"""

from typing import Any

import numpy as np

from jaxlm import counter_rng

HALF = np.uint64(32)
LOW = np.uint64((1 << 32) - 1)
LAST = np.uint64((1 << 64) - 1)  # a key after all others


def order_keys(seed: int, samples: np.ndarray, stream: int, count: int) -> np.ndarray:
    """Return keys that sort 0, ..., `count` - 1 into a uniformly random order for each sample.

    `samples` is int64 [B], the keys are uint64 [B, count].
    """
    positions = np.arange(count, dtype=np.uint64)
    return counter_rng.random_bits(seed, samples[:, None], stream, positions) & ~LOW | positions


def group_keys(keys: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return keys [B, n] that keep the members of a group together and in order.

    They share the random bits of the first member; `starts` is `group_starts(...)`.
    """
    return take_columns(keys, starts) & ~LOW | keys & LOW


def group_starts(is_start: np.ndarray) -> np.ndarray:
    """Return where the group of each position starts; int64 [B, n].

    `is_start` (bool [B, n]) is True at the first position of each group.
    """
    return np.maximum.accumulate(np.where(is_start, np.arange(is_start.shape[1]), 0), axis=1)


def take_columns(table: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return table[b, columns[b, i]], [B, n]. It takes half the time of `take_along_axis`."""
    first = np.arange(len(table))[:, None] * table.shape[1]
    return table.reshape(-1).take(columns + first)


def key_positions(keys: np.ndarray) -> np.ndarray:
    """Return the positions of keys, which are their low halves; int64."""
    return (keys & LOW).astype(np.int64)


def choose_subset(keys: np.ndarray, counts: Any, most: int) -> np.ndarray:
    """Return the positions of the `counts` smallest keys of each row, ascending; int64 [B, most].

    The keys are [B, n], `counts` is a number or [B], at most `most`. Rows end with n's.
    """
    smallest = key_positions(np.sort(keys, axis=1)[:, :most])
    is_chosen = np.arange(smallest.shape[1]) < np.asarray(counts)[..., None]
    return np.sort(np.where(is_chosen, smallest, keys.shape[1]), axis=1)


def random_composition(
    seed: int, samples: np.ndarray, stream: int, *, total: int, parts: int
) -> np.ndarray:
    """Return `total` as an ordered sum of `parts` numbers of at least 1; int64 [B, parts].

    Every such sum is equally likely.
    """
    keys = order_keys(seed, samples, stream, total - 1)
    cuts = 1 + choose_subset(keys, parts - 1, parts - 1)
    return np.diff(cuts, axis=1, prepend=0, append=total)


def high_bits(bits: np.ndarray) -> np.ndarray:
    """Return 32 random bits, as uint64, that `integers_below` does not read."""
    return bits >> HALF


def integers_below(bits: np.ndarray, bound: Any) -> np.ndarray:
    """Return int64 in [0, bound), uniform up to bound / 2**32. `bound` may be an array.

    By a multiplication and a shift (Lemire, arXiv 1805.10941).
    """
    return ((bits & LOW) * np.uint64(bound) >> HALF).astype(np.int64)


def probability_threshold(probability: float) -> np.uint64:
    """Return the number that `high_bits(bits)` is below with this probability."""
    return np.uint64(round(probability * (1 << 32)))
