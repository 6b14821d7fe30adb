"""Exact attention by blocks of queries and keys: no L x S scores in memory, forward or backward.

The softmax is taken online (arXiv 2112.05682, 2205.14135), and the backward pass computes scores
again from the log-sum-exp of each query. One loop over the tiles that the mask doesn't hide is all
of the program, so it is as small for long sequences as for short ones.

Axes beside those of `types.py`: C blocks of a sequence, T blocks of a tile. Beside them L and S are
positions within a block.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxlm.nn.mask import MASKED, Mask, visible_BLS
from jaxlm.nn.tiles import Tiling, cut_tiles

# The name for recomputation of what the backward pass reads beside q, k and v.
ATTENTION_OUTPUT = "attention_output"

# Where the largest score of a query starts: below all real scores, and far above MASKED, so that
# exp(MASKED - largest) is 0 even where a query sees nothing.
LOWEST = -1e20

# Room for sums of weights, and of weights times values, above exp of the largest score.
ROOM = 1e12

Arrays = dict[str, jax.Array]


class Plan(NamedTuple):
    """Everything about a call but its arrays."""

    mask: Mask  # without arrays
    tiling: Tiling
    keys: int  # positions, without padding
    scale: float
    softcap: float | None


def blockwise_attention(
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    mask: Mask,
    *,
    scale: float,
    bias: jax.Array | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Return the attention output [B, L, H, K] in q's dtype; H is a multiple of G.

    Memory grows with L + S. Time grows with the pairs of blocks that the mask may let through: with
    a window as L times its width. The output of a query that sees no key is 0.

    `bias` is float32 [1 or B, H, L, S], added to the scaled and capped scores. It has the size of
    scores itself, and so has its gradient. ValueError for the keys of a cache (`mask.positions`).
    """
    if mask.positions is not None:
        raise ValueError("blockwise attention can't read the keys of a cache")

    B, L, H, _ = q_BLHK.shape
    S = k_BSGK.shape[1]
    tiling = cut_tiles(mask, L, S, rows_and_heads=B * H, has_bias=bias is not None)

    # Queries of padding are computed like the others: where they are is in the data.
    arrays = {"lengths": mask.lengths, "prefix_lengths": mask.prefix_lengths}
    if mask.segments is not None:
        arrays["segments"] = mask.segments
        arrays["key_segments"] = mask.segments if mask.key_segments is None else mask.key_segments
    arrays = {name: jnp.asarray(x) for name, x in arrays.items() if x is not None}
    plan = Plan(Mask(mask.causal, mask.window), tiling, S, scale, softcap)

    operands = {"q": q_BLHK, "k": k_BSGK, "v": v_BSGK}
    if bias is not None:
        operands["bias"] = bias
    return attention(plan, operands, arrays)


# Arrays in blocks


def cut(x: jax.Array, block: int, front: int, count: int) -> jax.Array:
    """Return [B, L, ..., K] in `count` blocks, [C, B, ..., L, K], and [B, L] as [C, B, L].

    A block of all rows and heads is one piece of memory. Padding is 0, `front` blocks before x.
    """
    before = front * block
    after = count * block - before - x.shape[1]
    x = jnp.pad(x, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
    x = jnp.swapaxes(x.reshape(x.shape[0], count, block, *x.shape[2:]), 0, 1)
    return x if x.ndim == 3 else jnp.moveaxis(x, 2, -2)


def join(x: jax.Array, front: int, length: int) -> jax.Array:
    """Return blocks [C, B, ..., L, K] as [B, `length`, ..., K]: undo `cut`."""
    start = front * x.shape[-2]
    x = jnp.swapaxes(jnp.moveaxis(x, -2, 2), 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, start : start + length]


def cut_queries(plan: Plan, x_BLHK: jax.Array, groups: int) -> jax.Array:
    """Return an array of the queries' shape as [C, B, G, R, L, K]."""
    B, L, H, K = x_BLHK.shape
    x_BLGRK = x_BLHK.reshape(B, L, groups, H // groups, K)
    return cut(x_BLGRK, plan.tiling.block, 0, plan.tiling.queries)


def cut_operands(plan: Plan, operands: Arrays, arrays: Arrays) -> tuple[Arrays, Arrays]:
    """Return operands and mask arrays in blocks; the bias is padded, [1 or B, G, R, L, S]."""
    block, front = plan.tiling.block, plan.tiling.front
    queries, keys = plan.tiling.queries, plan.tiling.keys
    H, G = operands["q"].shape[2], operands["k"].shape[2]

    blocks = {"q": cut_queries(plan, operands["q"], G)}
    blocks |= {name: cut(operands[name], block, front, keys) for name in "kv"}
    if "bias" in operands:
        bias = operands["bias"]
        padding = (queries * block - bias.shape[2], keys * block - bias.shape[3])
        bias = jnp.pad(bias, [(0, 0), (0, 0), (0, padding[0]), (0, padding[1])])
        blocks["bias"] = bias.reshape(bias.shape[0], G, H // G, *bias.shape[2:])

    mask_blocks = dict(arrays)
    if "segments" in arrays:
        mask_blocks["segments"] = cut(arrays["segments"], block, 0, queries)
        mask_blocks["key_segments"] = cut(arrays["key_segments"], block, front, keys)
    return blocks, mask_blocks


def bias_corner(plan: Plan, tile: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    """Return where a tile begins in the bias."""
    block = plan.tiling.block
    return 0, 0, 0, tile[0] * block, tile[1] * block


# The two passes


def forward(plan: Plan, operands: Arrays, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """Return the output [B, L, H, K], and the log-sum-exp of the scores [C, B, G, R, L]."""
    blocks, mask_blocks = cut_operands(plan, operands, arrays)
    q_CBGRLK, strip = blocks["q"], plan.tiling.strip
    is_bounded = exponentials_fit(plan, operands)

    def step(carry: tuple[jax.Array, ...], tile: tuple[jax.Array, jax.Array]):
        y_CBGRLK, largest_CBGRL, total_CBGRL = carry
        y, largest, total = (read(x, tile[0], strip) for x in carry)
        scores, _ = tile_scores(plan, blocks, mask_blocks, tile)

        # To look for the largest score is one more pass over all of them.
        new_largest = largest if is_bounded else jnp.maximum(largest, scores.max(axis=-1))
        shrink = jnp.ones_like(largest) if is_bounded else jnp.exp(largest - new_largest)
        weights = jnp.exp(scores - new_largest[..., None])
        v_TBGSK = read_keys(plan, blocks["v"], tile[1])
        values = einsum("TBGRLS,TBGSK->TBGRLK", weights.astype(v_TBGSK.dtype), v_TBGSK)

        return (
            write(y_CBGRLK, y * shrink[..., None] + values, tile[0]),
            write(largest_CBGRL, new_largest, tile[0]),
            write(total_CBGRL, total * shrink + weights.sum(axis=-1), tile[0]),
        ), None

    rows = jnp.zeros(q_CBGRLK.shape[:-1], jnp.float32)
    largest = rows if is_bounded else rows + LOWEST
    start = jnp.zeros(q_CBGRLK.shape, jnp.float32), largest, rows
    (y_CBGRLK, largest_CBGRL, total_CBGRL), _ = lax.scan(step, start, tiles_of(plan))

    # A query that sees nothing has a total of 0.
    total_CBGRL = jnp.where(total_CBGRL == 0, 1, total_CBGRL)
    y_CBGRLK = (y_CBGRLK / total_CBGRL[..., None]).astype(q_CBGRLK.dtype)
    q_BLHK = operands["q"]
    y_BLHK = join(y_CBGRLK, 0, q_BLHK.shape[1]).reshape(q_BLHK.shape)
    return y_BLHK, largest_CBGRL + jnp.log(total_CBGRL)


def exponentials_fit(plan: Plan, operands: Arrays) -> bool:
    """Return whether exp(score) fits the dtype of the weights for every score: soft-caps do that.

    Then the softmax is exact without the largest score of a query: exp(50), of Gemma 2's soft-cap,
    is 5e21, and exp(-50) no subnormal number in float32 and bfloat16.
    """
    if plan.softcap is None or "bias" in operands:
        return False
    largest = float(jnp.finfo(operands["v"].dtype).max)
    return plan.softcap <= math.log(largest / ROOM)


def backward(
    plan: Plan, saved: tuple[Arrays, Arrays, jax.Array, jax.Array], dy_BLHK: jax.Array
) -> tuple[Arrays, None]:
    """Return the gradients of the operands, each in its dtype; the mask has none."""
    operands, arrays, y_BLHK, logsumexp_CBGRL = saved
    blocks, mask_blocks = cut_operands(plan, operands, arrays)
    strip, G = plan.tiling.strip, operands["k"].shape[2]
    dy_CBGRLK = cut_queries(plan, dy_BLHK.astype(y_BLHK.dtype), G)

    # The part of the softmax's gradient that all keys of a query share.
    shared_BLH = jnp.sum(dy_BLHK.astype(jnp.float32) * y_BLHK.astype(jnp.float32), axis=-1)
    shared_CBGRL = cut_queries(plan, shared_BLH[..., None], G)[..., 0]

    def step(grads: Arrays, tile: tuple[jax.Array, jax.Array]) -> tuple[Arrays, None]:
        q_TBGRLK, dy_TBGRLK, logsumexp, shared = (
            read(x, tile[0], strip) for x in (blocks["q"], dy_CBGRLK, logsumexp_CBGRL, shared_CBGRL)
        )
        k_TBGSK, v_TBGSK = (read_keys(plan, blocks[name], tile[1]) for name in "kv")
        scores, slope = tile_scores(plan, blocks, mask_blocks, tile)
        weights = jnp.exp(scores - logsumexp[..., None])

        dweights = einsum("TBGRLK,TBGSK->TBGRLS", dy_TBGRLK, v_TBGSK)
        dscores = weights * (dweights - shared[..., None])
        # `slope` is that of the scores by the products.
        dproducts = (dscores * slope).astype(q_TBGRLK.dtype)
        weights = weights.astype(dy_TBGRLK.dtype)

        parts = {
            "q": (tile[0], einsum("TBGRLS,TBGSK->TBGRLK", dproducts, k_TBGSK)),
            "k": (tile[1], sum_keys(plan, sum_over_queries(dproducts, q_TBGRLK))),
            "v": (tile[1], sum_keys(plan, sum_over_queries(weights, dy_TBGRLK))),
        }
        added = {
            name: write(grads[name], read(grads[name], first, len(part)) + part, first)
            for name, (first, part) in parts.items()
        }
        if "bias" in grads:
            if grads["bias"].shape[0] == 1:
                dscores = dscores.sum(axis=1, keepdims=True)
            corner = bias_corner(plan, tile)
            added["bias"] = lax.dynamic_update_slice(grads["bias"], dscores[0], corner)
        return added, None

    zeros = {name: jnp.zeros(x.shape, jnp.float32) for name, x in blocks.items()}
    grads, _ = lax.scan(step, zeros, tiles_of(plan))
    if "bias" in grads:
        _, H, L, S = operands["bias"].shape
        grads["bias"] = grads["bias"].reshape(-1, H, *grads["bias"].shape[3:])[:, :, :L, :S]
    for name, front in (("q", 0), ("k", plan.tiling.front), ("v", plan.tiling.front)):
        shape = operands[name].shape
        grads[name] = join(grads[name], front, shape[1]).reshape(shape)
    return {name: grad.astype(operands[name].dtype) for name, grad in grads.items()}, None


def save(
    plan: Plan, operands: Arrays, arrays: Arrays
) -> tuple[jax.Array, tuple[Arrays, Arrays, jax.Array, jax.Array]]:
    """Return the output and what `backward` reads."""
    output, logsumexp = forward(plan, operands, arrays)
    output = checkpoint_name(output, ATTENTION_OUTPUT)
    logsumexp = checkpoint_name(logsumexp, ATTENTION_OUTPUT)
    return output, (operands, arrays, output, logsumexp)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attention(plan: Plan, operands: Arrays, arrays: Arrays) -> jax.Array:
    """Return the output of `forward`."""
    return forward(plan, operands, arrays)[0]


attention.defvjp(save, backward)


# One tile


def tiles_of(plan: Plan) -> tuple[jax.Array, jax.Array]:
    """Return the first block of queries and the first block of keys of each tile."""
    queries, keys = zip(*plan.tiling.tiles, strict=True)
    return jnp.asarray(queries, jnp.int32), jnp.asarray(keys, jnp.int32)


def read(x: jax.Array, first: jax.Array, count: int) -> jax.Array:
    """Return `count` blocks of x from the block `first` on."""
    return lax.dynamic_slice_in_dim(x, first, count, axis=0)


def read_keys(plan: Plan, x: jax.Array, first: jax.Array) -> jax.Array:
    """Return the keys of a tile: [T, B, G, S, K] of blocks [C, B, G, S, K], or [T, B, S]."""
    strip, width = plan.tiling.strip, plan.tiling.width
    shifted = [read(x, first + shift, strip) for shift in range(width)]
    return shifted[0] if width == 1 else jnp.concatenate(shifted, axis=min(3, x.ndim - 1))


def sum_keys(plan: Plan, x_TBGSK: jax.Array) -> jax.Array:
    """Return what a tile has for its keys, added up in blocks from its first one on."""
    width = plan.tiling.width
    if width == 1:
        return x_TBGSK
    total = jnp.zeros((), x_TBGSK.dtype)
    for shift, part in enumerate(jnp.split(x_TBGSK, width, axis=3)):
        total = total + jnp.pad(part, [(shift, width - 1 - shift), *[(0, 0)] * 4])
    return total


def write(x: jax.Array, blocks: jax.Array, first: jax.Array) -> jax.Array:
    """Return x with these blocks in place of its own from the block `first` on."""
    return lax.dynamic_update_slice_in_dim(x, blocks, first, axis=0)


def tile_scores(
    plan: Plan, blocks: Arrays, mask_blocks: Arrays, tile: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array | float]:
    """Return the masked float32 scores of a tile [T, B, G, R, L, S], and their slope.

    That is the derivative of the scores by the products of queries and keys.
    """
    strip, block = plan.tiling.strip, plan.tiling.block
    q_TBGRLK, k_TBGSK = read(blocks["q"], tile[0], strip), read_keys(plan, blocks["k"], tile[1])
    scores = einsum("TBGRLK,TBGSK->TBGRLS", q_TBGRLK, k_TBGSK) * plan.scale

    slope = plan.scale
    if plan.softcap is not None:
        share = jnp.tanh(scores / plan.softcap)
        scores, slope = plan.softcap * share, plan.scale * (1 - share * share)
    if "bias" in blocks:
        sizes = (*blocks["bias"].shape[:3], block, block)
        scores = scores + lax.dynamic_slice(blocks["bias"], bias_corner(plan, tile), sizes)[None]

    visible_TBLS = tile_mask(plan, mask_blocks, tile)
    return jnp.where(visible_TBLS[:, :, None, None], scores, MASKED), slope


def tile_mask(plan: Plan, mask_blocks: Arrays, tile: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the mask of a tile, bool [T, B or 1, L, S]."""
    block, strip, width = plan.tiling.block, plan.tiling.strip, plan.tiling.width
    starts = block * jnp.arange(strip, dtype=jnp.int32)[:, None, None]
    queries = tile[0] * block + starts + jnp.arange(block)[None, None]
    keys = (tile[1] - plan.tiling.front) * block + starts + jnp.arange(width * block)[None, None]
    keys = jnp.where(keys < plan.keys, keys, -1)  # like those before the first, no keys

    of_rows = {name: x for name, x in mask_blocks.items() if "segments" not in name}
    mask = plan.mask._replace(**of_rows)

    segments = {}
    if "segments" in mask_blocks:
        segments["segments"] = read(mask_blocks["segments"], tile[0], strip)
        segments["key_segments"] = read_keys(plan, mask_blocks["key_segments"], tile[1])

    def block_mask(queries: jax.Array, keys: jax.Array, segments: Arrays) -> jax.Array:
        local = mask._replace(positions=(queries, keys), **segments)
        visible = visible_BLS(local, range(block), range(width * block))
        assert visible is not None
        return visible

    return jax.vmap(block_mask)(queries, keys, segments)


def sum_over_queries(x_TBGRLS: jax.Array, y_TBGRLK: jax.Array) -> jax.Array:
    """Return the sum over the queries of all heads of a group, float32 [T, B, G, S, K].

    R and L are one axis: of two XLA makes a product per head, and adds these up in memory.
    """
    x, y = (a.reshape(*a.shape[:3], -1, a.shape[-1]) for a in (x_TBGRLS, y_TBGRLK))
    return einsum("TBGMS,TBGMK->TBGSK", x, y)


# Products of two factors of one dtype, summed and returned in float32.
einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)
