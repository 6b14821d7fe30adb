"""Choose the next token of each row from the model's scores."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.types import Array

BLOCK = 256  # tokens

# Below, the temperature makes the rounding errors of the scores count: the likeliest is taken.
LEAST_TEMPERATURE = 1e-6
# Above, factors of scores overflow float32 and change nothing any more.
LARGEST_FACTOR = 1e30


class SamplingConfig(NamedTuple):
    """How a token is chosen. The steps run in this order; each sees what the steps before left."""

    # Scores of tokens that the row has are divided by it, negative ones multiplied
    # (arXiv 1909.05858).
    repetition_penalty: float = 1.0
    # Scores are divided by it. 0, or as good as 0, takes the likeliest token and skips all later
    # steps.
    temperature: float = 0.0
    top_k: int | None = None  # the k likeliest, and those as likely as the last of them
    top_p: float = 1.0  # the fewest likeliest whose probabilities reach this sum (arXiv 1904.09751)
    # Those with at least this share of the highest probability (arXiv 2407.01082).
    min_p: float = 0.0


def sample_tokens(
    sampling: SamplingConfig, scores_BV: Array, key: Array, rows_B: Array, position: Array
) -> Array:
    """Return int32 [B], the chosen token of each row.

    A row's draw depends on the key, its number in `rows_B` and the position, not on its batch.
    """
    if sampling.temperature < LEAST_TEMPERATURE:
        return jnp.argmax(scores_BV, axis=-1).astype(jnp.int32)

    def draw_uniform(row: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, row), position))

    # The maximum is taken away first: temperatures far below 1 magnify its rounding.
    scores_BV = scores_BV - jnp.max(scores_BV, axis=-1, keepdims=True)
    kept_BV = filter_scores(sampling, scores_BV)
    return pick_tokens(jax.nn.softmax(kept_BV, axis=-1), jax.vmap(draw_uniform)(rows_B))


def pick_tokens(probabilities_BV: Array, uniform_B: Array) -> Array:
    """Return int32 [B]: the token at which the cumulative probability exceeds `uniform_B`.

    One random number per row, and no cumulative sum along the whole vocabulary: first the block
    of tokens is found, then the token in it.
    """
    rows, V = probabilities_BV.shape
    blocks_BNM = jnp.pad(probabilities_BV, ((0, 0), (0, -V % BLOCK))).reshape(rows, -1, BLOCK)
    sums_BN = jnp.cumsum(jnp.sum(blocks_BNM, axis=2), axis=1)
    target_B = uniform_B * sums_BN[:, -1]

    block_B = first_above(sums_BN, target_B)
    previous_B1 = jnp.maximum(block_B - 1, 0)[:, None]
    before_B = jnp.where(block_B > 0, jnp.take_along_axis(sums_BN, previous_B1, axis=1)[:, 0], 0.0)

    block_BM = jnp.take_along_axis(blocks_BNM, block_B[:, None, None], axis=1)[:, 0]
    inner_BM = jnp.cumsum(block_BM, axis=1)
    return (block_B * BLOCK + first_above(inner_BM, target_B - before_B)).astype(jnp.int32)


def first_above(sums_BN: Array, target_B: Array) -> Array:
    """Return int32 [B]: the place of the first sum above the target.

    Where rounding leaves none above it, the first of the highest: nothing is added after that one.
    """
    target_B = jnp.minimum(target_B, jnp.nextafter(sums_BN[:, -1], -jnp.inf))
    return jnp.argmax(sums_BN > target_B[:, None], axis=1).astype(jnp.int32)


def filter_scores(sampling: SamplingConfig, scores_BV: Array) -> Array:
    """Return the scores divided by the temperature, with -inf for tokens that are left out."""
    temperature = min(max(sampling.temperature, LEAST_TEMPERATURE), LARGEST_FACTOR)
    scores_BV = scores_BV / temperature
    if sampling.top_k is not None:
        scores_BV = keep_top_k(scores_BV, min(sampling.top_k, scores_BV.shape[-1]))
    if sampling.top_p < 1:
        scores_BV = keep_top_p(scores_BV, sampling.top_p)
    if sampling.min_p > 0:
        probabilities_BV = jax.nn.softmax(scores_BV, axis=-1)
        least_B1 = sampling.min_p * jnp.max(probabilities_BV, axis=-1, keepdims=True)
        scores_BV = jnp.where(probabilities_BV < least_B1, -jnp.inf, scores_BV)
    return scores_BV


# --- top-k and top-p ---
# XLA sorts slowly on CPUs. So the least score that stays is found bit by bit instead: 32 sums over
# the vocabulary, in the order of the floats.


def keep_top_k(scores_BV: Array, k: int) -> Array:
    """Return the scores with -inf below the k-th highest of each row."""
    ranks_BV = float_ranks(scores_BV)
    least_B1 = greatest_rank(
        lambda rank_B1: jnp.sum(ranks_BV >= rank_B1, axis=1, keepdims=True) >= k, len(scores_BV)
    )
    return jnp.where(ranks_BV < least_B1, -jnp.inf, scores_BV)


def keep_top_p(scores_BV: Array, top_p: float) -> Array:
    """Return the scores with -inf where a token is not among the likeliest that sum to `top_p`.

    Tokens leave from the least likely on, as long as their sum is at most 1 - top_p. Of equally
    likely tokens the lower ids leave first.
    """
    ranks_BV, shares_BV = float_ranks(scores_BV), jax.nn.softmax(scores_BV, axis=-1)

    def share_below(rank_B1: Array) -> Array:
        return jnp.sum(jnp.where(ranks_BV < rank_B1, shares_BV, 0.0), axis=1, keepdims=True)

    least_B1 = greatest_rank(lambda rank_B1: share_below(rank_B1) <= 1 - top_p, len(scores_BV))
    least_B1 = jnp.minimum(least_B1, jnp.max(ranks_BV, axis=1, keepdims=True))

    # Some of the tokens that are exactly as likely as the last one that stays may have to leave.
    ties_BV = ranks_BV == least_B1
    share_B1 = jnp.max(jnp.where(ties_BV, shares_BV, 0.0), axis=1, keepdims=True)
    most_B1 = jnp.sum(ties_BV, axis=1, keepdims=True) - 1
    leaving_B1 = jnp.floor((1 - top_p - share_below(least_B1)) / share_B1)
    leaving_B1 = jnp.clip(leaving_B1, 0, most_B1).astype(jnp.int32)

    # Ties are rare, and to count them takes another sum along the vocabulary.
    stays_BV = jax.lax.cond(
        jnp.any(leaving_B1 > 0),
        lambda: jnp.cumsum(ties_BV, axis=1) > leaving_B1,
        lambda: jnp.ones_like(ties_BV),
    )
    return jnp.where((ranks_BV > least_B1) | (ties_BV & stays_BV), scores_BV, -jnp.inf)


def float_ranks(scores: Array) -> Array:
    """Return uint32 that are ordered as the float32 scores are."""
    zeros_made_equal = jnp.where(scores == 0, 0.0, scores)  # -0.0 is 0.0
    bits = jax.lax.bitcast_convert_type(zeros_made_equal, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def greatest_rank(holds: Callable[[Array], Array], rows: int) -> Array:
    """Return uint32 [B, 1]: the greatest rank for which `holds` is true.

    `holds` must be true for 0 and, once false, stay false for all greater ranks.
    """

    def set_bit(number: Array, rank_B1: Array) -> Array:
        higher_B1 = rank_B1 | (jnp.uint32(1 << 31) >> number.astype(jnp.uint32))
        return jnp.where(holds(higher_B1), higher_B1, rank_B1)

    return jax.lax.fori_loop(0, 32, set_bit, jnp.zeros((rows, 1), jnp.uint32))


# --- repetitions ---


def penalize_repetitions(scores_BV: Array, seen_BV: Array, penalty: float) -> Array:
    """Return the scores with those of seen tokens divided by the penalty, or multiplied below 0."""
    penalty = min(penalty, LARGEST_FACTOR)
    penalized_BV = jnp.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
    return jnp.where(seen_BV, penalized_BV, scores_BV)


def seen_tokens(tokens_BL: Array, lengths_B: Array, vocabulary_size: int) -> Array:
    """Return bool [B, V]: which tokens are among the first `lengths_B` of each row."""
    real_BL = jnp.arange(tokens_BL.shape[1])[None] < lengths_B[:, None]
    # Padding gets an id out of range, which a scatter drops.
    ids_BL = jnp.where(real_BL, tokens_BL, vocabulary_size)
    rows_B1 = jnp.arange(len(tokens_BL))[:, None]
    seen_BV = jnp.zeros((len(tokens_BL), vocabulary_size), bool)
    return seen_BV.at[rows_B1, ids_BL].set(True, mode="drop")
