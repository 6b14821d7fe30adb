"""Texts as tokens, and their size: what the figures of an evaluation are divided by."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np

from jaxlm.config import SourceConfig
from jaxlm.data import Document, Tokenizer
from jaxlm.data.example_array import ExampleArray, ListedParts
from jaxlm.data.examples import encode_examples
from jaxlm.data.shards import TokenArray
from jaxlm.objectives import Objective

TOKENIZER_CHARACTERS = 1 << 22  # text that is tokenised at once


class HeldOutSource(NamedTuple):
    """The held-out documents of a source, in the place of a source of files."""

    name: str
    tokens: TokenArray
    tokenizer: Tokenizer
    documents: int | None = None  # the first ones only
    format: str = "text"

    def read_documents(self) -> Iterator[Document]:
        """Yield the documents, whose text their tokens give back byte for byte."""
        bounds = self.tokens.read_offsets()[: (self.documents or self.tokens.documents) + 1]
        for number, (start, end) in enumerate(pairwise(bounds.tolist())):
            ids = self.tokens.read_windows(np.array([start]), end - start)[0]
            yield Document(f"{self.name} {number}", self.tokenizer.decode(ids))


TextSource = SourceConfig | HeldOutSource


class TextSize(NamedTuple):
    """The size of a text."""

    documents: int = 0  # a pair is one
    bytes: int = 0  # of UTF-8
    words: int = 0  # between white space

    def add_document(self, *texts: str) -> "TextSize":
        """Return the size with one more document."""
        return TextSize(
            self.documents + 1,
            self.bytes + sum(len(text.encode()) for text in texts),
            self.words + sum(len(text.split()) for text in texts),
        )


class TokenizedTexts(NamedTuple):
    """Documents one after another as one row of tokens."""

    ids: np.ndarray  # int32 [n]
    ends: np.ndarray  # int64 [documents]: where each ends
    scored: np.ndarray  # bool [n]: False for tokens before a text, which are never targets
    size: TextSize

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def token_count(self) -> int:
        return len(self.ids)

    def start_count(self, objective: Objective) -> int:
        """Return the number of places where a sample can begin."""
        return max(len(self) - objective.window + 1, 0)

    def read_samples(self, starts: np.ndarray, objective: Objective) -> np.ndarray:
        """Return the samples that begin at `starts` (int64 [n]), int32 [n, window].

        After the end of the text comes 0.
        """
        columns = starts[:, None] + np.arange(objective.window)
        return np.where(
            columns < len(self), self.ids[np.minimum(columns, len(self) - 1)], 0
        ).astype(np.int32)


class TokenizedPairs(NamedTuple):
    """Source-target pairs, each text with its end_of_text."""

    rows: tuple[tuple[np.ndarray, np.ndarray], ...]
    pad: int
    end_of_text: int
    size: TextSize

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def token_count(self) -> int:
        return sum(len(source) + len(target) for source, target in self.rows)

    def start_count(self, objective: Objective) -> int:
        """Return the number of pairs: each is a sample."""
        del objective
        return len(self)

    def read_samples(self, starts: np.ndarray, objective: Objective) -> np.ndarray:
        """Return sources and targets, padded, int32 [n, S + T].

        A text that was cut to fit still ends with end_of_text.
        """
        samples = []
        for number in starts:
            source, target = self.rows[number]
            source = self.pad_or_cut(source, objective.source_length)
            samples.append(np.concatenate([source, self.pad_or_cut(target, objective.length)]))
        return np.stack(samples)

    def pad_or_cut(self, text: np.ndarray, width: int) -> np.ndarray:
        row = np.full(width, self.pad, np.int32)
        row[: len(text)] = text[:width]
        if len(text) > width:
            row[-1] = self.end_of_text
        return row


class TokenizedExamples(ExampleArray):
    """Examples in memory."""

    def __init__(self, examples: Sequence[Sequence[np.ndarray]], size: TextSize):
        super().__init__(ListedParts(examples))
        self.examples, self.size = examples, size

    @property
    def token_count(self) -> int:
        return sum(len(part) for parts in self.examples for part in parts[:-1])


def read_examples(
    documents: Iterable[Document], tokenizer: Tokenizer, most: int | None
) -> TokenizedExamples:
    """Tokenise the first `most` examples, or all."""
    read = list(islice(documents, most))
    size = TextSize()
    for document in read:
        size = size.add_document(*document.texts)
    return TokenizedExamples(encode_examples(read, tokenizer), size)


def read_texts(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    begin: Sequence[int] = (),
    end: Sequence[int] = (),
    most_documents: int | None = None,
    most_tokens: int | None = None,
) -> TokenizedTexts:
    """Tokenise documents, each between the tokens `begin` and `end`.

    Of these only `end` are targets.

    `most_tokens` cuts the text at a character, so that there are at most that many tokens; what
    follows is not read.
    """
    parts: list[np.ndarray] = []
    scored: list[np.ndarray] = []
    ends: list[int] = []
    size, count = TextSize(), 0
    before, after = np.array(begin, np.int32), np.array(end, np.int32)

    for text, ids in tokenize_texts(
        (document.texts[0] for document in islice(documents, most_documents)), tokenizer
    ):
        left = None if most_tokens is None else most_tokens - count - len(before)
        cut = left is not None and len(ids) + len(after) > left
        if left is not None and cut:
            text = longest_prefix(text, lambda part: encode_text(part, tokenizer), left)
            if not text:
                break
            ids = encode_text(text, tokenizer)

        parts += [before, ids] if cut else [before, ids, after]
        scored += [
            np.zeros(len(before), bool),
            np.ones(len(ids) + (0 if cut else len(after)), bool),
        ]
        count += len(scored[-2]) + len(scored[-1])
        ends.append(count)
        size = size.add_document(text)
        if cut:
            break

    none = np.zeros(0, np.int32)
    return TokenizedTexts(
        np.concatenate([none, *parts]),
        np.array(ends, np.int64),
        np.concatenate([none.astype(bool), *scored]),
        size,
    )


def read_pairs(
    documents: Iterable[Document], tokenizer: Tokenizer, most: int | None
) -> TokenizedPairs:
    """Tokenise the first `most` pairs, or all."""
    rows, size, closing = [], TextSize(), np.array([tokenizer.end_of_text], np.int32)
    for document in islice(documents, most):
        source, target = (
            np.concatenate([ids, closing]) for ids in tokenizer.encode_batch(document.texts)
        )
        rows.append((source, target))
        size = size.add_document(*document.texts)
    pad = tokenizer.vocabulary.pad
    assert pad is not None, "pairs need a pad token, and runs of pairs have one"
    return TokenizedPairs(tuple(rows), pad, tokenizer.end_of_text, size)


def tokenize_texts(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each text with its tokens; some megabytes are encoded at once, on all cores."""
    for group in batch_texts(texts):
        pieces = [list(tokenizer.split_text(text)) for text in group]
        ids = encode_pieces([piece for parts in pieces for piece in parts], tokenizer)
        for text, parts in zip(group, pieces, strict=True):
            yield text, np.concatenate(list(islice(ids, len(parts))))


def encode_pieces(pieces: Sequence[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Yield the ids of each piece. A long text has many, which are not all encoded at once."""
    for batch in batch_texts(pieces):
        yield from tokenizer.encode_batch(batch)


def batch_texts(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield lists of about TOKENIZER_CHARACTERS."""
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters >= TOKENIZER_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def encode_text(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Return the ids of a text, int32 [n]."""
    return np.concatenate(list(encode_pieces(list(tokenizer.split_text(text)), tokenizer)))


def longest_prefix(text: str, encode: Callable[[str], np.ndarray], tokens: int) -> str:
    """Return the longest prefix of `text` that has at most `tokens` tokens.

    Found by bisection, on the assumption that a longer prefix has no fewer tokens.
    """
    fits, high = 0, max(4 * tokens, 1)
    while high < len(text) and len(encode(text[:high])) <= tokens:
        fits, high = high, 2 * high
    high = min(high, len(text) + 1)  # the first length that is known not to fit
    while high - fits > 1:
        middle = (fits + high) // 2
        fits, high = (middle, high) if len(encode(text[:middle])) <= tokens else (fits, middle)
    return text[:fits]
