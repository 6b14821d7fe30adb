"""Cross-entropy as sums over target tokens, dense or tiled over positions."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.types import Array, Tree

# Float32 scores of one tile on one device, at most: a share of its memory, or this where jax does
# not say how much it has (CPUs).
TILE_SHARE = 1 / 16
TILE_BYTES = 512 * 2**20


def tile_bytes(device_memory: int | None) -> int:
    """Return the bytes of scores that a device with this memory (None: unknown) has at a time."""
    return TILE_BYTES if device_memory is None else int(TILE_SHARE * device_memory)


class DetectionSums(NamedTuple):
    """Sums over the tokens that are judged as the text's own or replaced; float32 scalars."""

    loss: Array  # nats
    correct: Array  # tokens that are judged right
    replaced: Array  # tokens that are not those of the text
    count: Array  # tokens


class LossSums(NamedTuple):
    """Sums over the targets that count; float32 scalars. Divide them by the global count."""

    loss: Array  # nats
    z: Array  # squared log-sum-exp (PaLM, arXiv 2204.02311 section 5)
    correct: Array  # targets that have the highest score
    count: Array  # weights of the targets
    detection: DetectionSums | None = None  # replaced-token detection, whose targets are hidden


def zero_sums(*, detects: bool = False) -> LossSums:
    """Return the sums over no targets; with those of a detection if the model `detects`."""
    zero = jnp.zeros((), jnp.float32)
    detection = DetectionSums(zero, zero, zero, zero) if detects else None
    return LossSums(loss=zero, z=zero, correct=zero, count=zero, detection=detection)


def token_losses(scores_BLV: Array, targets_BL: Array) -> tuple[Array, Array]:
    """Return (negative log-likelihood, log-sum-exp) of each target, float32 [B, L]."""
    lse = jax.nn.logsumexp(scores_BLV, axis=-1)
    # A masked sum instead of a gather: it fuses, and it stays local if the vocabulary is sharded.
    is_target = jnp.arange(scores_BLV.shape[-1])[None, None, :] == targets_BL[:, :, None]
    return lse - jnp.sum(jnp.where(is_target, scores_BLV, 0.0), axis=-1), lse


def loss_sums(scores_BLV: Array, targets_BL: Array, weights_BL: Array) -> LossSums:
    """Return the sums over the targets, each counted by its weight."""
    nll, lse = token_losses(scores_BLV, targets_BL)
    # The compiler drops this where nobody reads it.
    is_correct = (jnp.argmax(scores_BLV, axis=-1) == targets_BL).astype(jnp.float32)

    return LossSums(
        loss=jnp.sum(nll * weights_BL),
        z=jnp.sum(jnp.square(lse) * weights_BL),
        correct=jnp.sum(is_correct * weights_BL),
        count=jnp.sum(weights_BL),
    )


def tile_length(
    *, rows: int, positions: int, vocabulary_size: int, requested: int | None, tile_bytes: int
) -> int:
    """Return the positions of a tile: a divisor of `positions`, and the longest that is allowed.

    The limit is `requested`, or the length at which the scores of a device's `rows` fit into
    `tile_bytes`.
    """
    limit = requested or max(1, tile_bytes // (4 * rows * vocabulary_size))
    return next(n for n in range(min(limit, positions), 0, -1) if positions % n == 0)


@jax.named_scope("loss")  # the name in profiles
def tiled_loss_sums(
    scores: Callable[[Tree, Array], Array],
    head: Tree,
    x_BLD: Array,
    targets_BL: Array,
    weights_BL: Array,
    tile: int,
) -> LossSums:
    """Return `loss_sums` of `scores(head, x)`, computed `tile` positions at a time.

    The backward pass computes the scores of each tile again, so that only one tile's scores are in
    memory.
    """
    length = x_BLD.shape[1]
    if tile >= length:
        return loss_sums(scores(head, x_BLD), targets_BL, weights_BL)

    # The gradient of the head adds up over the tiles. The scan sums in the dtype of what it closes
    # over, so the head enters it as float32.
    dtypes = jax.tree.map(lambda w: w.dtype, head)
    head = jax.tree.map(lambda w: w.astype(jnp.float32), head)

    @jax.checkpoint
    def tile_sums(head: Tree, x: Array, targets: Array, weights: Array) -> LossSums:
        head = jax.tree.map(lambda w, dtype: w.astype(dtype), head, dtypes)
        return loss_sums(scores(head, x), targets, weights)

    def add_tile(total: LossSums, parts: tuple) -> tuple[LossSums, None]:
        return jax.tree.map(jnp.add, total, tile_sums(head, *parts)), None

    def split(array: Array) -> Array:
        """Return [tiles, B, tile, ...] of an array [B, L, ...]."""
        rows, rest = array.shape[0], array.shape[2:]
        return jnp.moveaxis(array.reshape(rows, length // tile, tile, *rest), 1, 0)

    tiles = (split(x_BLD), split(targets_BL), split(weights_BL))
    total, _ = jax.lax.scan(add_tile, zero_sums(), tiles)
    return total
