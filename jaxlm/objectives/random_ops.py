"""Random choices from the bits of `counter`: orders, subsets, compositions, and numbers below a bound.

The position stands in the low half of every sort key. So sorting keys gives positions without an index array, several times
faster than argsort, and keys with equal random bits still have one order, whatever the sorting algorithm.
"""

from typing import Any

import numpy as np

from jaxlm import counter_rng

HALF = np.uint64(32)
LOW = np.uint64((1 << 32) - 1)
LAST = np.uint64((1 << 64) - 1)  # a key that comes after all others


def order(seed: int, samples: np.ndarray, stream: int, count: int) -> np.ndarray:
    """uint64 [B, count] keys for samples int64 [B]: sorted, their low halves are a uniformly random order of 0, ..., count - 1."""
    positions = np.arange(count, dtype=np.uint64)
    return counter_rng.random_bits(seed, samples[:, None], stream, positions) & ~LOW | positions


def order_of_groups(keys: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Keys [B, n] that keep groups of neighbours together: those of a group share the random bits of its first member, [B, n]."""
    return np.take_along_axis(keys, first, axis=1) & ~LOW | keys & LOW


def group_starts(begins: np.ndarray) -> np.ndarray:
    """int64 [B, n]: where the group of each position starts, given bool [B, n] of the positions that begin one."""
    return np.maximum.accumulate(np.where(begins, np.arange(begins.shape[1]), 0), axis=1)


def positions(keys: np.ndarray) -> np.ndarray:
    """int64: the low halves of keys."""
    return (keys & LOW).astype(np.int64)


def subset(keys: np.ndarray, counts: Any, most: int) -> np.ndarray:
    """int64 [B, most]: the positions of the `counts` (at most `most`) smallest keys [B, n] of each row, ascending, then n's."""
    smallest = positions(np.sort(keys, axis=1)[:, :most])
    taken = np.arange(smallest.shape[1]) < np.asarray(counts)[..., None]
    return np.sort(np.where(taken, smallest, keys.shape[1]), axis=1)


def composition(seed: int, samples: np.ndarray, stream: int, total: int, parts: int) -> np.ndarray:
    """int64 [B, parts]: `total` as an ordered sum of `parts` numbers of at least 1, each such sum equally likely."""
    cuts = 1 + subset(order(seed, samples, stream, total - 1), parts - 1, parts - 1)
    return np.diff(cuts, axis=1, prepend=0, append=total)


def high(bits: np.ndarray) -> np.ndarray:
    """uint64: 32 random bits that are independent of those which `below` reads."""
    return bits >> HALF


def below(bits: np.ndarray, bound: int) -> np.ndarray:
    """int64 in [0, bound): uniform up to bound / 2**32, by a multiplication and a shift (Lemire, arXiv 1805.10941)."""
    return ((bits & LOW) * np.uint64(bound) >> HALF).astype(np.int64)


def threshold(probability: float) -> np.uint64:
    """`high(bits) < threshold(p)` holds with probability p."""
    return np.uint64(round(probability * (1 << 32)))
