"""Read files of tokens that other frameworks wrote: nanoGPT, llm.c, Megatron-LM, OLMo, NumPy.

raw        nanoGPT (data/openwebtext/prepare.py), OLMo and dolma, whose .npy have no header: the ids
           as little-endian uint16, or uint32 where the tokenizer has more than 65,536
llm.c      dev/data/data_common.py: 256 int32 (magic, version, number of tokens), then the ids
Megatron   core/datasets/indexed_dataset.py: the ids in a .bin, the documents in the .idx beside it
NumPy      a .npy file with its header: an array of integers with one axis

A file is told by its content.
"""

import contextlib
import io
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxlm.config import UserError
from jaxlm.data.formats import describe_binary, find_mark
from jaxlm.data.readers.streams import describe, find_compression
from jaxlm.data.remote_files import RemoteError, RemoteFile, SourceFile, remote_errors

HEAD_BYTES = 1 << 16  # that tell what a file is
FEWEST_TO_TELL = 64  # tokens from which on uint32 is told from uint16, and text from tokens
UINT16_IDS = 1 << 16

INDEX_MAGIC = b"MMIDIDX\0\0"
INDEX_VERSION = 1
INDEX_HEADER = struct.Struct("<9sQBQQ")  # magic, version, type, sequences, document bounds
INDEX_TYPES = {1: "|u1", 2: "|i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
INDEX_NAMES = ("_document.bin", "_sentence.bin")  # how Megatron's preprocess_data calls its files

NUMPY_MAGIC = b"\x93NUMPY"
LLMC_HEADER_BYTES = 1024
LLMC_FORMATS = {20240520: (1, "<u2"), 20240801: (7, "<u4")}  # magic -> version, type
LLMC_EVALUATION = 20240522

CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


class Index(NamedTuple):
    """The .idx of a Megatron file."""

    code: int  # of the type of the ids
    lengths: np.ndarray  # tokens of each sequence
    pointers: np.ndarray  # the byte at which it begins
    documents: np.ndarray  # the first sequence of each document and, last, their number


class TokenFile(NamedTuple):
    """A file whose tokens can be read: their place in it, and their type."""

    path: SourceFile
    layout: str  # "raw", "llm.c", "Megatron", "NumPy"
    dtype: np.dtype
    start: int  # byte of the first token
    count: int  # tokens
    index: Index | None = None

    @property
    def description(self) -> str:
        """The kind of the file, for messages."""
        return f"{self.layout} tokens, {self.dtype.name}"

    def token_at(self, byte: int) -> int:
        """Return the first token that begins at a byte of the file or after it."""
        return max(-(-(byte - self.start) // self.dtype.itemsize), 0)

    def first_token(self, document: int) -> int:
        """Return the first token of a document of the index, from 0; of none, the number of all."""
        assert self.index is not None
        sequence = int(self.index.documents[document])
        if sequence >= len(self.index.pointers):
            return self.count
        return int(self.index.pointers[sequence]) // self.dtype.itemsize


# Formats


def find_index(path: SourceFile) -> SourceFile | None:
    """Return the .idx beside a .bin; None where there is none. Raises UserError."""
    if path.suffix != ".bin":
        return None
    if isinstance(path, RemoteFile):
        beside = replace(path, key=path.key.removesuffix(".bin") + ".idx", info={})
        try:
            with remote_errors():
                return beside if beside.file_system.exists(beside.key) else None
        except RemoteError as error:
            raise UserError(f"{beside}: {error.strerror}") from error
    beside = path.with_suffix(".idx")
    return beside if beside.is_file() else None


def add_indexes(paths: Sequence[SourceFile]) -> list[SourceFile]:
    """Return files of tokens with the .idx of each behind it, where there is one."""
    files: list[SourceFile] = []
    for path in paths:
        index = find_index(path)
        files += [path] if index is None else [path, index]
    return files


@contextlib.contextmanager
def reading(path: SourceFile) -> Iterator[BinaryIO]:
    """Open a file for reading. What is wrong with it, also during the block, is a UserError."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or describe(error)}") from error


def open_token_file(path: SourceFile, vocabulary_size: int) -> TokenFile:
    """Return where the tokens of a file lie. Raises UserError where that can't be told.

    `vocabulary_size` decides between uint16 and uint32 for a file without a header.
    """
    with reading(path) as file:
        head = file.read(HEAD_BYTES)
        size = file.seek(0, io.SEEK_END)
        index = find_index(path)
        if index is not None:
            return open_megatron(path, index, size)
        if head.startswith(NUMPY_MAGIC):
            file.seek(0)
            return open_numpy(path, file, size)

    if head.startswith(INDEX_MAGIC):
        raise UserError(f"{path}: is the index of a Megatron file: name the .bin beside it")
    if path.name.endswith(INDEX_NAMES):
        reason = "has no .idx beside it, which says where Megatron's documents begin"
        raise UserError(f"{path}: {reason}: copy it there, or rename a file of another framework")
    magic = int.from_bytes(head[:4], "little") if len(head) >= 4 else 0
    if magic in LLMC_FORMATS:
        return open_llmc(path, head, size)
    if magic == LLMC_EVALUATION:
        raise UserError(f"{path}: is an evaluation of llm.c, not tokens to train on")
    return open_raw(path, head, size, vocabulary_size)


def open_llmc(path: SourceFile, head: bytes, size: int) -> TokenFile:
    """Return the tokens of a file of llm.c."""
    if len(head) < LLMC_HEADER_BYTES:
        raise UserError(f"{path}: ends inside the header of llm.c")
    magic, version, count = np.frombuffer(head, "<i4", 3).tolist()
    known, code = LLMC_FORMATS[magic]
    if version != known:
        reason = f"is version {version} of llm.c's format {magic}, of which {known} is read"
        raise UserError(f"{path}: {reason}")

    dtype = np.dtype(code)
    expected = LLMC_HEADER_BYTES + count * dtype.itemsize
    check_size(path, size, expected, f"its header says {count:,} {dtype.name} tokens")
    return TokenFile(path, "llm.c", dtype, LLMC_HEADER_BYTES, count)


def open_numpy(path: SourceFile, file: BinaryIO, size: int) -> TokenFile:
    """Return the tokens of a .npy file with its header. Pickled objects are never read."""
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version[0]}.{version[1]} of the format is not read")
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    except (ValueError, EOFError, SyntaxError, TokenError) as error:
        raise UserError(f"{path}: damaged .npy: {describe(error)}") from error

    if dtype.hasobject:
        raise UserError(f"{path}: holds pickled objects, which are not read: save integers")
    if dtype.kind not in "iu" or len(shape) != 1:
        reason = f"is an array {list(shape)} of {dtype}, not integers with one axis"
        raise UserError(f"{path}: {reason}")
    start, (count,) = file.tell(), shape
    check_size(path, size, start + count * dtype.itemsize, f"its header says {count:,} {dtype}")
    return TokenFile(path, "NumPy", dtype, start, count)


def open_raw(path: SourceFile, head: bytes, size: int, vocabulary_size: int) -> TokenFile:
    """Return the tokens of a file without a header."""
    check_raw(path, head)
    dtype = np.dtype("<u2" if vocabulary_size <= UINT16_IDS else "<u4")
    if dtype.itemsize == 2 and size % 4 == 0 and looks_wide(head):
        dtype = np.dtype("<u4")
    if size % dtype.itemsize:
        reason = f"has {size:,} bytes, which are no whole {dtype.name} tokens"
        raise UserError(f"{path}: {reason}")
    return TokenFile(path, "raw", dtype, 0, size // dtype.itemsize)


def check_raw(path: SourceFile, head: bytes) -> None:
    """Raise UserError for a file that is known to hold something else than tokens."""
    binary = describe_binary(head)
    if not binary and find_mark(head) == "parquet":
        binary = "is a Parquet file"
    if not binary and path.suffix in (".gz", ".zst", ".xz", ".bz2") and find_compression(head):
        binary = "is compressed: unpack it first"
    if not binary and is_text(head):
        binary = "is text: name the files of tokens alone, by a glob (path/*.bin)"
    if binary:
        raise UserError(f"{path}: {binary.replace('not UTF-8 text', 'not tokens')}")


def is_text(head: bytes) -> bool:
    """Return whether a file begins like a text, as no tokens do."""
    if len(head) < FEWEST_TO_TELL:
        return False
    try:
        return not CONTROLS.search(head[:HEAD_BYTES].decode())
    except UnicodeDecodeError as error:  # the last character may be cut
        return error.start > len(head) - 4 and not CONTROLS.search(head[: error.start].decode())


def looks_wide(head: bytes) -> bool:
    """Return whether tokens are uint32, also where uint16 would do: every other uint16 is 0."""
    halves = np.frombuffer(head[: len(head) // 4 * 4], "<u2").reshape(-1, 2)
    return len(halves) >= FEWEST_TO_TELL and not halves[:, 1].any() and bool(halves[:, 0].any())


def open_megatron(path: SourceFile, index_path: SourceFile, size: int) -> TokenFile:
    """Return the tokens of a Megatron file and its index."""
    with reading(index_path) as file:
        header = file.read(INDEX_HEADER.size)
        index_size = file.seek(0, io.SEEK_END)
        if not header.startswith(INDEX_MAGIC):
            raise UserError(f"{index_path}: is no index of Megatron (MMIDIDX)")
        if len(header) < INDEX_HEADER.size:
            raise UserError(f"{index_path}: ends inside its header")
        _, version, code, sequences, bounds = INDEX_HEADER.unpack(header)
        if version != INDEX_VERSION:
            reason = f"is version {version} of the index, of which {INDEX_VERSION} is read"
            raise UserError(f"{index_path}: {reason}")
        if code not in INDEX_TYPES:
            raise UserError(f"{index_path}: its type {code} is none of integers")

        expected = INDEX_HEADER.size + 12 * sequences + 8 * bounds
        if index_size < expected:
            reason = f"has {index_size:,} bytes, and its header says {expected:,}"
            raise UserError(f"{index_path}: {reason}: it was cut")
        index = Index(code, *read_index(index_path, file, sequences, bounds))

    dtype = np.dtype(INDEX_TYPES[code])
    end = 0
    if sequences:
        end = int(index.pointers[-1]) + int(index.lengths[-1]) * dtype.itemsize
    if bounds == 0 or index.documents[0] != 0 or index.documents[-1] != sequences:
        raise UserError(f"{index_path}: damaged: its documents are not those of its sequences")
    check_size(path, size, end, f"{index_path.name} says {end // dtype.itemsize:,} {dtype.name}")
    return TokenFile(path, "Megatron", dtype, 0, size // dtype.itemsize, index)


def read_index(path: SourceFile, file: BinaryIO, sequences: int, bounds: int) -> list[Any]:
    """Return the arrays of an index, mapped into memory if the file is local."""
    arrays: list[Any] = []
    offset = INDEX_HEADER.size
    for code, count in (("<i4", sequences), ("<i8", sequences), ("<i8", bounds)):
        size = count * np.dtype(code).itemsize
        if count == 0:  # no map can be empty
            arrays.append(np.zeros(0, code))
        elif isinstance(path, Path):
            arrays.append(np.memmap(path, code, "r", offset, (count,)))
        else:
            file.seek(offset)
            arrays.append(np.frombuffer(file.read(size), code))
        offset += size
    return arrays


def check_size(path: SourceFile, size: int, expected: int, claim: str) -> None:
    """Raise UserError unless a file has the size that follows from what a header claims."""
    if size != expected:
        reason = f"has {size:,} bytes where {claim} ({expected:,} bytes)"
        raise UserError(f"{path}: {reason}: it is not whole")
