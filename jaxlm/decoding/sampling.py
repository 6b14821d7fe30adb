"""Choosing the next token of each row from the model's scores."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.types import Array

BLOCK = 256  # tokens


class SamplingConfig(NamedTuple):
    """How a token is chosen. The steps come in this order, and each sees what the ones before it left."""

    repetition_penalty: float = 1.0  # scores of tokens that the row has are divided by it, negative ones multiplied (arXiv 1909.05858)
    temperature: float = (
        0.0  # scores are divided by it; 0 takes the likeliest token and leaves out what follows
    )
    top_k: int | None = None  # the k likeliest, and those that are as likely as the last of them
    top_p: float = 1.0  # the fewest likeliest whose probabilities add up to this (arXiv 1904.09751)
    min_p: float = 0.0  # those that have at least this share of the likeliest one's probability (arXiv 2407.01082)


def sample_tokens(
    choice: SamplingConfig, scores_BV: Array, key: Array, rows_B: Array, position: Array
) -> Array:
    """int32 [B]. A row's draw depends on the key, its number in `rows_B` and the position, not on the rows beside it."""
    if choice.temperature == 0:
        return jnp.argmax(scores_BV, axis=-1).astype(jnp.int32)
    kept_BV = kept(choice, scores_BV)
    uniform_B = jax.vmap(
        lambda row: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, row), position))
    )(rows_B)
    return pick(jax.nn.softmax(kept_BV, axis=-1), uniform_B)


def pick(probabilities_BV: Array, uniform_B: Array) -> Array:
    """int32 [B]: the token at which the sum of the probabilities passes `uniform_B` of the whole.

    One random number a row, and no sum along the whole vocabulary: first the block of tokens is found, then the token in it.
    """
    rows, V = probabilities_BV.shape
    blocks_BNM = jnp.pad(probabilities_BV, ((0, 0), (0, -V % BLOCK))).reshape(rows, -1, BLOCK)
    sums_BN = jnp.cumsum(jnp.sum(blocks_BNM, axis=2), axis=1)
    target_B = uniform_B * sums_BN[:, -1]
    block_B = passing(sums_BN, target_B)
    before_B = jnp.where(
        block_B > 0,
        jnp.take_along_axis(sums_BN, jnp.maximum(block_B - 1, 0)[:, None], axis=1)[:, 0],
        0.0,
    )
    inner_BM = jnp.cumsum(
        jnp.take_along_axis(blocks_BNM, block_B[:, None, None], axis=1)[:, 0], axis=1
    )
    return (block_B * BLOCK + passing(inner_BM, target_B - before_B)).astype(jnp.int32)


def passing(sums_BN: Array, target_B: Array) -> Array:
    """int32 [B]: the first sum above the target; where rounding leaves none, the first of the highest: nothing is added behind it."""
    target_B = jnp.minimum(target_B, jnp.nextafter(sums_BN[:, -1], -jnp.inf))
    return jnp.argmax(sums_BN > target_B[:, None], axis=1).astype(jnp.int32)


def kept(choice: SamplingConfig, scores_BV: Array) -> Array:
    """The scores divided by the temperature, and -inf where a token is out of the question."""
    scores_BV = scores_BV / choice.temperature
    if choice.top_k is not None:
        scores_BV = only_top_k(scores_BV, min(choice.top_k, scores_BV.shape[-1]))
    if choice.top_p < 1:
        scores_BV = only_top_p(scores_BV, choice.top_p)
    if choice.min_p > 0:
        probabilities_BV = jax.nn.softmax(scores_BV, axis=-1)
        least_B1 = choice.min_p * jnp.max(probabilities_BV, axis=-1, keepdims=True)
        scores_BV = jnp.where(probabilities_BV < least_B1, -jnp.inf, scores_BV)
    return scores_BV


# XLA sorts slowly on CPUs, so the least score that stays is found bit by bit: 32 sums over the vocabulary, in the order of the floats.


def only_top_k(scores_BV: Array, k: int) -> Array:
    ranks_BV = ranks(scores_BV)
    least_B1 = last_rank(
        lambda rank_B1: jnp.sum(ranks_BV >= rank_B1, axis=1, keepdims=True) >= k, len(scores_BV)
    )
    return jnp.where(ranks_BV < least_B1, -jnp.inf, scores_BV)


def only_top_p(scores_BV: Array, top_p: float) -> Array:
    """From the least likely on, tokens go as long as their sum is at most 1 - top_p; of equally likely ones the lower ids go first."""
    ranks_BV, shares_BV = ranks(scores_BV), jax.nn.softmax(scores_BV, axis=-1)

    def below(rank_B1: Array) -> Array:
        return jnp.sum(jnp.where(ranks_BV < rank_B1, shares_BV, 0.0), axis=1, keepdims=True)

    least_B1 = last_rank(lambda rank_B1: below(rank_B1) <= 1 - top_p, len(scores_BV))
    least_B1 = jnp.minimum(least_B1, jnp.max(ranks_BV, axis=1, keepdims=True))
    ties_BV = ranks_BV == least_B1
    share_B1 = jnp.max(jnp.where(ties_BV, shares_BV, 0.0), axis=1, keepdims=True)
    most_B1 = jnp.sum(ties_BV, axis=1, keepdims=True) - 1
    gone_B1 = jnp.clip(jnp.floor((1 - top_p - below(least_B1)) / share_B1), 0, most_B1).astype(
        jnp.int32
    )
    # Ties are rare, and to count them takes another sum along the vocabulary.
    stays_BV = jax.lax.cond(
        jnp.any(gone_B1 > 0),
        lambda: jnp.cumsum(ties_BV, axis=1) > gone_B1,
        lambda: jnp.ones_like(ties_BV),
    )
    return jnp.where((ranks_BV > least_B1) | (ties_BV & stays_BV), scores_BV, -jnp.inf)


def ranks(scores: Array) -> Array:
    """uint32 in the order of float32 scores."""
    bits = jax.lax.bitcast_convert_type(
        jnp.where(scores == 0, 0.0, scores), jnp.uint32
    )  # -0.0 is 0.0
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def last_rank(holds: Callable[[Array], Array], rows: int) -> Array:
    """uint32 [B, 1]: the greatest rank for which `holds` is true; it is for 0, and never again once it is false."""

    def bit(number: Array, rank_B1: Array) -> Array:
        higher_B1 = rank_B1 | (jnp.uint32(1 << 31) >> number.astype(jnp.uint32))
        return jnp.where(holds(higher_B1), higher_B1, rank_B1)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros((rows, 1), jnp.uint32))


def penalised(scores_BV: Array, seen_BV: Array, penalty: float) -> Array:
    return jnp.where(
        seen_BV, jnp.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty), scores_BV
    )


def seen(tokens_BL: Array, lengths_B: Array, vocabulary_size: int) -> Array:
    """bool [B, V]: the tokens among the first `lengths_B` of each row."""
    real_BL = jnp.arange(tokens_BL.shape[1])[None] < lengths_B[:, None]
    # What is not real is counted out of range, where a scatter drops it.
    ids_BL = jnp.where(real_BL, tokens_BL, vocabulary_size)
    rows_B1 = jnp.arange(len(tokens_BL))[:, None]
    return (
        jnp.zeros((len(tokens_BL), vocabulary_size), bool)
        .at[rows_B1, ids_BL]
        .set(True, mode="drop")
    )
