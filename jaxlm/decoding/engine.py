"""Continuing token ids: prompts are read in chunks of few sizes, then one compiled loop writes a token a turn in all rows.

Only the chunk's size, the number of rows and the room for new tokens are shapes; lengths and limits are data, so new ones compile
nothing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import config
from jaxlm.decoding.sampling import SamplingConfig, penalised, sample_tokens, seen
from jaxlm.models import Model
from jaxlm.types import Array, Batch, Tree

CHUNK = 512  # tokens of a prompt that are read at once at most
SMALLEST = 16
UPDATE_SECONDS = 0.05  # a caller who watches is asked that often, at most

Watch = Callable[
    [np.ndarray, np.ndarray], np.ndarray
]  # (tokens [B, N], lengths [B]) -> bool [B]: the rows that are to go on


class Ends(NamedTuple):
    """What ends a row, and what a model's generation config forces on it."""

    ids: tuple[int, ...]
    pad: int = 0  # behind a row's end
    least: int = 0  # tokens before the end may come
    first: int | None = None  # the first token, whatever the model says
    last: int | None = None  # the token at a row's limit


class State(NamedTuple):
    """The rows as far as they are written."""

    cache: Tree  # has read all but the newest token
    tokens_BN: Array  # int32
    newest_B: Array  # int32
    count: Array  # int32: columns of `tokens_BN` that are written
    lengths_B: Array  # int32: tokens of each row, its end included
    open_B: Array  # bool: rows that go on
    limits_B: Array  # int32: of the lengths
    rows_B: Array  # int32: the rows' numbers, for their random draws
    key: Array
    seen_BV: Array | None  # bool: tokens that a row has; where repetitions are penalised


class Writer:
    """A model that continues token ids. `params` are best given as `models.unstacked`."""

    def __init__(self, model: Model, params: Tree, ends: Ends):
        self.model, self.params, self.ends = model, params, ends
        self._read = jax.jit(partial(read, model), donate_argnums=(1, 2))
        self._begin = jax.jit(partial(begin, ends), static_argnums=(0, 1), donate_argnums=(2,))
        self._steps = jax.jit(partial(steps, model, ends), static_argnums=(0,), donate_argnums=(2,))

    def write(
        self,
        prompts: Sequence[np.ndarray],
        limits: Sequence[int],
        choice: SamplingConfig = SamplingConfig(),  # noqa: B008 (immutable)
        *,
        sources: Sequence[np.ndarray] | None = None,
        rows: Sequence[int] | None = None,
        seed: int = 0,
        watch: Watch | None = None,
    ) -> list[np.ndarray]:
        """The tokens that follow each prompt, at most `limits[i]` of them, its end included.

        `sources` are what an encoder-decoder reads; its prompts are what its decoder starts with. `rows` are the numbers of the
        rows for their random draws. `watch` is asked now and then which rows are to go on.
        """
        limits_B = np.asarray(limits, np.int32)
        room = bucket(int(limits_B.max()))
        cache, scores_BV = self.read(prompts, sources, room)
        seen_BV = None
        if choice.repetition_penalty != 1:
            seen_BV = seen(
                *padded(prompts, bucket(max(map(len, prompts)))), self.model.config.vocabulary_size
            )
        rows_B = (
            np.arange(len(prompts), dtype=np.int32) if rows is None else np.asarray(rows, np.int32)
        )
        state = self._begin(
            choice, room, cache, scores_BV, seen_BV, limits_B, rows_B, jax.random.key(seed)
        )
        state = (
            self._steps(choice, self.params, state, room)
            if watch is None
            else self.watched(choice, state, watch)
        )
        tokens_BN, lengths_B = np.asarray(state.tokens_BN), np.asarray(state.lengths_B)
        return [row[:length] for row, length in zip(tokens_BN, lengths_B, strict=True)]

    def read(
        self, prompts: Sequence[np.ndarray], sources: Sequence[np.ndarray] | None, room: int
    ) -> tuple[Tree, Array]:
        """(cache with room for so many new tokens, scores [B, V] of what follows the prompts)."""
        parts = list(chunks(prompts))
        columns = sum(tokens.shape[1] for tokens, _ in parts)
        cache = self.model.cache(len(prompts), columns + room)
        scores_BV = jnp.zeros((len(prompts), self.model.config.vocabulary_size), jnp.float32)
        for number, (tokens, lengths) in enumerate(parts):
            batch = Batch(tokens=tokens, lengths=lengths)
            if sources is not None and number == 0:
                source, source_lengths = padded(
                    sources, whole(self.model.config, max(map(len, sources)))
                )
                batch = batch._replace(source=source, source_lengths=source_lengths)
            cache, scores_BV = self._read(self.params, cache, scores_BV, batch)
        return cache, scores_BV

    def watched(self, choice: SamplingConfig, state: State, watch: Watch) -> State:
        """As `steps` to the end, a few at a time: more of them while they are quick."""
        turns, room = 1, state.tokens_BN.shape[1]
        while True:
            open_B = np.asarray(state.open_B) & watch(
                np.asarray(state.tokens_BN), np.asarray(state.lengths_B)
            )
            if not open_B.any():
                return state
            start = time.perf_counter()
            limit = min(int(state.count) + turns, room)
            state = self._steps(
                choice, self.params, state._replace(open_B=jnp.asarray(open_B)), limit
            )
            jax.block_until_ready(state.tokens_BN)
            seconds = time.perf_counter() - start
            turns = (
                turns * 2
                if seconds < UPDATE_SECONDS / 2
                else max(turns // 2, 1)
                if seconds > UPDATE_SECONDS
                else turns
            )


def bucket(size: int) -> int:
    """The least of 16, 24, 32, 48, 64, 96, ... that holds `size`."""
    power = SMALLEST
    while power < size:
        power *= 2
    return power * 3 // 4 if power > SMALLEST and size <= power * 3 // 4 else power


def whole(model: config.ModelConfig, size: int) -> int:
    """The bucket of a text that is read at once, not beyond the model's table of positions."""
    return min(bucket(size), model.context_length) if model.positions == "learned" else bucket(size)


def padded(rows: Sequence[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [B, width], int32 [B] lengths) of token ids, zeros behind them."""
    tokens = np.zeros((len(rows), width), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens, np.array([len(ids) for ids in rows], np.int32)


def chunks(prompts: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(tokens [B, L], lengths [B]) of prompts: as many whole chunks as there are, and one of a smaller size."""
    longest = max(map(len, prompts))
    whole = (longest - 1) // CHUNK * CHUNK
    for start in range(0, longest, CHUNK):
        size = CHUNK if start < whole else bucket(longest - start)
        yield padded([ids[start : start + size] for ids in prompts], size)


def read(
    model: Model, params: Tree, cache: Tree, scores_BV: Array, batch: Batch
) -> tuple[Tree, Array]:
    """The cache with a chunk more, and the scores of what follows in the rows whose prompts end in it."""
    lengths_B = jnp.asarray(batch.lengths)
    logits_B1V, cache = model.decode(
        params, cache, batch._replace(predict=jnp.maximum(lengths_B - 1, 0)[:, None])
    )
    return cache, jnp.where((lengths_B > 0)[:, None], logits_B1V[:, 0], scores_BV)


def begin(
    ends: Ends,
    choice: SamplingConfig,
    room: int,
    cache: Tree,
    scores_BV: Array,
    seen_BV: Array | None,
    limits_B: Array,
    rows_B: Array,
    key: Array,
) -> State:
    """The state with the first token of each row."""
    rows = len(scores_BV)
    none_B = jnp.zeros((rows,), jnp.int32)
    tokens_BN = jnp.full((rows, room), ends.pad, jnp.int32)
    state = State(
        cache, tokens_BN, none_B, jnp.int32(0), none_B, limits_B > 0, limits_B, rows_B, key, seen_BV
    )
    return extended(ends, choice, state, scores_BV)


def steps(
    model: Model, ends: Ends, choice: SamplingConfig, params: Tree, state: State, limit: Array
) -> State:
    """Turns until `limit` columns are written or all rows have ended."""

    def more(state: State) -> Array:
        return (state.count < limit) & jnp.any(state.open_B)

    def turn(state: State) -> State:
        # A row that has ended reads nothing more: its positions stay within the model's.
        batch = Batch(tokens=state.newest_B[:, None], lengths=state.open_B.astype(jnp.int32))
        logits_B1V, cache = model.decode(params, state.cache, batch)
        return extended(ends, choice, state._replace(cache=cache), logits_B1V[:, 0])

    return jax.lax.while_loop(more, turn, state)


def extended(ends: Ends, choice: SamplingConfig, state: State, scores_BV: Array) -> State:
    """The state with a token more in the rows that are open, chosen by the scores of what follows."""
    scores_BV = constrained(ends, choice, scores_BV, state.seen_BV, state.count, state.limits_B)
    chosen_B = sample_tokens(choice, scores_BV, state.key, state.rows_B, state.count)
    token_B = jnp.where(state.open_B, chosen_B, ends.pad)
    lengths_B = state.lengths_B + state.open_B
    return state._replace(
        tokens_BN=jax.lax.dynamic_update_slice_in_dim(
            state.tokens_BN, token_B[:, None], state.count, axis=1
        ),
        newest_B=token_B,
        count=state.count + 1,
        lengths_B=lengths_B,
        open_B=state.open_B & ~is_end(ends, token_B) & (lengths_B < state.limits_B),
        seen_BV=None
        if state.seen_BV is None
        else state.seen_BV.at[jnp.arange(len(token_B)), token_B].set(True),
    )


def constrained(
    ends: Ends,
    choice: SamplingConfig,
    scores_BV: Array,
    seen_BV: Array | None,
    count: Array,
    limits_B: Array,
) -> Array:
    """The scores as the penalty and the ends would have them; `count` tokens are written."""
    if seen_BV is not None:
        scores_BV = penalised(scores_BV, seen_BV, choice.repetition_penalty)
    ids_1V = jnp.arange(scores_BV.shape[1])[None]
    if ends.least and ends.ids:
        scores_BV = jnp.where(is_end(ends, ids_1V) & (count < ends.least), -jnp.inf, scores_BV)
    if ends.first is not None:
        scores_BV = jnp.where(count == 0, jnp.where(ids_1V == ends.first, 0.0, -jnp.inf), scores_BV)
    if ends.last is not None:
        scores_BV = jnp.where(
            (count == limits_B - 1)[:, None],
            jnp.where(ids_1V == ends.last, 0.0, -jnp.inf),
            scores_BV,
        )
    return scores_BV


def is_end(ends: Ends, tokens: Array) -> Array:
    found = jnp.zeros(tokens.shape, bool)
    for end in ends.ids:
        found |= tokens == end
    return found
