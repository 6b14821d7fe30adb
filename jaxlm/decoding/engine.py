"""Continue token ids with a key-value cache.

Prompts are read in chunks of a few sizes. Then one compiled loop writes one token per turn in all
rows. Only the size of a chunk, the number of rows and the room for new tokens are shapes. Lengths
and limits are data, so new ones compile nothing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import config
from jaxlm.config import DivergedError
from jaxlm.decoding.constraints import (
    PromptContext,
    StopTokens,
    apply_constraints,
    build_context,
    is_stop_token,
)
from jaxlm.decoding.sampling import SamplingConfig, sample_tokens, seen_tokens
from jaxlm.models import Model
from jaxlm.sharding import replicated_sharding
from jaxlm.types import Array, Batch, Tree

CHUNK = 512  # most tokens of a prompt that are read in one pass
SMALLEST_BUCKET = 16
UPDATE_SECONDS = 0.05  # aimed at between two calls of `on_tokens`

# (tokens [B, N], lengths [B]) -> bool [B]: the rows that continue
OnTokens = Callable[[np.ndarray, np.ndarray], np.ndarray]


class EngineState(NamedTuple):
    """Rows as far as they are written. N columns of new tokens."""

    cache: Tree  # has read all but the newest token
    tokens_BN: Array  # int32
    newest_B: Array  # int32
    count: Array  # int32: columns of `tokens_BN` that are written
    lengths_B: Array  # int32: tokens of each row, its stop token included
    open_B: Array  # bool: rows that continue
    limits_B: Array  # int32: most tokens of each row
    rows_B: Array  # int32: the rows' numbers, for their random draws
    key: Array
    context: PromptContext
    seen_BV: Array | None  # bool: tokens that occur in a row; only if repetitions are penalized
    finite: Array  # bool: all scores so far are numbers


class Engine:
    """Continues token ids with a decoder or an encoder-decoder.

    `params` may be split over the devices of several processes; then every process makes the same
    calls and gets the same rows. On a single device `models.unstacked(params)` is faster.
    """

    def __init__(self, model: Model, params: Tree, stop: StopTokens):
        self.model, self.params, self.stop = model, params, stop

        # Every process reads the rows, so they are whole on each device. The compiler is free to
        # split the cache.
        whole = replicated_sharding(params)
        shardings: list[Any] = [whole] * len(EngineState._fields)
        state = EngineState(*shardings)._replace(cache=None)

        self._read_first = jax.jit(partial(read_first_chunk, model), static_argnums=(0,))
        self._read_next = jax.jit(partial(read_chunk, model), donate_argnums=(1, 2))
        self._start = jax.jit(
            partial(start_rows, stop),
            static_argnums=(0, 1),
            donate_argnums=(2,),
            out_shardings=state,
        )
        self._decode = jax.jit(
            partial(decode_until, model, stop),
            static_argnums=(0,),
            donate_argnums=(2,),
            out_shardings=state,
        )

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        limits: Sequence[int] | np.ndarray,
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008 (immutable)
        *,
        sources: Sequence[np.ndarray] | None = None,
        rows: Sequence[int] | np.ndarray | None = None,
        seed: int = 0,
        on_tokens: OnTokens | None = None,
    ) -> list[np.ndarray]:
        """Return the tokens that follow each prompt: at most `limits[i]`, the stop token included.

        `sources` are what an encoder-decoder reads; its prompts are the first tokens of its
        decoder. `rows` are the numbers of the rows for their random draws (0, 1, ... by default).
        `on_tokens` is called now and then and says which rows continue. DivergedError where the
        model's scores are not finite.
        """
        limits_B = np.asarray(limits, np.int32)
        room = bucket_size(int(limits_B.max()))
        cache, scores_BV = self.prefill(prompts, sources, room)

        width = bucket_size(max(map(len, prompts)))
        history = pad_rows(prompts, width) if sampling.repetition_penalty != 1 else None
        numbers = range(len(prompts)) if rows is None else rows
        state = self._start(
            sampling,
            room,
            cache,
            scores_BV,
            history,
            build_context(self.stop, prompts, width),
            limits_B,
            np.asarray(numbers, np.int32),
            np.uint32(seed & 0xFFFFFFFF),
        )

        if on_tokens is None:
            every_row_B = np.ones(len(prompts), bool)
            state = self._decode(sampling, self.params, state, every_row_B, room)
        else:
            state = self._decode_in_steps(sampling, state, on_tokens)
        check_finite(state.finite)
        tokens_BN, lengths_B = np.asarray(state.tokens_BN), np.asarray(state.lengths_B)
        return [row[:length] for row, length in zip(tokens_BN, lengths_B, strict=True)]

    def prefill(
        self, prompts: Sequence[np.ndarray], sources: Sequence[np.ndarray] | None, room: int
    ) -> tuple[Tree, Array]:
        """Read the prompts.

        Returns the cache, with room for `room` new tokens, and float32 [B, V] scores of the tokens
        that follow the prompts.
        """
        chunks = list(split_into_chunks(prompts))
        columns = sum(tokens.shape[1] for tokens, _ in chunks) + room
        first, *others = [Batch(tokens=tokens, lengths=lengths) for tokens, lengths in chunks]

        if sources is not None:
            width = text_bucket(self.model.config, max(map(len, sources)))
            source, source_lengths = pad_rows(sources, width)
            first = first._replace(source=source, source_lengths=source_lengths)

        cache, scores_BV = self._read_first(columns, self.params, first)
        for chunk in others:
            cache, scores_BV = self._read_next(self.params, cache, scores_BV, chunk)
        return cache, scores_BV

    def _decode_in_steps(
        self, sampling: SamplingConfig, state: EngineState, on_tokens: OnTokens
    ) -> EngineState:
        """Decode until all rows have ended, with a call of `on_tokens` every few tokens."""
        turns, room = 1, state.tokens_BN.shape[1]
        while True:
            continues_B = on_tokens(np.asarray(state.tokens_BN), np.asarray(state.lengths_B))
            if not (np.asarray(state.open_B) & continues_B).any():
                return state

            start = time.perf_counter()
            limit = min(int(state.count) + turns, room)
            state = self._decode(sampling, self.params, state, continues_B, limit)
            jax.block_until_ready(state.tokens_BN)
            seconds = time.perf_counter() - start

            if seconds < UPDATE_SECONDS / 2:
                turns *= 2
            elif seconds > UPDATE_SECONDS:
                turns = max(turns // 2, 1)


# --- shapes ---


def bucket_size(size: int) -> int:
    """Return the least of 16, 24, 32, 48, 64, 96, ... that is at least `size`."""
    power = SMALLEST_BUCKET
    while power < size:
        power *= 2
    return power * 3 // 4 if power > SMALLEST_BUCKET and size <= power * 3 // 4 else power


def text_bucket(model_config: config.ModelConfig, size: int) -> int:
    """Return the bucket of a text that is read in one pass, within the table of positions."""
    if model_config.positions == "learned":
        return min(bucket_size(size), model_config.context_length)
    return bucket_size(size)


def pad_rows(rows: Sequence[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids as int32 [B, width], zeros at the end, and their lengths as int32 [B]."""
    tokens = np.zeros((len(rows), width), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens, np.array([len(ids) for ids in rows], np.int32)


def split_into_chunks(prompts: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (tokens [B, L], lengths [B]): full chunks, then one of the smallest size that fits."""
    longest = max(map(len, prompts))
    full = (longest - 1) // CHUNK * CHUNK
    for start in range(0, longest, CHUNK):
        size = CHUNK if start < full else bucket_size(longest - start)
        yield pad_rows([ids[start : start + size] for ids in prompts], size)


def check_finite(finite: Any) -> None:
    """Raise DivergedError unless the flag is true that all scores are finite."""
    if not finite:
        raise DivergedError(
            "the model's scores are not finite: its weights hold NaN or infinity, or overflow"
        )


# --- the compiled programs ---


def read_first_chunk(model: Model, columns: int, params: Tree, batch: Batch) -> tuple[Tree, Array]:
    """Read the first chunk of the prompts into a new cache of `columns`."""
    rows = len(batch.tokens)
    scores_BV = jnp.zeros((rows, model.config.vocabulary_size), jnp.float32)
    return read_chunk(model, params, model.cache(rows, columns), scores_BV, batch)


def read_chunk(
    model: Model, params: Tree, cache: Tree, scores_BV: Array, batch: Batch
) -> tuple[Tree, Array]:
    """Append a chunk to the cache, and set the scores of the rows whose prompts have tokens in it.

    A row keeps the scores after the last chunk that has tokens of it.
    """
    lengths_B = jnp.asarray(batch.lengths)
    last_B1 = jnp.maximum(lengths_B - 1, 0)[:, None]
    logits_B1V, cache = model.decode(params, cache, batch._replace(predict=last_B1))
    return cache, jnp.where((lengths_B > 0)[:, None], logits_B1V[:, 0], scores_BV)


def start_rows(
    stop: StopTokens,
    sampling: SamplingConfig,
    room: int,
    cache: Tree,
    scores_BV: Array,
    history: tuple[Array, Array] | None,
    context: PromptContext,
    limits_B: Array,
    rows_B: Array,
    seed: Array,
) -> EngineState:
    """Return the state with the first new token of each row.

    `history` is (tokens [B, L], lengths [B]) of the prompts, only if repetitions are penalized.
    """
    rows, vocabulary_size = scores_BV.shape
    zeros_B = jnp.zeros((rows,), jnp.int32)

    state = EngineState(
        cache=cache,
        tokens_BN=jnp.full((rows, room), stop.pad_id, jnp.int32),
        newest_B=zeros_B,
        count=jnp.int32(0),
        lengths_B=zeros_B,
        open_B=limits_B > 0,
        limits_B=limits_B,
        rows_B=rows_B,
        key=jax.random.key(seed),
        context=context,
        seen_BV=None if history is None else seen_tokens(*history, vocabulary_size),
        finite=jnp.bool_(True),
    )

    return append_token(stop, sampling, state, scores_BV)


def decode_until(
    model: Model,
    stop: StopTokens,
    sampling: SamplingConfig,
    params: Tree,
    state: EngineState,
    continues_B: Array,
    limit: Array,
) -> EngineState:
    """Write tokens until `limit` columns are written or all rows have ended.

    Rows whose `continues_B` is false end at once.
    """

    def is_unfinished(state: EngineState) -> Array:
        return (state.count < limit) & jnp.any(state.open_B)

    def write_token(state: EngineState) -> EngineState:
        # A row that has ended reads nothing more, so its positions stay within the model's table.
        batch = Batch(tokens=state.newest_B[:, None], lengths=state.open_B.astype(jnp.int32))
        logits_B1V, cache = model.decode(params, state.cache, batch)
        return append_token(stop, sampling, state._replace(cache=cache), logits_B1V[:, 0])

    state = state._replace(open_B=state.open_B & continues_B)
    return jax.lax.while_loop(is_unfinished, write_token, state)


def append_token(
    stop: StopTokens, sampling: SamplingConfig, state: EngineState, scores_BV: Array
) -> EngineState:
    """Choose the next token of each open row by `scores_BV`, and append it.

    A row whose scores are not finite ends without it.
    """
    finite_B = has_finite_best(scores_BV)
    open_B = state.open_B & finite_B
    scores_BV = apply_constraints(
        stop,
        sampling,
        scores_BV,
        state.seen_BV,
        context=state.context,
        tokens_BN=state.tokens_BN,
        count=state.count,
        limits_B=state.limits_B,
    )
    chosen_B = sample_tokens(sampling, scores_BV, state.key, state.rows_B, state.count)
    token_B = jnp.where(open_B, chosen_B, stop.pad_id)

    lengths_B = state.lengths_B + open_B
    seen_BV = state.seen_BV
    if seen_BV is not None:
        seen_BV = seen_BV.at[jnp.arange(len(token_B)), token_B].set(True)
    return state._replace(
        tokens_BN=jax.lax.dynamic_update_slice_in_dim(
            state.tokens_BN, token_B[:, None], state.count, axis=1
        ),
        newest_B=token_B,
        count=state.count + 1,
        lengths_B=lengths_B,
        open_B=open_B & ~is_stop_token(stop, token_B) & (lengths_B < state.limits_B),
        seen_BV=seen_BV,
        finite=state.finite & jnp.all(jnp.where(state.open_B, finite_B, True)),
    )


def has_finite_best(scores_BV: Array) -> Array:
    """Return bool [B]: whether a row of scores has a finite maximum; one NaN makes it NaN."""
    return jnp.isfinite(jnp.max(scores_BV, axis=1))
