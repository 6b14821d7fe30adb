"""Read the documents of files of tokens, in bounded memory.

Documents are what stands between two ends of text, whether a framework writes these before a
document (llm.c) or behind it (nanoGPT); in Megatron's files they are those of the index as well.
Empty ones are passed over.
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from typing import BinaryIO, NamedTuple

import numpy as np

from jaxlm.config import UserError
from jaxlm.data.documents import FilePart
from jaxlm.data.readers.token_files import Index, TokenFile, reading

BLOCK_TOKENS = 1 << 20  # that are read at once
LONGEST_DOCUMENT = 1 << 24  # tokens; a longer one is several, so that memory stays bounded


class TokenDocument(NamedTuple):
    """The ids of a document, without an end of text, and the number of its first in the file."""

    first: int
    ids: np.ndarray
    is_unbounded: bool = False  # whether it is the last one of a file without any end of text


def read_token_documents(
    file: TokenFile, part: FilePart, end_of_text: int
) -> Iterator[TokenDocument]:
    """Yield the documents that begin in a part of a file. Raises UserError.

    One of more than LONGEST_DOCUMENT tokens is several.
    """
    first, last = file.token_at(part.start), file.count
    if part.stop is not None:
        last = min(file.token_at(part.stop), file.count)
    if first >= last:
        return
    with reading(file.path) as stream:
        if file.index is None:
            yield from read_running(file, stream, first, last, end_of_text)
        else:
            yield from read_indexed(file, file.index, stream, first, last, end_of_text)


def read_running(
    file: TokenFile, stream: BinaryIO, first: int, last: int, end_of_text: int
) -> Iterator[TokenDocument]:
    """Yield the documents between ends of text that begin from token `first` on, before `last`."""
    place = max(first - 1, 0)  # the token before the first says whether a document begins there
    begin = None if first else 0
    is_unbounded = first == 0
    pending: list[np.ndarray] = []
    while place < file.count:
        block = read_tokens(file, stream, place, min(BLOCK_TOKENS, file.count - place))
        start = 0
        for end in np.flatnonzero(block == end_of_text).tolist():
            if begin is not None:
                yield from cut_document(begin, join([*pending, block[start:end]]))
            pending, start = [], end + 1
            begin, is_unbounded = place + start, False
            if begin >= last:
                return

        place += len(block)
        if begin is None:
            if place >= last:
                return
            continue
        pending.append(block[start:])
        if place - begin >= LONGEST_DOCUMENT:
            ids = join(pending)
            cut = len(ids) // LONGEST_DOCUMENT * LONGEST_DOCUMENT
            yield from cut_document(begin, ids[:cut])
            begin, pending = begin + cut, [ids[cut:]]

    if begin is not None:
        yield from cut_document(begin, join(pending), is_unbounded)


def read_indexed(
    file: TokenFile, index: Index, stream: BinaryIO, first: int, last: int, end_of_text: int
) -> Iterator[TokenDocument]:
    """Yield the documents of an index that begin from token `first` on, before `last`."""
    bounds = index.documents
    documents = range(len(bounds) - 1)
    start, stop = (bisect_left(documents, token, key=file.first_token) for token in (first, last))
    for number in range(start, stop):
        begin, end = file.first_token(number), file.first_token(number + 1)
        lengths = index.lengths[int(bounds[number]) : int(bounds[number + 1])]
        if int(lengths.sum(dtype=np.int64)) != end - begin:
            raise UserError(f"{file.path}: the .idx is damaged at document {number + 1:,}")

        for place in range(begin, end, LONGEST_DOCUMENT):
            ids = read_tokens(file, stream, place, min(LONGEST_DOCUMENT, end - place))
            starts = [0, *(np.flatnonzero(ids == end_of_text) + 1).tolist(), len(ids) + 1]
            for left, right in pairwise(starts):
                yield from cut_document(place + left, ids[left : right - 1])


def read_tokens(file: TokenFile, stream: BinaryIO, first: int, count: int) -> np.ndarray:
    """Return `count` tokens of an open file from token `first` on."""
    stream.seek(file.start + first * file.dtype.itemsize)
    data = stream.read(count * file.dtype.itemsize)
    if len(data) < count * file.dtype.itemsize:
        raise UserError(f"{file.path}: ends while it is read")
    return np.frombuffer(data, file.dtype)


def join(arrays: list[np.ndarray]) -> np.ndarray:
    """Return arrays one after another."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def cut_document(
    first: int, ids: np.ndarray, is_unbounded: bool = False
) -> Iterator[TokenDocument]:
    """Yield a document, a long one as several, and an empty one as none."""
    for start in range(0, len(ids), LONGEST_DOCUMENT):
        piece = ids[start : start + LONGEST_DOCUMENT]
        yield TokenDocument(first + start, piece, is_unbounded)
