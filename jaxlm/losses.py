"""Cross-entropy as sums over target tokens, dense or tiled over positions; losses of labels."""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.types import Array, Tree

# Float32 scores of one tile on one device, at most: a share of its memory, or this where jax does
# not say how much it has (CPUs).
TILE_SHARE = 1 / 16
TILE_BYTES = 512 * 2**20

LARGEST_GROUP = 8  # neighbouring scores whose exponentials have one scale
LOWEST = -1e38  # below all scores, those of MASKED columns too


def tile_bytes(device_memory: int | None) -> int:
    """Return the bytes of scores that a device with this memory (None: unknown) has at a time."""
    return TILE_BYTES if device_memory is None else int(TILE_SHARE * device_memory)


class DetectionSums(NamedTuple):
    """Sums over the tokens that are judged as the text's own or replaced; float32 scalars."""

    loss: Array  # nats
    correct: Array  # tokens that are judged right
    replaced: Array  # tokens that are not those of the text
    count: Array  # tokens


class PreferenceLoss(NamedTuple):
    """The loss of an objective of preferences."""

    kind: str  # "dpo", "ipo" or "dpo_mean"
    beta: float


class RewardSums(NamedTuple):
    """Sums over pairs of the rewards of the chosen and of the rejected answers; float32 scalars."""

    chosen: Array
    rejected: Array


class LossSums(NamedTuple):
    """Sums over the targets that count; float32 scalars. Divide them by the global count."""

    loss: Array  # nats
    z: Array  # squared log-sum-exp (PaLM, arXiv 2204.02311 section 5)
    correct: Array  # targets that have the highest score
    count: Array  # weights of the targets
    detection: DetectionSums | None = None  # replaced-token detection, whose targets are hidden
    rewards: RewardSums | None = None  # preferences, whose targets are pairs


def zero_sums(*, detects: bool = False, prefers: bool = False) -> LossSums:
    """Return the sums over no targets.

    They have those of a detection if the model `detects`, of rewards if it `prefers` an answer.
    """
    zero = jnp.zeros((), jnp.float32)
    detection = DetectionSums(zero, zero, zero, zero) if detects else None
    rewards = RewardSums(zero, zero) if prefers else None
    return LossSums(zero, zero, zero, zero, detection, rewards)


@jax.custom_vjp
def token_losses(scores_BLV: Array, targets_BL: Array) -> tuple[Array, Array]:
    """Return (negative log-likelihood, log-sum-exp) of each target, float32 [B, L]."""
    # A masked sum instead of a gather: it fuses, and it stays local if the vocabulary is sharded.
    targets_BLV = jnp.where(is_target(scores_BLV, targets_BL), scores_BLV, 0.0)
    lse, score = jax.lax.platform_dependent(
        scores_BLV, targets_BLV, cpu=summed_scores, default=summed_scores_at_once
    )
    return lse - score, lse


def is_target(scores_BLV: Array, targets_BL: Array) -> Array:
    """Return True for the target of each position, bool [B, L, V]."""
    return jnp.arange(scores_BLV.shape[-1])[None, None, :] == targets_BL[:, :, None]


def summed_scores(scores_BLV: Array, targets_BLV: Array) -> tuple[Array, Array]:
    """Return the log-sum-exp of the scores of each position, and the sum of `targets_BLV`."""
    return jax.nn.logsumexp(scores_BLV, axis=-1), jnp.sum(targets_BLV, axis=-1)


def summed_scores_at_once(scores_BLV: Array, targets_BLV: Array) -> tuple[Array, Array]:
    """Return `summed_scores`, reading the scores once.

    The sum of exponentials is scaled anew as the maximum grows (arXiv 1805.02867, algorithm 3), for
    each group of neighbouring scores. A GPU reads a group at a time, and its exponentials don't
    wait for each other.
    """

    def combine(first: Sequence[Array], second: Sequence[Array]) -> tuple[Array, ...]:
        (largest, total, score), (other_largest, other_total, other_score) = first, second
        difference = largest - other_largest
        scale = jnp.exp(-jnp.abs(difference))  # of the sum with the smaller maximum
        is_larger = difference >= 0
        larger_total = jnp.where(is_larger, total, other_total)
        smaller_total = jnp.where(is_larger, other_total, total)
        return (
            jnp.maximum(largest, other_largest),
            larger_total + scale * smaller_total,
            score + other_score,
        )

    # Slices, which XLA makes a part of the reduction's kernel. It does not do so with a reshape.
    size = math.gcd(scores_BLV.shape[-1], LARGEST_GROUP)
    groups = [slice(index, None, size) for index in range(size)]
    scores = [scores_BLV[..., group] for group in groups]
    highest = reduce(jnp.maximum, scores)
    totals = reduce(jnp.add, [jnp.exp(score - highest) for score in scores])
    operands = highest, totals, reduce(jnp.add, [targets_BLV[..., group] for group in groups])
    start = jnp.float32(LOWEST), jnp.float32(0), jnp.float32(0)
    largest, total, score = jax.lax.reduce(operands, start, combine, (2,))
    return largest + jnp.log(total), score


def token_losses_forward(
    scores_BLV: Array, targets_BL: Array
) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    """Return `token_losses`, and what the gradient needs."""
    nll, lse = token_losses(scores_BLV, targets_BL)
    return (nll, lse), (scores_BLV, targets_BL, lse)


def token_losses_backward(
    saved: tuple[Array, Array, Array], gradients: tuple[Array, Array]
) -> tuple[Array, None]:
    """Return the gradient of the scores: the probabilities, of the target's less 1."""
    scores_BLV, targets_BL, lse = saved
    of_nll, of_lse = gradients
    shares = jnp.exp(scores_BLV - lse[..., None]) * (of_nll + of_lse)[..., None]
    return shares - jnp.where(is_target(scores_BLV, targets_BL), of_nll[..., None], 0.0), None


token_losses.defvjp(token_losses_forward, token_losses_backward)


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


# Labels of a classifier that are no single class


def binary_losses(scores: Array, targets: Array) -> tuple[Array, Array]:
    """Return the binary cross-entropy of each label, and whether its score is on the right side."""
    losses = jax.nn.softplus(scores) - targets * scores
    return losses, (scores > 0) == (targets > 0.5)


def squared_errors(scores: Array, targets: Array) -> tuple[Array, Array]:
    """Return the squared error of each label; none counts as right or wrong."""
    return jnp.square(scores - targets), jnp.zeros(scores.shape, bool)


# By `model.classifier.problem`. "single_label" is the cross-entropy of `loss_sums`.
LABEL_LOSSES = {"multi_label": binary_losses, "regression": squared_errors}


@jax.named_scope("loss")
def label_loss(
    problem: str, scores_BLC: Array, targets_BLC: Array, weights_BL: Array
) -> tuple[Array, LossSums]:
    """Return the summed loss and all sums of labels that are yes or no, or numbers.

    Targets are float32. The loss of a position is the mean over its labels, as torch's is, times
    its weight; it is right where all of its labels are.
    """
    losses_BLC, is_right_BLC = LABEL_LOSSES[problem](scores_BLC, targets_BLC.astype(jnp.float32))
    is_right_BL = jnp.all(is_right_BLC, axis=-1).astype(jnp.float32)
    sums = LossSums(
        loss=jnp.sum(jnp.mean(losses_BLC, axis=-1) * weights_BL),
        z=jnp.zeros((), jnp.float32),
        correct=jnp.sum(is_right_BL * weights_BL),
        count=jnp.sum(weights_BL),
    )
    return sums.loss, jax.lax.stop_gradient(sums)


# Scores from the weights of a head and features.
Scores = Callable[[Tree, Array], Array]


@jax.named_scope("loss")  # the name in profiles
def tiled_loss(
    scores: Scores,
    head: Tree,
    x_BLD: Array,
    targets_BL: Array,
    weights_BL: Array,
    tile: int,
    z_loss: float = 0.0,
) -> tuple[Array, LossSums]:
    """Return (loss + z_loss * z, all sums) of `scores(head, x)`, `tile` positions at a time.

    Only one tile's scores are in memory, and only the first result has a gradient. Where that is
    asked for, each tile's part of it is computed beside the tile's scores, in the forward pass: the
    gradient of a sum, which the backward pass has only to scale. So scores are computed once.
    """
    if tile >= x_BLD.shape[1]:
        loss, sums = summed_loss(scores, z_loss, head, x_BLD, targets_BL, weights_BL)
        return loss, jax.lax.stop_gradient(sums)

    # The gradient of the head adds up over the tiles in float32.
    head = jax.tree.map(lambda w: w.astype(jnp.float32), head)
    return loss_of_tiles(scores, tile, z_loss, head, x_BLD, targets_BL, weights_BL)


def summed_loss(
    scores: Scores, z_loss: float, head: Tree, x_BLD: Array, targets_BL: Array, weights_BL: Array
) -> tuple[Array, LossSums]:
    """Return `tiled_loss` of all positions at once."""
    sums = loss_sums(scores(head, x_BLD), targets_BL, weights_BL)
    return sums.loss + z_loss * sums.z, sums


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def loss_of_tiles(
    scores: Scores, tile: int, z_loss: float, head: Tree, *arrays: Array
) -> tuple[Array, LossSums]:
    """Return `tiled_loss` of several tiles; the arrays are x, targets and weights."""

    def add_tile(total: Tree, parts: Sequence[Array]) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, summed_loss(scores, z_loss, head, *parts)), None

    zeros = jnp.zeros((), jnp.float32), zero_sums()
    total, _ = jax.lax.scan(add_tile, zeros, split_positions(arrays, tile))
    return total


def loss_and_gradients(
    scores: Scores, tile: int, z_loss: float, head: Tree, *arrays: Array
) -> tuple[tuple[Array, LossSums], tuple[Tree, Array]]:
    """Return `loss_of_tiles`, and its gradients of the head and of x."""
    of_tile = jax.value_and_grad(partial(summed_loss, scores, z_loss), (0, 1), has_aux=True)

    def add_tile(total: Tree, parts: Sequence[Array]) -> tuple[Tree, Array]:
        result, (head_gradient, x_gradient) = of_tile(head, *parts)
        return jax.tree.map(jnp.add, total, (result, head_gradient)), x_gradient

    zeros = (jnp.zeros((), jnp.float32), zero_sums()), jax.tree.map(jnp.zeros_like, head)
    total, x_gradients = jax.lax.scan(add_tile, zeros, split_positions(arrays, tile))
    result, head_gradient = total
    x_gradient = jnp.moveaxis(x_gradients, 0, 1).reshape(arrays[0].shape)
    return result, (head_gradient, x_gradient)


def scaled_gradients(
    scores: Scores, tile: int, z_loss: float, gradients: tuple[Tree, Array], slopes: Tree
) -> tuple[Tree, Array, None, None]:
    """Return the gradients times the slope of the loss that `loss_of_tiles` returns first."""
    del scores, tile, z_loss
    slope, _ = slopes

    def scaled(gradient: Array) -> Array:
        return (slope * gradient.astype(jnp.float32)).astype(gradient.dtype)

    head_gradient, x_gradient = jax.tree.map(scaled, gradients)
    return head_gradient, x_gradient, None, None


loss_of_tiles.defvjp(loss_and_gradients, scaled_gradients)


def split_positions(arrays: Sequence[Array], tile: int) -> tuple[Array, ...]:
    """Return [tiles, B, tile, ...] of each array [B, L, ...]."""

    def split(array: Array) -> Array:
        rows, positions, *rest = array.shape
        return jnp.moveaxis(array.reshape(rows, positions // tile, tile, *rest), 1, 0)

    return tuple(split(array) for array in arrays)
