"""Cross-entropy as sums over target tokens, dense or tiled over positions."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.types import Array, Tree

TILE_BYTES = 512 * 2**20  # float32 scores of one tile on one device, at most


class LossSums(NamedTuple):
    """Sums over the targets that count; float32 scalars. Divide by the global count."""

    loss: Array  # nats
    z: Array  # squared log-sum-exp (PaLM, arXiv 2204.02311 section 5)
    correct: Array  # targets that have the highest score
    count: Array


def token_losses(scores_BLV: Array, targets_BL: Array) -> tuple[Array, Array]:
    """(negative log-likelihood, log-sum-exp) of each target, float32 [B, L]."""
    lse = jax.nn.logsumexp(scores_BLV, axis=-1)
    # A masked sum instead of a gather: it fuses, and it stays local where the vocabulary is sharded.
    chosen = jnp.arange(scores_BLV.shape[-1])[None, None, :] == targets_BL[:, :, None]
    return lse - jnp.sum(jnp.where(chosen, scores_BLV, 0.0), axis=-1), lse


def loss_sums(scores_BLV: Array, targets_BL: Array, weights_BL: Array) -> LossSums:
    nll, lse = token_losses(scores_BLV, targets_BL)
    correct = (jnp.argmax(scores_BLV, axis=-1) == targets_BL).astype(
        jnp.float32
    )  # costs nothing where nobody reads it
    loss, z, right = (jnp.sum(values * weights_BL) for values in (nll, jnp.square(lse), correct))
    return LossSums(loss, z, right, jnp.sum(weights_BL))


def tile_length(batch: int, length: int, vocabulary: int, devices: int, asked: int | None) -> int:
    """Positions per tile: the longest divisor of `length` not above `asked`, or whose scores fit `TILE_BYTES` on each device."""
    limit = asked or max(1, TILE_BYTES * devices // (4 * batch * vocabulary))
    return next(n for n in range(min(limit, length), 0, -1) if length % n == 0)


def tiled_loss_sums(
    scores: Callable[[Tree, Array], Array],
    head: Tree,
    x_BLD: Array,
    targets_BL: Array,
    weights_BL: Array,
    tile: int,
) -> LossSums:
    """`loss_sums` of `scores(head, x)`, `tile` positions at a time; the backward pass computes each tile's scores again."""
    length = x_BLD.shape[1]
    if tile >= length:
        return loss_sums(scores(head, x_BLD), targets_BL, weights_BL)

    # The gradient of the head adds up over the tiles: in float32, since the scan sums in the dtype of what it closes over.
    dtypes = jax.tree.map(lambda w: w.dtype, head)
    head = jax.tree.map(lambda w: w.astype(jnp.float32), head)

    @jax.checkpoint
    def one(head: Tree, x: Array, targets: Array, weights: Array) -> LossSums:
        head = jax.tree.map(lambda w, dtype: w.astype(dtype), head, dtypes)
        return loss_sums(scores(head, x), targets, weights)

    def add(total: LossSums, part: tuple) -> tuple[LossSums, None]:
        return jax.tree.map(jnp.add, total, one(head, *part)), None

    def tiles(a: Array) -> Array:
        return jnp.moveaxis(a.reshape(a.shape[0], length // tile, tile, *a.shape[2:]), 1, 0)

    zero = jnp.zeros((), jnp.float32)
    total, _ = jax.lax.scan(
        add, LossSums(zero, zero, zero, zero), (tiles(x_BLD), tiles(targets_BL), tiles(weights_BL))
    )
    return total
