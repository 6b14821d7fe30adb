"""Shuffle without a table: each value of a pseudo-random permutation is computed on its own.

The permutation is a Feistel network over pairs (x, y) with x * height + y = index. Each round adds
a hash of one half to the other half, modulo its size. This can be undone, so the network is a
bijection. The pairs cover slightly more than [0, size): an image outside is sent through again
until it falls inside (cycle walking), which keeps the bijection.
"""

import math

import numpy as np

from jaxlm import counter_rng

ROUNDS = 6


def permute(
    index: np.ndarray,
    size: int,
    seed: int,
    source: int,
    epoch: np.ndarray,
    block: np.ndarray | int = 0,
) -> np.ndarray:
    """Return the images of `index` under the permutation of [0, size) of each epoch; int64 [n].

    `index` and `epoch` are int64 [n]. Each `block` (int64 [n] or one) has permutations of its own.
    """
    stream = counter_rng.SHUFFLE + source
    rounds = np.asarray(block)[..., None] * ROUNDS + np.arange(ROUNDS)
    keys = counter_rng.random_bits(seed, epoch[:, None], stream, rounds)

    image = apply_feistel(index.astype(np.uint64), size, keys)
    while (outside := image >= size).any():
        image[outside] = apply_feistel(image[outside], size, keys[outside])
    return image.astype(np.int64)


def apply_feistel(index: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Apply the network once to `index` (uint64 [n]) with `keys` (uint64 [n, ROUNDS]).

    The result is a bijection of [0, width * height), the smallest near-square that holds `size`.
    """
    width = math.isqrt(size - 1) + 1
    height = -(-size // width)
    x, y = np.divmod(index, np.uint64(height))

    for round_number in range(ROUNDS):
        key = keys[:, round_number]
        # Only 32 bits of the hash are added: a sum that wrapped around 2**64 before the modulo
        # could not be undone.
        if round_number % 2 == 0:
            y = (y + (counter_rng.mix(key ^ x) >> np.uint64(32))) % np.uint64(height)
        else:
            x = (x + (counter_rng.mix(key ^ y) >> np.uint64(32))) % np.uint64(width)
    return x * np.uint64(height) + y


def permute_blocks(
    index: np.ndarray,
    count: int | None,
    block: int,
    seed: int,
    source: int,
    epoch: np.ndarray,
) -> np.ndarray:
    """Return the images of `index` (int64 [n]) if each `block` of [0, count) is shuffled alone.

    The last block is shorter where `count` ends. None: no index lies in the last one.
    """
    images = np.empty_like(index)
    blocks, within = np.divmod(index, block)
    last = -1 if count is None else count // block
    for is_in, size in ((blocks != last, block), (blocks == last, (count or 0) - last * block)):
        if is_in.any():
            images[is_in] = permute(within[is_in], size, seed, source, epoch[is_in], blocks[is_in])
    return blocks * block + images
