"""Samples of a trained model as texts to be read: what it writes, or how it fills what was hidden."""

from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any, Protocol

import jax
import numpy as np

from jaxlm import config
from jaxlm.decoding.fill import fill, write
from jaxlm.decoding.sample import sample
from jaxlm.models import Model
from jaxlm.types import Batch, Tree


class Tokenizer(Protocol):
    """What is needed of one."""

    end_of_text: int
    vocabulary: Any  # objectives.Vocabulary

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, ids: Any) -> str: ...

    def show(self, ids: Any) -> str: ...


def samples(
    model: Model,
    params: Tree,
    tokenizer: Tokenizer,
    evaluation: config.EvaluationConfig,
    window: int,
    windows: Sequence[Batch],
    seed: int,
) -> list[str]:
    """`evaluation.samples` texts; `windows` are the batches of the evaluation, whose first rows are filled."""
    if model.config.family == "decoder":
        return continuations(model, params, tokenizer, evaluation, window, seed)
    batch = jax.tree.map(lambda rows: rows[: evaluation.samples], windows[0])
    return FILLED[model.config.family](model, params, tokenizer, batch)


def continuations(
    model: Model,
    params: Tree,
    tokenizer: Tokenizer,
    evaluation: config.EvaluationConfig,
    window: int,
    seed: int,
) -> list[str]:
    """The prompt and what follows, up to the end of the text."""
    prompt = np.concatenate(
        [[tokenizer.end_of_text], tokenizer.encode(evaluation.sample_prompt)]
    ).astype(np.int32)
    ids = sample(
        model,
        params,
        prompt,
        evaluation.samples,
        evaluation.sample_tokens,
        window,
        evaluation.sample_temperature,
        seed,
    )
    texts = []
    for row in ids:
        end = np.flatnonzero(row == tokenizer.end_of_text)
        texts.append(
            evaluation.sample_prompt + tokenizer.decode(row[: end[0]] if len(end) else row)
        )
    return texts


def filled_masks(model: Model, params: Tree, tokenizer: Tokenizer, batch: Batch) -> list[str]:
    """Each text with what the encoder puts at the chosen positions: «this», or «this|that» where the text has that."""
    assert batch.predict is not None and batch.targets is not None and batch.weights is not None
    found = fill(model, params, batch)
    texts = []
    for row in range(len(found)):
        chosen = np.flatnonzero(batch.weights[row])
        places, guesses, targets = (
            values[row][chosen].tolist() for values in (batch.predict, found, batch.targets)
        )
        marks = {
            place: tokenizer.show([guess])
            + ("" if guess == target else f"|{tokenizer.show([target])}")
            for place, guess, target in zip(places, guesses, targets, strict=True)
        }
        right = sum(guess == target for guess, target in zip(guesses, targets, strict=True))
        texts.append(
            f"{marked(tokenizer, batch.tokens[row], marks)}\n({right} of {len(marks)} right)"
        )
    return texts


def marked(tokenizer: Tokenizer, ids: np.ndarray, marks: dict[int, str]) -> str:
    """The text of `ids` with «marks» at some positions instead of the tokens there."""
    runs = groupby(range(len(ids)), key=lambda position: position if position in marks else None)
    return "".join(
        tokenizer.show(ids[list(run)]) if place is None else f"«{marks[place]}»"
        for place, run in runs
    )


def written_targets(model: Model, params: Tree, tokenizer: Tokenizer, batch: Batch) -> list[str]:
    """Source, what the encoder-decoder writes for it, and the target; with «what fills a gap» where the source has gaps."""
    assert batch.source is not None and batch.targets is not None and batch.weights is not None
    vocabulary = tokenizer.vocabulary
    written, lengths = write(model, params, batch), np.sum(batch.weights, axis=1).astype(int)
    sources = (
        [len(source) for source in batch.source]
        if batch.source_lengths is None
        else batch.source_lengths
    )
    texts = []
    for row, (length, size) in enumerate(zip(lengths, sources, strict=True)):
        source, ids = batch.source[row][:size], until_end(written[row], tokenizer.end_of_text)
        lines = {"source": source, "written": ids, "target": batch.targets[row][:length]}
        shown = [f"{name}: {tokenizer.show(tokens)}" for name, tokens in lines.items()]
        if spans := split_at(ids, vocabulary.sentinels):
            marks = {
                place: tokenizer.show(spans[token])
                for place, token in enumerate(source.tolist())
                if token in spans
            }
            shown.append(f"filled: {marked(tokenizer, source, marks)}")
        elif vocabulary.mask in source:
            shown.append(
                f"filled: {added(tokenizer, source[source != vocabulary.mask].tolist(), ids.tolist())}"
            )
        texts.append("\n".join(shown))
    return texts


def added(tokenizer: Tokenizer, kept: list[int], written: list[int]) -> str:
    """The written text with «marks» around what is not of the text that was `kept`."""
    pieces, place = [], 0
    for block in SequenceMatcher(None, kept, written, autojunk=False).get_matching_blocks():
        new, old = written[place : block.b], written[block.b : block.b + block.size]
        pieces += [f"«{tokenizer.show(new)}»" if new else "", tokenizer.show(old)]
        place = block.b + block.size
    return "".join(pieces)


def until_end(ids: np.ndarray, end: int) -> np.ndarray:
    ends = np.flatnonzero(ids == end)
    return ids[: ends[0]] if len(ends) else ids


def split_at(ids: np.ndarray, sentinels: np.ndarray) -> dict[int, np.ndarray]:
    """What follows each sentinel, by the sentinel."""
    places = np.flatnonzero(np.isin(ids, sentinels))
    return {
        int(ids[place]): part[1:]
        for place, part in zip(places, np.split(ids, places)[1:], strict=True)
    }


FILLED: dict[str, Callable[[Model, Tree, Tokenizer, Batch], list[str]]] = {
    "encoder": filled_masks,
    "encoder_decoder": written_targets,
}
