"""Beam search: the likeliest whole continuations instead of the likeliest next tokens, as `transformers` searches for them.

Every turn extends the running beams of a row by all tokens and takes the best candidates, twice as many as there are beams or more,
so that beams are left to run if all the best have ended. Finished beams are compared by their summed log-probabilities divided by
length ** penalty.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.decoding.engine import Ends, Writer, bucket, constrained, is_end, padded
from jaxlm.decoding.sampling import SamplingConfig, seen
from jaxlm.models import Model
from jaxlm.types import Array, Batch, Tree

OUT = -1e9  # of a score: as good as impossible


class Search(NamedTuple):
    """How beams are searched. They are done when no running beam can become better than the worst finished one."""

    beams: int = 4
    length_penalty: float = 1.0  # above 0 longer ones gain, below 0 they lose
    early_stopping: bool | str = (
        False  # True: done with as many finished ones as beams; "never": a running one may still become long
    )
    repetition_penalty: float = 1.0


class Beams(NamedTuple):
    """Running and finished beams, each row's best first; W beams, N tokens."""

    cache: Tree  # of B * W rows
    count: Array  # int32: tokens of the running beams
    limits_B: Array  # int32
    open_B: Array  # bool: rows whose finished beams can still be bettered
    tokens_BWN: Array  # int32
    scores_BW: Array  # float32: summed log-probabilities
    seen_BWV: Array | None
    finished_BWN: Array  # int32
    finished_lengths_BW: Array  # int32
    finished_scores_BW: Array  # float32
    is_finished_BW: Array  # bool


class Candidates(NamedTuple):
    """The best extensions of a row's running beams, C of them."""

    tokens_BCN: Array
    scores_BC: Array
    parents_BC: Array
    newest_BC: Array
    ended_BC: Array


class BeamWriter:
    """As `Writer`, by beam search."""

    def __init__(self, writer: Writer, search: Search):
        self.writer, self.search = writer, search
        self._begin = jax.jit(partial(begin, writer.ends, search), static_argnums=(0,))
        self._steps = jax.jit(
            partial(steps, writer.model, writer.ends, search), donate_argnums=(1,)
        )

    def write(
        self,
        prompts: Sequence[np.ndarray],
        limits: Sequence[int],
        sources: Sequence[np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """The tokens of the best beam after each prompt, its end included."""
        limits_B = np.asarray(limits, np.int32)
        room = bucket(int(limits_B.max()))
        cache, scores_BV = self.writer.read(prompts, sources, room)
        seen_BV = None
        if self.search.repetition_penalty != 1:
            seen_BV = seen(*padded(prompts, bucket(max(map(len, prompts)))), scores_BV.shape[1])
        powers_N = np.array(
            [float(length) ** self.search.length_penalty for length in range(1, room + 1)],
            np.float32,
        )
        state = self._begin(room, cache, scores_BV, seen_BV, limits_B, powers_N)
        state = self._steps(self.writer.params, state, powers_N)
        tokens, lengths = (
            np.asarray(state.finished_BWN[:, 0]),
            np.asarray(state.finished_lengths_BW[:, 0]),
        )
        return [row[:length] for row, length in zip(tokens, lengths, strict=True)]


def begin(
    ends: Ends,
    search: Search,
    room: int,
    cache: Tree,
    scores_BV: Array,
    seen_BV: Array | None,
    limits_B: Array,
    powers_N: Array,
):
    """The state after the first token. All beams but one begin impossible, else they would all be the same."""
    rows, W = len(scores_BV), search.beams
    tokens_BWN = jnp.full((rows, W, room), ends.pad, jnp.int32)
    scores_BW = jnp.broadcast_to(jnp.where(jnp.arange(W) > 0, OUT, 0.0)[None], (rows, W))
    state = Beams(
        repeated(cache, rows, W),
        jnp.int32(0),
        limits_B,
        limits_B > 0,
        tokens_BWN,
        scores_BW,
        None if seen_BV is None else jnp.repeat(seen_BV[:, None], W, axis=1),
        tokens_BWN,
        jnp.zeros((rows, W), jnp.int32),
        jnp.full((rows, W), OUT),
        jnp.zeros((rows, W), bool),
    )
    return extended(ends, search, state, jnp.repeat(scores_BV, W, axis=0), powers_N)


def repeated(cache: Tree, rows: int, times: int) -> Tree:
    """The cache with each row so many times, what was read of an encoder too (which `take` leaves as it is)."""
    places = jnp.repeat(jnp.arange(rows), times)
    cache = cache.take(places)
    if cache.cross_layers is None:
        return cache
    source = (cache.cross_layers, cache.source_lengths_B)
    layers, lengths = jax.tree.map(lambda x: x[places], source)
    return cache._replace(cross_layers=layers, source_lengths_B=lengths)


def steps(
    model: Model, ends: Ends, search: Search, params: Tree, state: Beams, powers_N: Array
) -> Beams:
    """Turns until all rows are done."""

    def turn(state: Beams) -> Beams:
        newest_BW = jax.lax.dynamic_index_in_dim(
            state.tokens_BWN, state.count - 1, axis=2, keepdims=False
        )
        # Beams of a row that is done read nothing more: their positions stay within the model's.
        reads_BW = jnp.broadcast_to(state.open_B[:, None], newest_BW.shape)
        batch = Batch(
            tokens=newest_BW.reshape(-1, 1), lengths=reads_BW.reshape(-1).astype(jnp.int32)
        )
        logits_B1V, cache = model.decode(params, state.cache, batch)
        return extended(ends, search, state._replace(cache=cache), logits_B1V[:, 0], powers_N)

    return jax.lax.while_loop(lambda state: jnp.any(state.open_B), turn, state)


def extended(ends: Ends, search: Search, state: Beams, logits_QV: Array, powers_N: Array) -> Beams:
    """The state a token further; `logits_QV` are those of B * W beams."""
    best = candidates(ends, search, state, logits_QV)
    state = finished(search, state, best, powers_N)
    state = running(search, state, best)
    return state._replace(
        open_B=state.open_B & improvable(search, state, powers_N) & ~jnp.all(best.ended_BC, axis=1)
    )


def candidates(ends: Ends, search: Search, state: Beams, logits_QV: Array) -> Candidates:
    rows, W = state.scores_BW.shape
    V = logits_QV.shape[1]
    C = max(2, 1 + len(ends.ids)) * W
    seen_QV = None if state.seen_BWV is None else state.seen_BWV.reshape(-1, V)
    choice = SamplingConfig(repetition_penalty=search.repetition_penalty)
    limits_Q = jnp.repeat(state.limits_B, W)
    log_probabilities_QV = constrained(
        ends, choice, jax.nn.log_softmax(logits_QV, axis=-1), seen_QV, state.count, limits_Q
    )
    sums_BX = (log_probabilities_QV.reshape(rows, W, V) + state.scores_BW[:, :, None]).reshape(
        rows, W * V
    )
    scores_BC, places_BC = jax.lax.top_k(sums_BX, min(C, W * V))
    parents_BC, newest_BC = places_BC // V, (places_BC % V).astype(jnp.int32)
    tokens_BCN = jnp.take_along_axis(state.tokens_BWN, parents_BC[:, :, None], axis=1)
    tokens_BCN = jax.lax.dynamic_update_slice_in_dim(
        tokens_BCN, newest_BC[:, :, None], state.count, axis=2
    )
    ended_BC = is_end(ends, newest_BC) | (state.count + 1 >= state.limits_B)[:, None]
    return Candidates(tokens_BCN, scores_BC, parents_BC, newest_BC, ended_BC)


def finished(search: Search, state: Beams, best: Candidates, powers_N: Array) -> Beams:
    """With the candidates that have ended; only the first W may, the others are there to go on running."""
    W = search.beams
    fresh_BC = best.ended_BC & (jnp.arange(best.ended_BC.shape[1]) < W)[None]
    scores_BC = (
        best.scores_BC / powers_N[state.count] + ~state.open_B[:, None] * OUT + ~fresh_BC * OUT
    )
    scores_BX = jnp.concatenate([state.finished_scores_BW, scores_BC], axis=1)
    kept_BW, order_BW = jax.lax.top_k(scores_BX, W)
    lengths_BX = jnp.concatenate(
        [state.finished_lengths_BW, jnp.broadcast_to(state.count + 1, best.ended_BC.shape)], axis=1
    )
    tokens_BXN = jnp.concatenate([state.finished_BWN, best.tokens_BCN], axis=1)
    return state._replace(
        finished_BWN=jnp.take_along_axis(tokens_BXN, order_BW[:, :, None], axis=1),
        finished_lengths_BW=jnp.take_along_axis(lengths_BX, order_BW, axis=1),
        finished_scores_BW=kept_BW,
        is_finished_BW=jnp.take_along_axis(
            jnp.concatenate([state.is_finished_BW, fresh_BC], axis=1), order_BW, axis=1
        ),
    )


def running(search: Search, state: Beams, best: Candidates) -> Beams:
    """With the best candidates that go on, and the cache in their order."""
    rows, W = state.scores_BW.shape
    scores_BW, order_BW = jax.lax.top_k(best.scores_BC + best.ended_BC * OUT, W)
    parents_BW, newest_BW = (
        jnp.take_along_axis(x, order_BW, axis=1) for x in (best.parents_BC, best.newest_BC)
    )
    seen_BWV = state.seen_BWV
    if seen_BWV is not None:
        seen_BWV = jnp.take_along_axis(seen_BWV, parents_BW[:, :, None], axis=1)
        seen_BWV = seen_BWV.at[jnp.arange(rows)[:, None], jnp.arange(W)[None], newest_BW].set(True)
    return state._replace(
        cache=state.cache.take((parents_BW + jnp.arange(rows)[:, None] * W).reshape(-1)),
        count=state.count + 1,
        tokens_BWN=jnp.take_along_axis(best.tokens_BCN, order_BW[:, :, None], axis=1),
        scores_BW=scores_BW,
        seen_BWV=seen_BWV,
    )


def improvable(search: Search, state: Beams, powers_N: Array) -> Array:
    """bool [B]: whether the best running beam may come to beat the worst finished one, by its score at its present length, or "never"
    at the limit."""
    longest = search.early_stopping == "never" and search.length_penalty > 0
    lengths_B = state.limits_B if longest else jnp.broadcast_to(state.count, state.limits_B.shape)
    possible_B1 = state.scores_BW[:, :1] / powers_N[jnp.maximum(lengths_B, 1) - 1][:, None]
    worst_B1 = jnp.min(state.finished_scores_BW, axis=1, keepdims=True)
    better_B = jnp.any(possible_B1 > jnp.where(state.is_finished_BW, worst_B1, OUT), axis=1)
    return (
        better_B & ~jnp.all(state.is_finished_BW, axis=1)
        if search.early_stopping is True
        else better_B
    )
