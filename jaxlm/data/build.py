"""Build a token store: measure the text, make the tokenizer, write the shards."""

import gzip
import lzma
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import DataConfig, SourceConfig, TokenizerConfig, UserError
from jaxlm.data.corpus import Corpus, new_notes, numbered_sources
from jaxlm.data.curation import count_dropped, judge_documents
from jaxlm.data.shards import TokenWriter
from jaxlm.data.split import (
    SPLITS,
    TRAIN,
    VALIDATION,
    SourceSplit,
    SplitDocument,
    SplitSize,
    find_tail_starts,
    measure_splits,
    split_documents,
    total_size,
)
from jaxlm.data.store import TOKENIZER
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.data.tokenizer_training import build_tokenizer
from jaxlm.data.vocabulary import SpecialTokens
from jaxlm.files import write_atomically
from jaxlm.progress import LINE_SECONDS, Progress

SHARD_TOKENS = 1 << 28
BATCH_CHARACTERS = 1 << 22  # text that is tokenised at once
COMPRESSED_BYTES = 16_000_000  # largest validation text that is compressed, as a yardstick


def build_store(
    folder: Path,
    data: DataConfig,
    tokenizer_config: TokenizerConfig,
    vocabulary_size: int,
    special: SpecialTokens,
    report: Callable[[str], None],
    shard_tokens: int,
) -> dict[str, Any]:
    """Write the tokenizer and the shards into `folder` and return the manifest."""
    sources = numbered_sources(data)
    corpus = Corpus(data, judge_documents(data, folder, report))

    # The first pass over the text counts it, so that an empty split is found at once.
    tail_starts = find_tail_starts(corpus)
    notes = [new_notes(data) for _ in sources]
    sizes = measure_splits(corpus, tail_starts, notes)
    for note, source in zip(notes, sources, strict=True):
        for line in note.lines(source.config.name):
            report(line)

    # Only training text reaches the tokenizer.
    tokenizer = build_tokenizer(
        tokenizer_config,
        vocabulary_size,
        special,
        training_texts(corpus, tail_starts),
        total_size(sizes, TRAIN).bytes,
        report,
    )
    write_atomically(folder / TOKENIZER, tokenizer.inner.to_str())

    # The last pass tokenises the documents into the shards of their source and split.
    dtype = np.dtype("<u2" if tokenizer.size <= 1 << 16 else "<u4")
    writers = {
        (source, split): TokenWriter(folder, f"{split}-{source}", dtype, shard_tokens)
        for source, split in sizes
    }
    validation_text = bytearray()
    text_bytes = sum(size.bytes for size in sizes.values())
    current = 0
    for piece, ids in tokenize(split_documents(corpus, tail_starts), tokenizer, text_bytes):
        # Sources come one after another: only the files of one of them are open.
        if piece.source != current:
            close_writers(writers, current)
            current = piece.source

        writer = writers[piece.source, piece.split]
        writer.add(ids)
        if piece.is_last:
            writer.end_document(tokenizer.end_of_text)
        if piece.split == VALIDATION and len(validation_text) <= COMPRESSED_BYTES:
            validation_text += (piece.text + piece.gap).encode()

    entries = {}
    for (source, split), writer in writers.items():
        text_entry = describe_text(sources[source].config, sizes[source, split])
        entries[source, split] = text_entry | writer.close()

    return {
        "dtype": dtype.name,
        "tokenizer": {
            "hash": tokenizer.hash,
            "size": tokenizer.size,
            "end_of_text": tokenizer.end_of_text,
        },
        "splits": {
            split: [entry for (_, name), entry in entries.items() if name == split]
            for split in SPLITS
        },
        "dropped": {
            source.config.name: count_dropped(corpus, number, notes[number])
            for number, source in enumerate(sources)
        },
        "validation": describe_validation(
            entries, total_size(sizes, VALIDATION), bytes(validation_text)
        ),
    }


def close_writers(writers: dict[SourceSplit, TokenWriter], source: int) -> None:
    """Close the files of a source that is complete."""
    for (number, _), writer in writers.items():
        if number == source:
            writer.close()


# Tokenizer


def training_texts(corpus: Corpus, tail_starts: tuple[int, ...] | None) -> Iterator[str]:
    """Yield the texts of the training split."""
    for document in split_documents(corpus, tail_starts):
        if document.split == TRAIN:
            yield from document.texts


# Tokens


class Piece(NamedTuple):
    """A stretch of a text that can be tokenised on its own; `is_last` ends the text."""

    source: int
    split: str
    text: str
    gap: str  # what stands between this piece and the next
    is_last: bool


def tokenize(
    documents: Iterator[SplitDocument], tokenizer: Tokenizer, text_bytes: int
) -> Iterator[tuple[Piece, np.ndarray]]:
    """Yield (piece, its ids) in order; shows the progress through `text_bytes`.

    Pieces are tokenised in batches so that all cores work.
    """
    progress = Progress(text_bytes, line_seconds=LINE_SECONDS)
    done = 0
    for batch in batch_pieces(cut_pieces(documents, tokenizer)):
        yield from zip(batch, tokenizer.encode_batch([piece.text for piece in batch]), strict=True)
        done += sum(len(piece.text.encode()) + len(piece.gap) for piece in batch)
        progress.update(done, f"tokenised {done / 1e6:,.0f} of {text_bytes / 1e6:,.0f} MB")
    progress.close()


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
                    is_last = next_start == len(text)
                    yield Piece(document.source, document.split, piece, gap, is_last)
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


# Manifest


def describe_text(source: SourceConfig, size: SplitSize) -> dict[str, Any]:
    """Return what the manifest says of a source's text. Each pair counts as two documents."""
    entry: dict[str, Any] = {"source": source.name, "bytes": size.bytes}
    if source.format == "pairs":
        entry["pairs"] = size.documents
    return entry


def describe_validation(
    entries: dict[SourceSplit, dict[str, Any]], size: SplitSize, text: bytes
) -> dict[str, Any]:
    """Return tokens and bytes of the validation split, and its size after common compressors."""
    tokens = sum(entry["tokens"] for (_, split), entry in entries.items() if split == VALIDATION)
    is_small = size.bytes <= COMPRESSED_BYTES
    return {
        "bytes": size.bytes,
        "tokens": tokens,
        "gzip_bytes": len(gzip.compress(text, 9, mtime=0)) if is_small else None,
        "xz_bytes": len(lzma.compress(text, preset=9)) if is_small else None,
    }
