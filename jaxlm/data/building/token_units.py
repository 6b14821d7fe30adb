"""Units of files of tokens: their ids pass the building unchanged, beside their text.

The text of a document, by which it is judged, is what its ids decode to. The first pass writes two
more files for such a unit, and the second one puts these ids into the store:

extract-N.ids            uint16 or uint32, of the documents that passed the rules
extract-N.lengths        int64 [documents]
"""

import functools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from jaxlm.config import SourceConfig, TokenizerConfig, UserError
from jaxlm.data.documents import Document, FilePart
from jaxlm.data.listing import base_folder
from jaxlm.data.readers.token_documents import TokenDocument, read_token_documents
from jaxlm.data.readers.token_files import TokenFile, open_token_file
from jaxlm.data.reading_notes import ReadingNotes
from jaxlm.data.shards import token_dtype
from jaxlm.data.store import TOKENIZER
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxlm.data.vocabulary import BYTES, REPLACEMENT, SpecialTokens
from jaxlm.files import expand_home, sync, write_atomically

DECODED_TOKENS = 1 << 18  # at once
LONGEST_CHARACTER = 8  # tokens over which a character may reach


# Text


class TokenDecoder:
    """Decode ids, all of which the tokenizer has, faster than its library where that is possible.

    The result is that of the library, except for bytes that are no UTF-8 where a document of more
    than DECODED_TOKENS is cut.
    """

    def __init__(self, inner: tokenizers.Tokenizer):
        self.inner = inner
        self.table = byte_table(inner)

    def decode(self, ids: np.ndarray) -> str:
        """Return the text of ids, without special tokens."""
        return "".join(text for _, _, text in self.decode_pieces(ids))

    def decode_pieces(self, ids: np.ndarray) -> Iterator[tuple[int, int, str]]:
        """Yield (start, end, text) of stretches of ids, in bounded memory beside the text."""
        start = 0
        while start < len(ids):
            end = min(start + DECODED_TOKENS, len(ids))
            text = self.decode_stretch(ids, start, end)
            # A character that reaches over the end belongs to the next piece.
            whole = end
            while end < len(ids) and text.endswith(REPLACEMENT) and whole - end < LONGEST_CHARACTER:
                end -= 1
                text = self.decode_stretch(ids, start, end)
            yield start, end, text
            start = end

    def decode_stretch(self, ids: np.ndarray, start: int, end: int) -> str:
        """Return the text of ids[start:end] as a part of the text of all."""
        # Some decoders drop the space before their first word, so a whole character comes first.
        for context in range(1, min(start, LONGEST_CHARACTER) + 1):
            before = self.decode_ids(ids[start - context : start])
            if before and REPLACEMENT not in before:
                both = self.decode_ids(ids[start - context : end])
                if both.startswith(before):
                    return both[len(before) :]
        return self.decode_ids(ids[start:end])

    def decode_ids(self, ids: np.ndarray) -> str:
        """Return the text of a few ids."""
        if self.table is not None:
            return b"".join(map(self.table.__getitem__, ids.tolist())).decode(errors="replace")
        return self.inner.decode(ids.tolist(), skip_special_tokens=True)

    def find_cut(self, ids: np.ndarray, byte: int) -> tuple[int, int]:
        """Return the last place before a byte of the text where it can be cut: (token, byte)."""
        before = 0
        for start, end, text in self.decode_pieces(ids):
            size = len(text.encode())
            if before + size <= byte:
                before += size
                continue

            def text_size(count: int, start: int = start) -> int:
                return len(self.decode_stretch(ids, start, start + count).encode())

            count = bisect_right(range(end - start), byte - before, key=text_size) - 1
            # The first part of a character decodes to another one.
            while not text.startswith(self.decode_stretch(ids, start, start + count)):
                count -= 1
            return start + count, before + text_size(count)
        return len(ids), before


def byte_table(inner: tokenizers.Tokenizer) -> list[bytes] | None:
    """Return the bytes of each id of a byte-level tokenizer (GPT-2, Llama 3); None for others."""
    decoder = inner.decoder
    if type(decoder).__name__ != "ByteLevel":
        return None
    added = inner.get_added_tokens_decoder()
    tokens = inner.get_vocab(with_added_tokens=True)
    table = [b""] * (max(tokens.values()) + 1)
    for token, number in tokens.items():
        if number in added and added[number].special:
            continue
        characters = [BYTES.get(character) for character in token]
        if None in characters:  # a token that was added, spelled as it is
            table[number] = token.encode()
        else:
            table[number] = bytes(byte for byte in characters if byte is not None)
    return table


# The first pass


def place_tokenizer(folder: Path, config: TokenizerConfig, special: SpecialTokens) -> None:
    """Write the tokenizer of a store before the first pass, which decodes with it."""
    path = folder / TOKENIZER
    if not path.exists():
        assert config.path is not None, "the config says so of sources of tokens"
        tokenizer = load_tokenizer(expand_home(config.path), special)
        write_atomically(path, tokenizer.inner.to_str())


class Decoding(NamedTuple):
    """The tokenizer of a store, and what decodes with it."""

    tokenizer: Tokenizer
    decoder: TokenDecoder


@functools.lru_cache(maxsize=1)
def load_decoding(path: Path, special: SpecialTokens) -> Decoding:
    """Return the tokenizer of the store that is built."""
    tokenizer = load_tokenizer(path, special)
    return Decoding(tokenizer, TokenDecoder(tokenizer.inner))


@functools.lru_cache(maxsize=1)
def load_decoder(path: Path) -> TokenDecoder:
    """Return what decodes with the tokenizer of the store that is built."""
    return TokenDecoder(tokenizers.Tokenizer.from_file(str(path)))


def read_token_parts(
    folder: Path,
    parts: Sequence[FilePart],
    source: SourceConfig,
    special: SpecialTokens,
    notes: ReadingNotes,
) -> Iterator[Document]:
    """Yield the documents of some of a source's files of tokens, with their ids.

    Those without text are skipped. Raises `UserError` as `read_documents` does.
    """
    decoding = load_decoding(folder / TOKENIZER, special)
    documents = (
        document
        for part in parts
        for document in read_token_part(part, source, decoding, notes)
        if document.text
    )
    yield from islice(documents, source.documents)


def read_token_part(
    part: FilePart, source: SourceConfig, decoding: Decoding, notes: ReadingNotes
) -> Iterator[Document]:
    """Yield the documents of a part of a file, named by the token at which they begin."""
    tokenizer, decoder = decoding
    try:
        file = open_token_file(part.path, tokenizer.size)
    except UserError as fault:
        if part.start == 0:  # each part of the file has the same one
            notes.add_fault(fault)
        return

    notes.add_tokens(part.path, file.description)
    name = part.path.relative_to(base_folder(source)).as_posix()
    dtype = token_dtype(tokenizer.size)
    try:
        for document in read_token_documents(file, part, tokenizer.end_of_text):
            if document.is_unbounded:
                notes.add_tokens(part.path, "no end of text in it, so it is one document")
            fault = find_fault(file, document, tokenizer.size)
            if fault is not None:
                notes.add_fault(fault)
                continue
            ids = document.ids.astype(dtype)
            yield Document(f"{name}:{document.first}", decoder.decode(ids), ids=ids)
    except UserError as fault:
        notes.add_fault(fault)


def find_fault(file: TokenFile, document: TokenDocument, size: int) -> UserError | None:
    """Return the error of the first id that the tokenizer doesn't have, or None."""
    ids = document.ids
    if int(ids.min()) >= 0 and int(ids.max()) < size:
        return None
    place = int(np.flatnonzero((ids < 0) | (ids >= size))[0])
    return UserError(
        f"{file.path}: token {document.first + place:,} is {int(ids[place]):,}, and the tokenizer "
        f"has {size:,} ids (read as {file.description}): name the tokenizer that wrote the file"
    )


# The ids of a unit


class IdWriter:
    """Write the ids of the documents of a unit."""

    def __init__(self, folder: Path, unit: str):
        self.lengths_path = folder / f"extract-{unit}.lengths"
        self.file = (folder / f"extract-{unit}.ids").open("wb")
        self.lengths: list[int] = []

    def add(self, ids: np.ndarray) -> None:
        """Append the ids of a document."""
        self.file.write(ids.tobytes())
        self.lengths.append(len(ids))

    def close(self) -> None:
        """Have all of it on the disk."""
        sync(self.file)
        self.file.close()
        with self.lengths_path.open("wb") as file:
            file.write(np.array(self.lengths, "<i8").tobytes())
            sync(file)


def has_ids(folder: Path, unit: str) -> bool:
    """Return whether a unit is one of tokens."""
    return (folder / f"extract-{unit}.lengths").exists()


def read_ids(folder: Path, unit: str, documents: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the ids of some documents of a unit, by their numbers."""
    ends = np.cumsum(np.fromfile(folder / f"extract-{unit}.lengths", "<i8"))
    if not len(ends):
        return
    path = folder / f"extract-{unit}.ids"
    dtype = np.dtype(f"<u{path.stat().st_size // int(ends[-1])}")
    with path.open("rb") as file:
        for document in documents:
            start = int(ends[document - 1]) if document else 0
            file.seek(start * dtype.itemsize)
            size = (int(ends[document]) - start) * dtype.itemsize
            yield np.frombuffer(file.read(size), dtype)


def find_token_cut(folder: Path, unit: str, document: int, byte: int) -> tuple[int, int]:
    """Return where a document can be cut at or before a byte of its text: (token, byte)."""
    (ids,) = read_ids(folder, unit, [document])
    return load_decoder(folder / TOKENIZER).find_cut(ids, byte)
