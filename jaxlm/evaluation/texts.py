"""Texts as tokens, and how much text they are: what the figures of an evaluation are divided by."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxlm.objectives import Objective

BATCH_CHARACTERS = 1 << 22  # text that is tokenised at once


class Document(Protocol):
    """What is needed of one."""

    @property
    def texts(self) -> tuple[str, ...]: ...


class Tokenizer(Protocol):
    """What is needed of one."""

    end_of_text: int
    vocabulary: Any  # objectives.Vocabulary

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]: ...

    def split_text(self, text: str) -> Iterator[str]: ...


class Size(NamedTuple):
    """How much text."""

    documents: int = 0  # a pair is one
    bytes: int = 0  # of UTF-8
    words: int = 0  # between white space

    def plus(self, *texts: str) -> "Size":
        """With one document more."""
        return Size(
            self.documents + 1,
            self.bytes + sum(len(text.encode()) for text in texts),
            self.words + sum(len(text.split()) for text in texts),
        )


class Tokens(NamedTuple):
    """Documents one after another as one row of tokens."""

    ids: np.ndarray  # int32 [n]
    ends: np.ndarray  # int64 [documents]: where each ends
    scored: np.ndarray  # bool [n]: False for tokens that stand before a text and are never targets
    size: Size

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def token_count(self) -> int:
        return len(self.ids)

    def start_count(self, objective: Objective) -> int:
        """Where a sample can begin."""
        return max(len(self) - objective.window + 1, 0)

    def read_samples(self, starts: np.ndarray, objective: Objective) -> np.ndarray:
        """int32 [n, window]: the samples that begin at `starts` (int64 [n]); behind the end of the text is 0."""
        columns = starts[:, None] + np.arange(objective.window)
        return np.where(
            columns < len(self), self.ids[np.minimum(columns, len(self) - 1)], 0
        ).astype(np.int32)


class Pairs(NamedTuple):
    """Source-target pairs, each text with its end_of_text."""

    rows: tuple[tuple[np.ndarray, np.ndarray], ...]
    pad: int
    end_of_text: int
    size: Size

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def token_count(self) -> int:
        return sum(len(source) + len(target) for source, target in self.rows)

    def start_count(self, objective: Objective) -> int:
        """A sample is a pair."""
        del objective
        return len(self)

    def read_samples(self, starts: np.ndarray, objective: Objective) -> np.ndarray:
        """int32 [n, S + T]: sources and targets, padded; one that was cut to fit still ends with end_of_text."""
        widths = (objective.source_length, objective.length)
        return np.stack(
            [
                np.concatenate(
                    [
                        self.fitted(text, width)
                        for text, width in zip(self.rows[n], widths, strict=True)
                    ]
                )
                for n in starts
            ]
        )

    def fitted(self, text: np.ndarray, width: int) -> np.ndarray:
        row = np.full(width, self.pad, np.int32)
        row[: len(text)] = text[:width]
        if len(text) > width:
            row[-1] = self.end_of_text
        return row


def read(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    begin: Sequence[int] = (),
    end: Sequence[int] = (),
    most_documents: int | None = None,
    most_tokens: int | None = None,
) -> Tokens:
    """The documents, each between the tokens `begin` and `end`; of these only `end` are targets.

    With `most_tokens` the text is cut behind a character, so that there are at most so many tokens, and what is behind is not read.
    """
    parts: list[np.ndarray] = []
    scored: list[np.ndarray] = []
    ends: list[int] = []
    size, count = Size(), 0
    before, behind = np.array(begin, np.int32), np.array(end, np.int32)
    for text, ids in tokenised(
        (document.texts[0] for document in islice(documents, most_documents)), tokenizer
    ):
        left = None if most_tokens is None else most_tokens - count - len(before)
        cut = left is not None and len(ids) + len(behind) > left
        if left is not None and cut:
            text = longest(text, lambda part: encoded(part, tokenizer), left)
            if not text:
                break
            ids = encoded(text, tokenizer)
        parts += [before, ids] if cut else [before, ids, behind]
        scored += [
            np.zeros(len(before), bool),
            np.ones(len(ids) + (0 if cut else len(behind)), bool),
        ]
        count += len(scored[-2]) + len(scored[-1])
        ends.append(count)
        size = size.plus(text)
        if cut:
            break
    none = np.zeros(0, np.int32)
    return Tokens(
        np.concatenate([none, *parts]),
        np.array(ends, np.int64),
        np.concatenate([none.astype(bool), *scored]),
        size,
    )


def read_pairs(documents: Iterable[Document], tokenizer: Tokenizer, most: int | None) -> Pairs:
    """The first `most` pairs, or all."""
    rows, size, closing = [], Size(), np.array([tokenizer.end_of_text], np.int32)
    for document in islice(documents, most):
        source, target = (
            np.concatenate([ids, closing]) for ids in tokenizer.encode_batch(document.texts)
        )
        rows.append((source, target))
        size = size.plus(*document.texts)
    return Pairs(tuple(rows), tokenizer.vocabulary.pad, tokenizer.end_of_text, size)


def tokenised(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    """Each text with its tokens; some megabytes are encoded at once, on all cores."""
    for group in grouped(texts):
        pieces = [list(tokenizer.split_text(text)) for text in group]
        found = iter(tokenizer.encode_batch([piece for parts in pieces for piece in parts]))
        for text, parts in zip(group, pieces, strict=True):
            yield text, np.concatenate(list(islice(found, len(parts))))


def grouped(texts: Iterable[str]) -> Iterator[list[str]]:
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def encoded(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """int32 [n]."""
    return np.concatenate(tokenizer.encode_batch(list(tokenizer.split_text(text))))


def longest(text: str, encode: Callable[[str], np.ndarray], tokens: int) -> str:
    """The longest beginning of `text` that is at most `tokens` long, as far as its tokens grow with it."""
    fits, high = 0, max(4 * tokens, 1)
    while high < len(text) and len(encode(text[:high])) <= tokens:
        fits, high = high, 2 * high
    high = min(high, len(text) + 1)  # the first length that is known not to fit
    while high - fits > 1:
        middle = (fits + high) // 2
        fits, high = (middle, high) if len(encode(text[:middle])) <= tokens else (fits, middle)
    return text[:fits]
