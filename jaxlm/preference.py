"""The loss of preferences: the better one of two answers becomes likelier than a reference has it.

DPO (arXiv 2305.18290, equation 7), IPO (arXiv 2310.12036, equation 17), and DPO by the mean of the
tokens' log-probabilities, so that a longer answer is worth no more. A row of a batch has a pair in
two segments: the prompt with the chosen answer, and the prompt with the rejected one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.losses import LossSums, PreferenceLoss, RewardSums, split_positions, token_losses
from jaxlm.models import Model
from jaxlm.types import Array, Batch, Tree

SEGMENTS = np.arange(1, 3)  # of the chosen answer, and of the rejected one


def preference_loss(
    model: Model, params: Tree, batch: Batch, keys_B: Array | None, tile: int
) -> tuple[Array, LossSums]:
    """Return the sum of the loss over the pairs of a batch, and all sums.

    `batch.reference` has the log-probabilities of the reference. A row without targets has no pair.
    Scores are computed `tile` positions at a time, here and again for the gradient.
    """
    assert model.preference is not None and batch.reference is not None
    answers_B2 = answer_log_probabilities(model, params, batch, keys_B, tile)
    sums = preference_sums(
        model.preference, answers_B2, jnp.asarray(batch.reference), count_tokens(batch)
    )
    return sums.loss, jax.lax.stop_gradient(sums)


def answer_log_probabilities(
    model: Model, params: Tree, batch: Batch, keys_B: Array | None, tile: int
) -> Array:
    """Return the log-probability of the chosen and of the rejected answer, float32 [B, 2].

    It is the sum over the targets that count of a segment, in nats.
    """
    x_BLD = model.features(params, batch, keys_B)
    head = model.head_weights(params)

    # The scores of a tile are computed again in the backward pass: only one tile's are in memory.
    @jax.checkpoint
    def add_tile(total_B2: Array, parts: Sequence[Array]) -> tuple[Array, None]:
        x_BTD, targets_BT, counted_BT2 = parts
        nll_BT, _ = token_losses(model.scores(head, x_BTD), targets_BT)
        return total_B2 - jnp.sum(nll_BT[:, :, None] * counted_BT2, axis=1), None

    arrays = x_BLD, jnp.asarray(batch.targets), counted_targets(batch)
    zeros_B2 = jnp.zeros((x_BLD.shape[0], 2), jnp.float32)
    total_B2, _ = jax.lax.scan(add_tile, zeros_B2, split_positions(arrays, tile))
    return total_B2


def counted_targets(batch: Batch) -> Array:
    """Return the weight of each target in the answer of each segment, float32 [B, L, 2]."""
    of_segment = jnp.asarray(batch.segments)[:, :, None] == SEGMENTS[None, None]
    return jnp.where(of_segment, jnp.asarray(batch.weights)[:, :, None], 0.0)


def count_tokens(batch: Batch) -> Array:
    """Return the number of tokens of the chosen and of the rejected answer, float32 [B, 2]."""
    return jnp.sum(counted_targets(batch), axis=1)


def count_pairs(batch: Batch) -> Array:
    """Return the number of pairs in a batch: of its rows with targets; float32."""
    return jnp.sum(jnp.any(jnp.asarray(batch.weights) > 0, axis=1).astype(jnp.float32))


def preference_sums(
    loss: PreferenceLoss, answers_B2: Array, reference_B2: Array, tokens_B2: Array
) -> LossSums:
    """Return the sums over pairs of log-probabilities, each answer of which has so many tokens.

    `correct` counts the pairs whose chosen answer has the higher reward: beta times the
    log-probability, less that of the reference.
    """
    ratios_B2 = answers_B2 - reference_B2
    if loss.kind == "dpo_mean":
        ratios_B2 = ratios_B2 / jnp.maximum(tokens_B2, 1.0)
    margin_B = ratios_B2[:, 0] - ratios_B2[:, 1]
    if loss.kind == "ipo":
        losses_B = jnp.square(margin_B - 1 / (2 * loss.beta))
    else:
        losses_B = jax.nn.softplus(-loss.beta * margin_B)

    is_pair_B = jnp.any(tokens_B2 > 0, axis=1).astype(jnp.float32)
    rewards_2 = jnp.sum(loss.beta * ratios_B2 * is_pair_B[:, None], axis=0)
    return LossSums(
        loss=jnp.sum(losses_B * is_pair_B),
        z=jnp.zeros((), jnp.float32),
        correct=jnp.sum((margin_B > 0) * is_pair_B),
        count=jnp.sum(is_pair_B),
        rewards=RewardSums(rewards_2[0], rewards_2[1]),
    )
