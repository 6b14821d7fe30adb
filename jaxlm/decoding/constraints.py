"""Rule tokens out, or force them: a least length, forced ends, and the rules of a model's files."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.decoding.sampling import SamplingConfig, penalize_repetitions
from jaxlm.interop.generation_config import TokenRules
from jaxlm.types import Array

NO_TOKEN = -1  # stands before prompts that are shorter than others


class StopTokens(NamedTuple):
    """Tokens that end a row, and tokens that a model's generation config forces or forbids."""

    ids: tuple[int, ...]
    pad_id: int = 0  # fills a row after its end
    min_new_tokens: int = 0  # tokens before a stop token may come
    forced_first_id: int | None = None  # the first token after a prompt of a single token
    forced_last_id: int | None = None  # the token at a row's limit
    rules: TokenRules = TokenRules()

    @property
    def reads_history(self) -> bool:
        """Whether a rule looks at the tokens before the next one."""
        is_long = any(len(sequence) > 1 for sequence in self.rules.forbidden_sequences)
        return is_long or self.rules.no_repeat_ngram_size > 0


class PromptContext(NamedTuple):
    """The prompts of B rows, as far as the constraints read them."""

    is_single_B: Array  # bool: the prompt is a single token
    # int32: the prompts, aligned to the right; only if a rule looks at earlier tokens
    prompts_BP: Array | None

    def repeat(self, times: int) -> "PromptContext":
        """Return the context with each row `times` times."""
        return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), self)


def build_context(stop: StopTokens, prompts: Sequence[np.ndarray], width: int) -> PromptContext:
    """Return the context of prompts that have at most `width` tokens."""
    is_single_B = np.array([len(ids) == 1 for ids in prompts])
    if not stop.reads_history:
        return PromptContext(is_single_B, None)

    prompts_BP = np.full((len(prompts), width), NO_TOKEN, np.int32)
    for row, ids in zip(prompts_BP, prompts, strict=True):
        row[width - len(ids) :] = ids
    return PromptContext(is_single_B, prompts_BP)


def apply_constraints(
    stop: StopTokens,
    sampling: SamplingConfig,
    scores_BV: Array,
    seen_BV: Array | None,
    *,
    context: PromptContext,
    tokens_BN: Array,
    count: Array,
    limits_B: Array,
) -> Array:
    """Return the scores after the repetition penalty, the rules and the forced tokens.

    The first `count` columns of `tokens_BN` are written already. The order is that of
    `transformers`: a token that is forced and suppressed is suppressed.
    """
    rules, ids_1V = stop.rules, jnp.arange(scores_BV.shape[1])[None]
    if seen_BV is not None:
        scores_BV = penalize_repetitions(scores_BV, seen_BV, sampling.repetition_penalty)

    if context.prompts_BP is not None:
        history_BT = jnp.concatenate([context.prompts_BP, tokens_BN], axis=1)
        end = context.prompts_BP.shape[1] + count
        scores_BV = forbid_repeated_ngrams(scores_BV, history_BT, end, rules.no_repeat_ngram_size)
        scores_BV = forbid_completions(scores_BV, history_BT, end, rules.forbidden_sequences)
    # A text may always end: the end of text alone is no forbidden word.
    single_ids = [ids[0] for ids in rules.forbidden_sequences if len(ids) == 1]
    scores_BV = forbid_ids(scores_BV, [token for token in single_ids if token not in stop.ids])

    if stop.min_new_tokens and stop.ids:
        too_early = is_stop_token(stop, ids_1V) & (count < stop.min_new_tokens)
        scores_BV = jnp.where(too_early, -jnp.inf, scores_BV)
    forces_first_B = context.is_single_B & (stop.forced_first_id is not None)
    if stop.forced_first_id is not None:
        only_first_1V = jnp.where(ids_1V == stop.forced_first_id, 0.0, -jnp.inf)
        scores_BV = jnp.where((forces_first_B & (count == 0))[:, None], only_first_1V, scores_BV)
    if stop.forced_last_id is not None:
        only_last_1V = jnp.where(ids_1V == stop.forced_last_id, 0.0, -jnp.inf)
        scores_BV = jnp.where((count == limits_B - 1)[:, None], only_last_1V, scores_BV)

    scores_BV = forbid_ids(scores_BV, rules.suppressed_ids)
    if rules.suppressed_first_ids:
        is_first_B1 = (count == jnp.where(forces_first_B, 1, 0))[:, None]
        without_BV = forbid_ids(scores_BV, rules.suppressed_first_ids)
        scores_BV = jnp.where(is_first_B1, without_BV, scores_BV)
    return scores_BV


def is_stop_token(stop: StopTokens, tokens: Array) -> Array:
    """Return bool, in the shape of `tokens`: whether each ends its row."""
    is_stop = jnp.zeros(tokens.shape, bool)
    for stop_id in stop.ids:
        is_stop |= tokens == stop_id
    return is_stop


# --- rules of generation_config.json ---


def forbid_ids(scores_BV: Array, ids: Sequence[int]) -> Array:
    """Return the scores with -inf at `ids`; those outside of the vocabulary are left out."""
    if not ids:
        return scores_BV
    forbidden_V = np.isin(np.arange(scores_BV.shape[1]), ids)
    return jnp.where(forbidden_V[None], -jnp.inf, scores_BV)


def forbid_tokens(scores_BV: Array, tokens_BM: Array, is_forbidden_BM: Array) -> Array:
    """Return the scores with -inf at those of each row's M tokens that are forbidden."""
    rows, V = scores_BV.shape
    # An id out of range is dropped by the scatter.
    ids_BM = jnp.where(is_forbidden_BM & (tokens_BM >= 0), tokens_BM, V)
    return scores_BV.at[jnp.arange(rows)[:, None], ids_BM].set(-jnp.inf, mode="drop")


def last_tokens(history_BT: Array, end: Array, length: int) -> Array:
    """Return the `length` tokens before column `end`; NO_TOKEN where there are fewer."""
    padded_BT = jnp.pad(history_BT, ((0, 0), (length, 0)), constant_values=NO_TOKEN)
    return jax.lax.dynamic_slice_in_dim(padded_BT, end, length, axis=1)


def forbid_completions(
    scores_BV: Array, history_BT: Array, end: Array, sequences: Sequence[tuple[int, ...]]
) -> Array:
    """Return the scores with -inf where a token would complete one of the sequences.

    Sequences of a single token are left out.
    """
    long_sequences = sorted((ids for ids in sequences if len(ids) > 1), key=len)
    for length, group in groupby(long_sequences, key=len):
        sequences_SL = np.array(list(group), np.int32)
        present_B1M = last_tokens(history_BT, end, length - 1)[:, None]
        completes_BS = jnp.all(present_B1M == sequences_SL[None, :, :-1], axis=2)
        last_BS = jnp.broadcast_to(sequences_SL[None, :, -1], completes_BS.shape)
        scores_BV = forbid_tokens(scores_BV, last_BS, completes_BS)
    return scores_BV


def forbid_repeated_ngrams(scores_BV: Array, history_BT: Array, end: Array, size: int) -> Array:
    """Return the scores with -inf where a token would repeat `size` tokens in a row (0: never)."""
    starts = history_BT.shape[1] - size + 1
    if size == 0 or starts < 1:
        return scores_BV
    present_BM = last_tokens(history_BT, end, size - 1)

    def matches(place: Array, same_BS: Array) -> Array:
        earlier_BS = jax.lax.dynamic_slice_in_dim(history_BT, place, starts, axis=1)
        present_B1 = jax.lax.dynamic_slice_in_dim(present_BM, place, 1, axis=1)
        return same_BS & (earlier_BS == present_B1)

    # Windows that begin at each of the S places, and the token that followed them.
    same_BS = jnp.broadcast_to(jnp.all(present_BM >= 0, axis=1)[:, None], (len(history_BT), starts))
    if size > 1:
        same_BS = jax.lax.fori_loop(0, size - 1, matches, same_BS)
    is_written_1S = (jnp.arange(starts) + size - 1 < end)[None]
    return forbid_tokens(scores_BV, history_BT[:, size - 1 :], same_BS & is_written_1S)
