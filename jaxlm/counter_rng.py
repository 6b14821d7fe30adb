"""Stateless random numbers: 64 bits from (seed, sample, stream, position).

A number depends on its four coordinates alone, so a sample looks the same whatever the batch, the
process or the order in which samples are made. The finaliser of SplitMix64 (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", 2014) absorbs one coordinate after another. It is
a bijection of 64-bit words: two positions of one stream never collide.
"""

from typing import Any

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
WORD = (1 << 64) - 1

# One stream per use, so that no two uses share random bits. The numbers decide the data of every
# run and must not change. The low 32 bits are free for the number of a source.
SHUFFLE = 1 << 32
PHASE = 2 << 32
PREFIX = 3 << 32
MASK_ORDER = 4 << 32
MASK_TOKEN = 5 << 32
SPAN_NOISE = 6 << 32
SPAN_TEXT = 7 << 32
SENTENCE_ORDER = 8 << 32
INFILLING_LENGTH = 9 << 32
INFILLING_PLACE = 10 << 32
FILL_IN_THE_MIDDLE = 11 << 32
OBJECTIVE_PART = 12 << 32


def random_bits(seed: int, sample: Any, stream: int, position: Any) -> Any:
    """Return 64 random bits, as uint64, for each element of `sample` and `position`.

    Both are integers or integer arrays and are broadcast together.
    """
    # The arithmetic is modulo 2**64. NumPy would warn about the overflow of scalars.
    with np.errstate(over="ignore"):
        state = mix(np.uint64(seed & WORD) + GOLDEN)
        for coordinate in (stream, sample, position):
            state = state ^ np.asarray(coordinate).astype(np.uint64)
            state += GOLDEN
            state = mix(state)
        return state


def mix(words: Any) -> Any:
    """Apply the finaliser of SplitMix64 to uint64 words, elementwise.

    Flipping one bit of the input flips about half of the bits of the output.
    """
    words = words ^ (words >> np.uint64(30))
    words *= MULTIPLIERS[0]
    words ^= words >> np.uint64(27)
    words *= MULTIPLIERS[1]
    words ^= words >> np.uint64(31)
    return words
