"""Tiles of queries and keys for attention by blocks: those that the mask may let through.

Everything here is decided before a program is compiled, from the shapes and the fixed part of a
mask. A window leaves a band along the diagonal, a causal mask the lower triangle.
"""

import math
from typing import NamedTuple

from jaxlm.nn.mask import Mask

# Positions of a block, and bytes of the float32 scores of a tile: enough to keep a GPU busy, and
# little beside the activations. Products of less than 128 positions waste tensor cores, and of
# blocks above 1,024 too much lies beyond the diagonal of a causal mask.
SMALLEST_BLOCK, LARGEST_BLOCK = 128, 1024
TILE_BYTES = 2**28


class Tiling(NamedTuple):
    """The tiles into which the pairs of queries and keys are cut.

    A tile has `strip` blocks of queries, and `width` blocks of keys for each of them: the first
    meets those from the tile's first block of keys on, the second those from the next one on, and
    so on along the diagonal.
    """

    block: int  # positions of a block
    strip: int  # blocks of queries of a tile
    width: int  # blocks of keys that each of these meets
    front: int  # blocks of padding before the first key
    queries: int  # blocks, with padding
    keys: int  # blocks, with padding
    tiles: tuple[tuple[int, int], ...]  # (first block of queries, first block of keys)

    @property
    def pairs(self) -> int:
        """Return the pairs of positions that all tiles have."""
        return len(self.tiles) * self.strip * self.width * self.block**2


def cut_tiles(
    mask: Mask, queries: int, keys: int, *, rows_and_heads: int, has_bias: bool = False
) -> Tiling:
    """Return the tiles that the mask may let through. `rows_and_heads` is their product B * H."""
    before, after = reach(mask)
    span = None if before is None or after is None else before + after
    block = block_size(max(queries, keys), span, rows_and_heads)
    query_blocks, key_blocks = -(-queries // block), -(-keys // block)
    blocks_before = query_blocks if before is None else -(-before // block)
    blocks_after = key_blocks if after is None else -(-after // block)

    # A window has small blocks. Several beside each other make a tile of full size, and in a narrow
    # window each meets all of its keys at once. Such tiles reach beyond the ends of the keys by a
    # triangle of the window's width: in a wide one at most a quarter of all blocks is a strip. No
    # slice of a bias is such a tile.
    strip = width = 1
    if span is not None and not has_bias:
        fitting = TILE_BYTES // (4 * rows_and_heads * block * block)
        longest, all_keys = query_blocks // 4, blocks_before + 1 + blocks_after
        if max(blocks_before, blocks_after) <= longest and all_keys <= fitting:
            longest, width = query_blocks, all_keys
        fitting = max(1, min(fitting // width, longest))
        strip = -(-query_blocks // -(-query_blocks // fitting))  # all strips are about the same
    front = blocks_before if strip * width > 1 else 0

    tiles = []
    for first in range(0, query_blocks, strip):
        lowest = max(first - blocks_before, 2 - strip - width)
        highest = min(first + blocks_after - width + 1, key_blocks - 1)
        tiles += [(first, front + key) for key in range(lowest, highest + 1)]

    return Tiling(
        block=block,
        strip=strip,
        width=width,
        front=front,
        queries=-(-query_blocks // strip) * strip,
        keys=max(front + key_blocks, *(key + strip + width - 1 for _, key in tiles)),
        tiles=tuple(tiles),
    )


def reach(mask: Mask) -> tuple[int | None, int | None]:
    """Return how many positions a query may see before and after its own; None: all."""
    window = None if mask.window is None else mask.window - 1
    if not mask.causal:
        return window, window
    # Where a prefix ends is in the data.
    return window, 0 if mask.prefix_lengths is None else None


def block_size(positions: int, span: int | None, rows_and_heads: int) -> int:
    """Return the positions of a block, a power of two.

    Large blocks make few tiles with large products. But a block is computed as a whole if the mask
    lets one pair through: it is small beside the sequence, and beside the `span` of a window.
    """
    limit = min(LARGEST_BLOCK, math.isqrt(TILE_BYTES // (4 * rows_and_heads)))
    limit = min(limit, max(2 * SMALLEST_BLOCK, positions // 4))
    if span is not None:
        limit = min(limit, span // 4)

    fitting = 2 ** (max(limit, SMALLEST_BLOCK).bit_length() - 1)
    return min(fitting, 2 ** (positions - 1).bit_length())
