"""Beam search, equal to that of `transformers`: find the likeliest continuation as a whole.

Every turn extends the running beams of a row by all tokens and takes the best extensions: at least
twice as many as there are beams, so that enough keep running if all the best have ended. Finished
beams are ranked by their summed log-probabilities divided by length ** length_penalty.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import UserError
from jaxlm.decoding.constraints import (
    PromptContext,
    StopTokens,
    apply_constraints,
    build_context,
    is_stop_token,
)
from jaxlm.decoding.engine import Engine, bucket_size, check_finite, has_finite_best, pad_rows
from jaxlm.decoding.sampling import SamplingConfig, seen_tokens
from jaxlm.models import Model
from jaxlm.types import Array, Batch, Tree

IMPOSSIBLE = -1e9  # a sum of log-probabilities below that of all real beams

# Farther from 0 the divisors of short and long texts are more than float32 can hold.
MOST_LENGTH_PENALTY = 30.0
LARGEST_DIVISOR = 1e34


class BeamConfig(NamedTuple):
    """How beams are searched.

    By default a row is done when no running beam can beat the worst finished one.
    """

    beams: int = 4
    length_penalty: float = 1.0  # above 0 longer texts gain, below 0 they lose
    # True: done with as many finished beams as `beams`. "never": a running beam counts with the
    # score that it could have at its full length.
    early_stopping: bool | str = False
    repetition_penalty: float = 1.0


class BeamState(NamedTuple):
    """Running and finished beams, each row's best first. W beams, N tokens."""

    cache: Tree  # of B * W rows
    count: Array  # int32: tokens of the running beams
    limits_B: Array  # int32: most tokens of each row
    open_B: Array  # bool: rows whose finished beams can still be beaten
    tokens_BWN: Array  # int32
    scores_BW: Array  # float32: summed log-probabilities
    context: PromptContext
    seen_BWV: Array | None  # bool: only if repetitions are penalized
    finished_BWN: Array  # int32
    finished_lengths_BW: Array  # int32
    finished_scores_BW: Array  # float32: by which they are ranked; -inf where there is none
    is_finished_BW: Array  # bool
    finite: Array  # bool: all scores so far are numbers


class Extensions(NamedTuple):
    """The C best extensions of a row's running beams by one token."""

    tokens_BCN: Array  # int32
    scores_BC: Array  # float32
    parents_BC: Array  # int32: the beam that is extended
    newest_BC: Array  # int32: the token
    ended_BC: Array  # bool


class BeamSearch:
    """Continues token ids as `Engine` does, by beam search."""

    def __init__(self, engine: Engine, config: BeamConfig):
        if not abs(config.length_penalty) <= MOST_LENGTH_PENALTY:
            most = MOST_LENGTH_PENALTY
            raise UserError(
                f"--length-penalty: must be between {-most:g} and {most:g}, "
                f"got {config.length_penalty:g}"
            )
        self.engine, self.config = engine, config
        self._start = jax.jit(partial(start_beams, engine.stop, config), static_argnums=(0,))
        self._search = jax.jit(
            partial(search_until_done, engine.model, engine.stop, config), donate_argnums=(1,)
        )

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        limits: Sequence[int],
        sources: Sequence[np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """Return the tokens of the best beam after each prompt, the stop token included."""
        limits_B = np.asarray(limits, np.int32)
        room = bucket_size(int(limits_B.max()))
        cache, scores_BV = self.engine.prefill(prompts, sources, room)

        width = bucket_size(max(map(len, prompts)))
        history = pad_rows(prompts, width) if self.config.repetition_penalty != 1 else None
        context = build_context(self.engine.stop, prompts, width)
        powers_N = length_powers(self.config.length_penalty, room)

        state = self._start(room, cache, scores_BV, history, context, limits_B, powers_N)
        state = self._search(self.engine.params, state, powers_N)
        check_finite(state.finite)
        tokens_BN = np.asarray(state.finished_BWN[:, 0])
        lengths_B = np.asarray(state.finished_lengths_BW[:, 0])
        return [row[:length] for row, length in zip(tokens_BN, lengths_B, strict=True)]


def length_powers(length_penalty: float, room: int) -> np.ndarray:
    """Return float32 [N]: length ** length_penalty for the lengths from 1 to `room`.

    A common factor changes no order. It is a power of two, which changes no digit either, and
    brings the middle length near 1: so neither end overflows.
    """
    factor = 2.0 ** -round(length_penalty * math.log2(room) / 2)
    powers_N = np.arange(1, room + 1, dtype=np.float64) ** length_penalty * factor
    return np.clip(powers_N, 1 / LARGEST_DIVISOR, LARGEST_DIVISOR).astype(np.float32)


def start_beams(
    stop: StopTokens,
    config: BeamConfig,
    room: int,
    cache: Tree,
    scores_BV: Array,
    history: tuple[Array, Array] | None,
    context: PromptContext,
    limits_B: Array,
    powers_N: Array,
) -> BeamState:
    """Return the state after the first token.

    `powers_N` are the divisors of the scores by length, from 1 on. `history` is
    (tokens [B, L], lengths [B]) of the prompts, only if repetitions are penalized.
    """
    (rows, vocabulary_size), W = scores_BV.shape, config.beams
    seen_BWV = None
    if history is not None:
        seen_BV = seen_tokens(*history, vocabulary_size)
        seen_BWV = jnp.repeat(seen_BV[:, None], W, axis=1)

    # All beams but the first start as impossible, else all would be the same.
    scores_1W = jnp.where(jnp.arange(W) > 0, IMPOSSIBLE, 0.0)[None]
    tokens_BWN = jnp.full((rows, W, room), stop.pad_id, jnp.int32)
    state = BeamState(
        cache=repeat_cache(cache, rows, W),
        count=jnp.int32(0),
        limits_B=limits_B,
        open_B=limits_B > 0,
        tokens_BWN=tokens_BWN,
        scores_BW=jnp.broadcast_to(scores_1W, (rows, W)),
        context=context.repeat(W),
        seen_BWV=seen_BWV,
        finished_BWN=tokens_BWN,
        finished_lengths_BW=jnp.zeros((rows, W), jnp.int32),
        finished_scores_BW=jnp.full((rows, W), -jnp.inf),
        is_finished_BW=jnp.zeros((rows, W), bool),
        finite=jnp.bool_(True),
    )
    return advance_beams(stop, config, state, jnp.repeat(scores_BV, W, axis=0), powers_N)


def repeat_cache(cache: Tree, rows: int, times: int) -> Tree:
    """Return the cache with each row `times` times.

    The keys and values of an encoder are repeated too; `take` leaves these as they are.
    """
    places = jnp.repeat(jnp.arange(rows), times)
    cache = cache.take(places)
    if cache.cross_layers is None:
        return cache
    source = (cache.cross_layers, cache.source_lengths_B)
    layers, lengths = jax.tree.map(lambda x: x[places], source)
    return cache._replace(cross_layers=layers, source_lengths_B=lengths)


def search_until_done(
    model: Model,
    stop: StopTokens,
    config: BeamConfig,
    params: Tree,
    state: BeamState,
    powers_N: Array,
) -> BeamState:
    """Extend the beams until no row can improve any more."""

    def extend(state: BeamState) -> BeamState:
        newest_BW = jax.lax.dynamic_index_in_dim(
            state.tokens_BWN, state.count - 1, axis=2, keepdims=False
        )
        # Beams of a row that is done read nothing more, so their positions stay within the
        # model's table.
        reads_BW = jnp.broadcast_to(state.open_B[:, None], newest_BW.shape)
        batch = Batch(
            tokens=newest_BW.reshape(-1, 1), lengths=reads_BW.reshape(-1).astype(jnp.int32)
        )
        logits_B1V, cache = model.decode(params, state.cache, batch)
        return advance_beams(stop, config, state._replace(cache=cache), logits_B1V[:, 0], powers_N)

    return jax.lax.while_loop(lambda state: jnp.any(state.open_B), extend, state)


def advance_beams(
    stop: StopTokens, config: BeamConfig, state: BeamState, logits_QV: Array, powers_N: Array
) -> BeamState:
    """Return the state one token further; `logits_QV` are those of the Q = B * W running beams."""
    # Without finite scores a row ends as it is.
    finite_B = jnp.all(has_finite_best(logits_QV).reshape(state.scores_BW.shape), axis=1)
    finite = state.finite & jnp.all(jnp.where(state.open_B, finite_B, True))
    state = state._replace(open_B=state.open_B & finite_B, finite=finite)

    best = rank_extensions(stop, config, state, logits_QV)
    state = collect_finished(config, state, best, powers_N)
    state = keep_running(config, state, best)
    still_open_B = can_improve(config, state, powers_N) & ~jnp.all(best.ended_BC, axis=1)
    return state._replace(open_B=state.open_B & still_open_B)


def rank_extensions(
    stop: StopTokens, config: BeamConfig, state: BeamState, logits_QV: Array
) -> Extensions:
    """Return the best extensions of the running beams by one token."""
    rows, W = state.scores_BW.shape
    V = logits_QV.shape[1]
    C = max(2, 1 + len(stop.ids)) * W

    log_probabilities_QV = apply_constraints(
        stop,
        SamplingConfig(repetition_penalty=config.repetition_penalty),
        jax.nn.log_softmax(logits_QV, axis=-1),
        None if state.seen_BWV is None else state.seen_BWV.reshape(-1, V),
        context=state.context,
        tokens_BN=state.tokens_BWN.reshape(rows * W, -1),
        count=state.count,
        limits_B=jnp.repeat(state.limits_B, W),
    )
    sums_BWV = log_probabilities_QV.reshape(rows, W, V) + state.scores_BW[:, :, None]
    scores_BC, places_BC = jax.lax.top_k(sums_BWV.reshape(rows, W * V), min(C, W * V))
    parents_BC, newest_BC = places_BC // V, (places_BC % V).astype(jnp.int32)

    tokens_BCN = jnp.take_along_axis(state.tokens_BWN, parents_BC[:, :, None], axis=1)
    tokens_BCN = jax.lax.dynamic_update_slice_in_dim(
        tokens_BCN, newest_BC[:, :, None], state.count, axis=2
    )
    ended_BC = is_stop_token(stop, newest_BC) | (state.count + 1 >= state.limits_B)[:, None]
    return Extensions(
        tokens_BCN=tokens_BCN,
        scores_BC=scores_BC,
        parents_BC=parents_BC,
        newest_BC=newest_BC,
        ended_BC=ended_BC,
    )


def collect_finished(
    config: BeamConfig, state: BeamState, best: Extensions, powers_N: Array
) -> BeamState:
    """Add the extensions that have ended to the finished beams.

    Only the W best extensions may finish; the others are there to keep the beam full.
    """
    W = config.beams
    is_among_best_1C = (jnp.arange(best.ended_BC.shape[1]) < W)[None]
    is_possible_BC = state.open_B[:, None] & (best.scores_BC > IMPOSSIBLE / 2)
    new_BC = best.ended_BC & is_among_best_1C & is_possible_BC
    scores_BC = jnp.where(new_BC, best.scores_BC / powers_N[state.count], -jnp.inf)

    # Rank old and new ones together.
    scores_BX = jnp.concatenate([state.finished_scores_BW, scores_BC], axis=1)
    kept_BW, order_BW = jax.lax.top_k(scores_BX, W)
    new_lengths_BC = jnp.broadcast_to(state.count + 1, best.ended_BC.shape)
    lengths_BX = jnp.concatenate([state.finished_lengths_BW, new_lengths_BC], axis=1)
    tokens_BXN = jnp.concatenate([state.finished_BWN, best.tokens_BCN], axis=1)
    is_finished_BX = jnp.concatenate([state.is_finished_BW, new_BC], axis=1)
    return state._replace(
        finished_BWN=jnp.take_along_axis(tokens_BXN, order_BW[:, :, None], axis=1),
        finished_lengths_BW=jnp.take_along_axis(lengths_BX, order_BW, axis=1),
        finished_scores_BW=kept_BW,
        is_finished_BW=jnp.take_along_axis(is_finished_BX, order_BW, axis=1),
    )


def keep_running(config: BeamConfig, state: BeamState, best: Extensions) -> BeamState:
    """Replace the running beams by the best extensions that have not ended, and sort the cache."""
    rows, W = state.scores_BW.shape
    scores_BW, order_BW = jax.lax.top_k(best.scores_BC + best.ended_BC * IMPOSSIBLE, W)
    parents_BW = jnp.take_along_axis(best.parents_BC, order_BW, axis=1)
    newest_BW = jnp.take_along_axis(best.newest_BC, order_BW, axis=1)

    seen_BWV = state.seen_BWV
    if seen_BWV is not None:
        seen_BWV = jnp.take_along_axis(seen_BWV, parents_BW[:, :, None], axis=1)
        seen_BWV = seen_BWV.at[jnp.arange(rows)[:, None], jnp.arange(W)[None], newest_BW].set(True)
    cache_rows_BW = parents_BW + jnp.arange(rows)[:, None] * W
    return state._replace(
        cache=state.cache.take(cache_rows_BW.reshape(-1)),
        count=state.count + 1,
        tokens_BWN=jnp.take_along_axis(best.tokens_BCN, order_BW[:, :, None], axis=1),
        scores_BW=scores_BW,
        seen_BWV=seen_BWV,
    )


def can_improve(config: BeamConfig, state: BeamState, powers_N: Array) -> Array:
    """Return bool [B]: whether the best running beam may come to beat the worst finished one.

    It counts with its score at its present length, or, if early stopping is "never", at the limit.
    """
    lengths_B = jnp.broadcast_to(state.count, state.limits_B.shape)
    if config.early_stopping == "never" and config.length_penalty > 0:
        lengths_B = state.limits_B

    possible_B1 = state.scores_BW[:, :1] / powers_N[jnp.maximum(lengths_B, 1) - 1][:, None]
    worst_B1 = jnp.min(state.finished_scores_BW, axis=1, keepdims=True)
    to_beat_BW = jnp.where(state.is_finished_BW, worst_B1, -jnp.inf)
    better_B = jnp.any(possible_B1 > to_beat_BW, axis=1)
    if config.early_stopping is True:
        return better_B & ~jnp.all(state.is_finished_BW, axis=1)
    return better_B
