"""Show what a trained model writes: continuations, filled masks, or generated targets as texts."""

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import groupby

import jax
import numpy as np

from jaxlm import config
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.decoding.constraints import StopTokens
from jaxlm.decoding.engine import Engine
from jaxlm.decoding.fill_mask import MaskFiller
from jaxlm.decoding.generation import drop_stop_token
from jaxlm.decoding.prompts import split_at_sentinels
from jaxlm.decoding.sampling import SamplingConfig
from jaxlm.models import Model
from jaxlm.types import Batch, Tree


def samples(
    model: Model,
    params: Tree,
    tokenizer: Tokenizer,
    evaluation: config.EvaluationConfig,
    window: int,
    windows: Sequence[Batch],
    seed: int,
) -> list[str]:
    """Return `evaluation.samples` texts; the same seed gives the same texts.

    A decoder continues `evaluation.sample_prompt`. An encoder fills the hidden positions of the
    first rows of `windows`, the batches of the evaluation. An encoder-decoder writes their
    targets. `window` is the number of tokens that training reads at once. `params` may be split
    over the devices of several processes; then every process calls this and gets the same texts.
    """
    if model.config.family == "decoder":
        return continue_sample_prompt(model, params, tokenizer, evaluation, window, seed)

    batch = jax.tree.map(lambda rows: np.asarray(rows)[: evaluation.samples], windows[0])
    if model.config.family == "encoder":
        return describe_filled_masks(
            tokenizer, batch, guess_masked(model.generator or model, params, batch)
        )
    written = write_targets(model, params, batch, tokenizer.end_of_text)
    return describe_written_targets(tokenizer, batch, written)


# --- decoders ---


def continue_sample_prompt(
    model: Model,
    params: Tree,
    tokenizer: Tokenizer,
    evaluation: config.EvaluationConfig,
    window: int,
    seed: int,
) -> list[str]:
    """Return `evaluation.sample_prompt` with continuations up to the end of text."""
    ids = tokenizer.encode(evaluation.sample_prompt)
    prompt = np.concatenate([[tokenizer.end_of_text], ids]).astype(np.int32)
    rows = continue_beyond_window(
        Engine(model, params, StopTokens((tokenizer.end_of_text,))),
        prompt,
        count=evaluation.samples,
        new_tokens=evaluation.sample_tokens,
        window=window,
        sampling=SamplingConfig(temperature=evaluation.sample_temperature),
        seed=seed,
    )
    return [
        evaluation.sample_prompt + tokenizer.decode(drop_stop_token(row, (tokenizer.end_of_text,)))
        for row in rows
    ]


def continue_beyond_window(
    engine: Engine,
    prompt: np.ndarray,
    *,
    count: int,
    new_tokens: int,
    window: int,
    sampling: SamplingConfig,
    seed: int,
) -> list[np.ndarray]:
    """Return `count` continuations of at most `new_tokens` token ids.

    The model reads at most `window` tokens at once. When a text outgrows the window, its last
    `window` // 2 tokens are read again as the start of a new one.
    """
    rows = [prompt] * count
    open_rows = np.ones(count, bool)
    length, part = len(prompt), 0  # tokens of the open rows; parts written

    while open_rows.any() and length < len(prompt) + new_tokens:
        context = length if length <= window else max(window // 2, 1)
        # The last new token is not read.
        limit = min(window - context + 1, len(prompt) + new_tokens - length)
        new = engine.generate(
            [row[-context:] for row in rows],
            np.where(open_rows, limit, 0),
            sampling,
            rows=part * count + np.arange(count),  # other random numbers in each part
            seed=seed,
        )
        rows = [np.concatenate(pair) for pair in zip(rows, new, strict=True)]
        open_rows &= [row[-1] not in engine.stop.ids for row in rows]
        length += limit
        part += 1
    return [row[len(prompt) :] for row in rows]


# --- encoders ---


def guess_masked(model: Model, params: Tree, batch: Batch) -> list[np.ndarray]:
    """Return the likeliest tokens at the positions of `batch.predict` that count, for each row."""
    assert batch.predict is not None and batch.weights is not None
    rows = real_rows(batch.tokens, batch.lengths)
    positions = [
        predict[weights > 0] for predict, weights in zip(batch.predict, batch.weights, strict=True)
    ]
    filler = MaskFiller(model, params, top=1, batch_size=len(rows))
    return [
        np.array([candidate.ids[0] for candidate in candidates], np.int32)
        for candidates in filler(rows, positions)
    ]


def describe_filled_masks(
    tokenizer: Tokenizer, batch: Batch, guesses: Sequence[np.ndarray]
) -> list[str]:
    """Return each text with the guesses at the hidden positions, and how many are right.

    A right guess is shown as «guess», a wrong one as «guess|target».
    """
    assert batch.predict is not None and batch.targets is not None and batch.weights is not None
    texts = []
    for row, row_guesses in enumerate(guesses):
        counts = batch.weights[row] > 0
        positions = batch.predict[row][counts].tolist()
        targets = batch.targets[row][counts].tolist()

        marks, right = {}, 0
        for position, guess, target in zip(positions, row_guesses.tolist(), targets, strict=True):
            marks[position] = tokenizer.show([guess])
            if guess == target:
                right += 1
            else:
                marks[position] += f"|{tokenizer.show([target])}"
        text = mark_positions(tokenizer, batch.tokens[row], marks)
        texts.append(f"{text}\n({right} of {len(marks)} right)")
    return texts


def mark_positions(tokenizer: Tokenizer, ids: np.ndarray, marks: dict[int, str]) -> str:
    """Return the text of `ids` with «marks» at some positions instead of the tokens there."""
    # Tokens between marks are shown together: a character may take several of them.
    runs = groupby(range(len(ids)), key=lambda position: position if position in marks else None)
    parts = []
    for marked, positions in runs:
        if marked is None:
            parts.append(tokenizer.show(ids[list(positions)]))
        else:
            parts.append(f"«{marks[marked]}»")
    return "".join(parts)


# --- encoder-decoders ---


def write_targets(model: Model, params: Tree, batch: Batch, end_of_text: int) -> list[np.ndarray]:
    """Return the likeliest tokens for each row of `batch.source`, up to the end of text.

    `batch.tokens` [B, L] gives the most tokens, L, and in its first column the token that the
    decoder starts with.
    """
    assert batch.source is not None
    count, length = batch.tokens.shape
    engine = Engine(model, params, StopTokens((end_of_text,)))
    rows = engine.generate(
        list(batch.tokens[:, :1]),
        [length] * count,
        sources=real_rows(batch.source, batch.source_lengths),
    )
    return [drop_stop_token(row, (end_of_text,)) for row in rows]


def describe_written_targets(
    tokenizer: Tokenizer, batch: Batch, written: Sequence[np.ndarray]
) -> list[str]:
    """Return source, generated text and target of each row.

    If the source has gaps, a line follows that shows it with «the text for each gap» in its place.
    """
    assert batch.source is not None and batch.targets is not None and batch.weights is not None
    vocabulary = tokenizer.vocabulary
    lengths = np.sum(batch.weights, axis=1).astype(int)
    sources = real_rows(batch.source, batch.source_lengths)

    texts = []
    for row, (source, ids) in enumerate(zip(sources, written, strict=True)):
        target = batch.targets[row][: lengths[row]]
        lines = [
            f"source: {tokenizer.show(source)}",
            f"written: {tokenizer.show(ids)}",
            f"target: {tokenizer.show(target)}",
        ]

        if spans := split_at_sentinels(ids, vocabulary.sentinels):
            marks = {}
            for position, token in enumerate(source.tolist()):
                if token in spans:
                    marks[position] = tokenizer.show(spans[token])
            lines.append(f"filled: {mark_positions(tokenizer, source, marks)}")
        elif vocabulary.mask in source:
            kept = source[source != vocabulary.mask].tolist()
            lines.append(f"filled: {mark_added(tokenizer, kept, ids.tolist())}")
        texts.append("\n".join(lines))
    return texts


def mark_added(tokenizer: Tokenizer, kept: list[int], written: list[int]) -> str:
    """Return the written text with «marks» around what the `kept` tokens lack."""
    parts, place = [], 0
    for block in SequenceMatcher(None, kept, written, autojunk=False).get_matching_blocks():
        new, old = written[place : block.b], written[block.b : block.b + block.size]
        parts += [f"«{tokenizer.show(new)}»" if new else "", tokenizer.show(old)]
        place = block.b + block.size
    return "".join(parts)


def real_rows(tokens: np.ndarray, lengths: np.ndarray | None) -> list[np.ndarray]:
    """Return the rows of `tokens` without their padding; `lengths` None: there is none."""
    if lengths is None:
        return list(tokens)
    return [row[:length] for row, length in zip(tokens, lengths, strict=True)]
