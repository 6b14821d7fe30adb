"""Shuffling without a table: a pseudo-random permutation of [0, size) whose every value is computed on its own.

A Feistel network over pairs (x, y) with x * height + y = index: each round adds a hash of one half to the other half modulo
its size, which can be undone, so the network is a bijection. The pairs cover slightly more than [0, size); an image outside is
sent through again until it falls inside (cycle walking), which keeps the bijection.
"""

import math

import numpy as np

from jaxlm import counter_rng

ROUNDS = 6


def permute(index: np.ndarray, size: int, seed: int, source: int, epoch: np.ndarray) -> np.ndarray:
    """Images of `index` (int64 [n], values in [0, size)) under the permutation of each `epoch` (int64 [n]); int64 [n]."""
    keys = counter_rng.random_bits(
        seed, epoch[:, None], counter_rng.SHUFFLE + source, np.arange(ROUNDS)
    )
    image = feistel(index.astype(np.uint64), size, keys)
    while (outside := image >= size).any():
        image[outside] = feistel(image[outside], size, keys[outside])
    return image.astype(np.int64)


def feistel(index: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """One pass: a bijection of [0, width * height), the smallest near-square that holds `size`; uint64 [n], keys [n, ROUNDS]."""
    width = math.isqrt(size - 1) + 1
    height = -(-size // width)
    x, y = np.divmod(index, np.uint64(height))
    for round_number in range(ROUNDS):
        key = keys[:, round_number]
        # 32 of the hash's bits: a sum that wrapped around 2**64 before the modulo could not be undone.
        if round_number % 2 == 0:
            y = (y + (counter_rng.mix(key ^ x) >> np.uint64(32))) % np.uint64(height)
        else:
            x = (x + (counter_rng.mix(key ^ y) >> np.uint64(32))) % np.uint64(width)
    return x * np.uint64(height) + y
