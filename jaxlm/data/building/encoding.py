"""The second pass over the text: turn the documents of a unit into tokens.

A unit gives `part-N-SPLIT.bin` and `.offsets` for each of its splits, its validation text where
that is measured, and `encode-N-SPLIT.json`, which comes last: a split that has it is done.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import SourceConfig, UserError
from jaxlm.data.building.extracts import read_extract, read_sizes
from jaxlm.data.building.judging import CUT, IN_TRAIN, IN_VALIDATION, Cut
from jaxlm.data.building.token_units import has_ids, read_ids
from jaxlm.data.building.units import Unit
from jaxlm.data.building.workers import advance
from jaxlm.data.documents import EXAMPLE_FORMATS, RecordShape, record_shape
from jaxlm.data.examples import encode_examples
from jaxlm.data.shards import TokenWriter, token_dtype
from jaxlm.data.split import SPLITS, TRAIN, VALIDATION, SplitDocument
from jaxlm.data.store import TOKENIZER
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxlm.data.vocabulary import SpecialTokens
from jaxlm.files import write_atomically

BATCH_CHARACTERS = 1 << 22  # text that is tokenised at once
ENDLESS_SHARD = 1 << 62  # tokens: a part is one file


class Piece(NamedTuple):
    """A stretch of a text that can be tokenised on its own; `is_last` ends the text."""

    split: str
    text: str
    gap: str  # what stands between this piece and the next
    is_last: bool


def encoded_path(folder: Path, unit: str, split: str) -> Path:
    """Return the file that ends the second pass over a split of the unit of that name."""
    return folder / f"encode-{unit}-{split}.json"


def is_encoded(folder: Path, unit: Unit, split: str) -> bool:
    """Return whether the second pass over a split of a unit is done."""
    return encoded_path(folder, unit.name, split).exists()


def encode_unit(
    folder: Path,
    unit: Unit,
    source: SourceConfig,
    special: SpecialTokens,
    cut: Cut | None,
    splits: Sequence[str],
    keeps_validation: bool,
) -> None:
    """Write the tokens of some splits of a unit of a source."""
    tokenizer = cached_tokenizer(folder / TOKENIZER, special)
    dtype = token_dtype(tokenizer.size)
    writers = {
        split: TokenWriter(folder, f"part-{unit.name}-{split}", dtype, ENDLESS_SHARD)
        for split in splits
    }
    validation_text = bytearray()
    only = None if len(splits) == len(SPLITS) else splits[0]
    for piece, ids in read_pieces(folder, unit, source, cut, tokenizer, only):
        writer = writers[piece.split]
        writer.add(ids)
        if piece.is_last:
            writer.end_document(tokenizer.end_of_text)
        if keeps_validation and piece.split == VALIDATION:
            validation_text += (piece.text + piece.gap).encode()

    if keeps_validation and VALIDATION in splits:
        write_atomically(folder / f"part-{unit.name}.validation", bytes(validation_text))
    for split, writer in writers.items():
        path = encoded_path(folder, unit.name, split)
        write_atomically(path, json.dumps(writer.close()))


@functools.lru_cache(maxsize=1)
def cached_tokenizer(path: Path, special: SpecialTokens) -> Tokenizer:
    """Return the tokenizer of the store that is built."""
    return load_tokenizer(path, special)


def read_part_entry(folder: Path, unit: str, split: str) -> dict[str, Any]:
    """Return what the second pass over a split of a unit wrote, as `TokenWriter.close` says it."""
    return json.loads(encoded_path(folder, unit, split).read_bytes())


def read_kept(
    folder: Path,
    unit: Unit,
    shape: RecordShape,
    cut: Cut | None,
    split: str | None = None,
) -> Iterator[SplitDocument]:
    """Yield the documents of a unit that are kept (those of one `split`), in order.

    A document that is cut is two.
    """
    codes = np.fromfile(folder / f"splits-{unit.name}", np.uint8)
    wanted = choose_kept(codes, split)
    sizes = read_sizes(folder, unit.name, shape.strings)
    for number, (name, *strings) in read_extract(folder, unit.name, sizes, wanted):
        if codes[number] != CUT:
            where = TRAIN if codes[number] == IN_TRAIN else VALIDATION
            facts = strings[-1] if shape.has_facts else None
            yield SplitDocument(name, where, tuple(strings[: shape.texts]), facts)
            continue

        assert cut is not None
        text = strings[0].encode()
        if split != VALIDATION:
            yield SplitDocument(name, TRAIN, (text[: cut.byte].decode(),))
        if split != TRAIN:
            yield SplitDocument(name, VALIDATION, (text[cut.byte :].decode(),))


def choose_kept(codes: np.ndarray, split: str | None) -> np.ndarray:
    """Return which documents are kept, and have text in a split where one is named; bool [n]."""
    if split is None:
        return np.isin(codes, (IN_TRAIN, IN_VALIDATION, CUT))
    return np.isin(codes, (IN_TRAIN if split == TRAIN else IN_VALIDATION, CUT))


def read_pieces(
    folder: Path,
    unit: Unit,
    source: SourceConfig,
    cut: Cut | None,
    tokenizer: Tokenizer,
    split: str | None,
) -> Iterator[tuple[Piece, np.ndarray]]:
    """Yield (piece, its ids) of the documents of a unit that are kept, in order."""
    documents = read_kept(folder, unit, record_shape(source), cut, split)
    if source.format in EXAMPLE_FORMATS:
        yield from tokenize_examples(documents, tokenizer)
        return
    if not has_ids(folder, unit.name):
        yield from tokenize(documents, tokenizer)
        return
    for document, ids in zip(documents, read_kept_ids(folder, unit, cut, split), strict=True):
        (text,) = document.texts
        yield Piece(document.split, text, "", is_last=True), ids
        advance(len(text.encode()))


def read_kept_ids(
    folder: Path, unit: Unit, cut: Cut | None, split: str | None
) -> Iterator[np.ndarray]:
    """Yield the ids of the documents that `read_kept` yields, of a unit of tokens."""
    codes = np.fromfile(folder / f"splits-{unit.name}", np.uint8)
    numbers = np.flatnonzero(choose_kept(codes, split)).tolist()
    for number, ids in zip(numbers, read_ids(folder, unit.name, numbers), strict=True):
        if codes[number] != CUT:
            yield ids
            continue
        assert cut is not None
        if split != VALIDATION:
            yield ids[: cut.token]
        if split != TRAIN:
            yield ids[cut.token :]


def tokenize(
    documents: Iterator[SplitDocument], tokenizer: Tokenizer
) -> Iterator[tuple[Piece, np.ndarray]]:
    """Yield (piece, its ids) in order. Pieces are tokenised in batches."""
    for batch in batch_pieces(cut_pieces(documents, tokenizer)):
        yield from zip(batch, tokenizer.encode_batch([piece.text for piece in batch]), strict=True)
        advance(sum(len(piece.text.encode()) + len(piece.gap) for piece in batch))


def tokenize_examples(
    documents: Iterator[SplitDocument], tokenizer: Tokenizer
) -> Iterator[tuple[Piece, np.ndarray]]:
    """Yield (piece, its ids) for each part of the examples, in order."""
    for batch in batch_documents(documents):
        for document, parts in zip(batch, encode_examples(batch, tokenizer), strict=True):
            texts = [*document.texts, *[""] * (len(parts) - len(document.texts))]
            for text, ids in zip(texts, parts, strict=True):
                yield Piece(document.split, text, "", is_last=True), ids
        advance(sum(len(text.encode()) for document in batch for text in document.texts))


def batch_documents(documents: Iterator[SplitDocument]) -> Iterator[list[SplitDocument]]:
    """Yield lists of documents of about BATCH_CHARACTERS."""
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += sum(map(len, document.texts))
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def cut_pieces(documents: Iterator[SplitDocument], tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield the texts of the documents, long ones in several pieces.

    Raises UserError, naming the document, where a text is too long for the tokenizer.
    """
    for document in documents:
        for text in document.texts:
            places = chain(tokenizer.find_pieces(text), [(len(text), len(text))])
            try:
                for (start, end), (next_start, _) in pairwise(places):
                    piece, gap = text[start:end], text[end:next_start]
                    yield Piece(document.split, piece, gap, is_last=next_start == len(text))
            except UserError as error:
                raise UserError(f"{document.name}: {error}") from error


def batch_pieces(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Yield lists of about BATCH_CHARACTERS."""
    batch, characters = [], 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
