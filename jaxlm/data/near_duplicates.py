"""Find documents that nearly repeat earlier ones: MinHash, and hashing of its bands.

Two documents are as similar as their sets of 5-word shingles are (Jaccard: the share of the
shingles of either that both have). A signature has 128 minima; two documents agree in one of them
with a probability equal to their similarity s (Broder 1997). They are compared if they agree in one
of 32 bands of 4 minima, which has the probability 1 - (1 - s^4)^32: 0.996 at s = 0.63, where 5% of
the words differ, and 0.02 at s = 0.15. The share of equal minima, whose error is about 0.04, then
decides.
"""

import zlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

SHINGLE_WORDS = 5
BANDS, BAND_MINIMA = 32, 4
MINIMA = BANDS * BAND_MINIMA
SHINGLES_AT_ONCE = 1 << 12

# Fixed constants of the hashes: signatures are the same everywhere.
RANDOM = np.random.Generator(np.random.PCG64(20_260_101))
WORD_FACTORS = RANDOM.integers(1 << 63, size=SHINGLE_WORDS, dtype=np.uint64) * 2 + 1
FACTORS = RANDOM.integers(1 << 31, size=MINIMA, dtype=np.uint32) * 2 + 1
SUMMANDS = RANDOM.integers(1 << 32, size=MINIMA, dtype=np.uint32)
BAND_FACTORS = RANDOM.integers(1 << 63, size=BAND_MINIMA, dtype=np.uint64) * 2 + 1


def find_probability(similarity: float) -> float:
    """Return the probability that two documents of this similarity are compared."""
    return 1 - (1 - similarity**BAND_MINIMA) ** BANDS


def hash_shingles(text: str) -> np.ndarray:
    """Return the hashes of the shingles of a text, uint32 [n].

    Words are what stands between white space, in lower case. A text of fewer than five is one
    shingle.
    """
    words = text.lower().encode().split()
    codes = np.zeros(max(len(words), SHINGLE_WORDS), np.uint64)
    codes[: len(words)] = np.fromiter(map(zlib.crc32, words), np.uint64, len(words))

    count = len(codes) - SHINGLE_WORDS + 1
    hashes = np.zeros(count, np.uint64)
    for place, factor in enumerate(WORD_FACTORS):
        hashes += codes[place : place + count] * factor
    hashes ^= hashes >> np.uint64(32)
    hashes *= WORD_FACTORS[0]
    return (hashes >> np.uint64(32)).astype(np.uint32)


def sign_text(text: str) -> np.ndarray:
    """Return the signature of a text, uint32 [MINIMA]: the least hash of its shingles in each."""
    hashes = hash_shingles(text)
    least = np.full(MINIMA, np.iinfo(np.uint32).max, np.uint32)
    for start in range(0, len(hashes), SHINGLES_AT_ONCE):
        part = hashes[start : start + SHINGLES_AT_ONCE, None]
        np.minimum(least, (part * FACTORS + SUMMANDS).min(axis=0), out=least)
    return least


def find_near_duplicates(signatures: Sequence[np.ndarray], similarity: float) -> np.ndarray:
    """Return which of the documents repeat an earlier one, bool [documents].

    `signatures` are those of the documents of each unit, uint32 [MINIMA, n]. Documents that are
    similar to the same one belong together, and of each such group the first is no repetition.
    """
    signatures = [table for table in signatures if table.shape[1]]
    count = sum(table.shape[1] for table in signatures)
    if count == 0:
        return np.zeros(0, bool)

    pairs = [similar_pairs(signatures, band, similarity) for band in range(BANDS)]
    joined = np.unique(np.concatenate(pairs))
    first = (joined >> np.uint64(32)).astype(np.int64)
    second = (joined & np.uint64(0xFFFFFFFF)).astype(np.int64)

    # The least number of its group reaches each document through the pairs.
    least = np.arange(count)
    while True:
        both, new = np.minimum(least[first], least[second]), least.copy()
        np.minimum.at(new, first, both)
        np.minimum.at(new, second, both)
        new = new[new]
        if np.array_equal(new, least):
            return least != np.arange(count)
        least = new


def similar_pairs(signatures: Sequence[np.ndarray], band: int, similarity: float) -> np.ndarray:
    """Return the pairs that agree in a band and are similar; uint64 [n], earlier << 32 | later.

    Of documents that all agree in the band, each is compared with the first and with the previous
    one.
    """
    rows = slice(band * BAND_MINIMA, (band + 1) * BAND_MINIMA)
    keys = np.concatenate(
        [(table[rows] * BAND_FACTORS[:, None]).sum(axis=0, dtype=np.uint64) for table in signatures]
    )
    count = len(keys)

    order = np.argsort(keys, kind="stable")
    is_same = np.diff(keys[order]) == 0
    starts = np.flatnonzero(np.concatenate([[True], ~is_same]))
    lengths = np.diff(np.append(starts, count))
    first = np.repeat(order[starts], lengths)
    later = order[1:][is_same]
    earlier = np.stack([order[:-1][is_same], first[1:][is_same]])

    pairs = np.unique(earlier.astype(np.uint64) << np.uint64(32) | later.astype(np.uint64))
    return pairs[agreement(signatures, pairs) >= similarity]


def agreement(signatures: Sequence[np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """Return the share of equal minima of each pair, float64 [n]."""
    ends = list(accumulate(table.shape[1] for table in signatures))

    def signature(document: int) -> np.ndarray:
        unit = bisect_right(ends, document)
        return signatures[unit][:, document - ends[unit]]  # counted from the end

    shares = np.zeros(len(pairs))
    for number, pair in enumerate(pairs.tolist()):
        shares[number] = np.mean(signature(pair >> 32) == signature(pair & 0xFFFFFFFF))
    return shares
