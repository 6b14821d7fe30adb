"""Pack documents into rows: best-fit decreasing, computed once per store and read from a file.

Ding et al., "Fewer truncations improve language modeling" (arXiv 2404.10830): documents longer than
a row are cut into parts that fill rows; what is left of them and all shorter documents are packed
whole. The largest piece comes first, and each goes where it leaves the least room.
"""

import hashlib
import secrets
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from jaxlm.config import UserError
from jaxlm.files import atomic_writer
from jaxlm.objectives.layout import ragged_range
from jaxlm.objectives.objective import PackedRows, Pieces

VERSION = 1  # of the file and of the algorithm: a run that resumes must find the same rows
HEADER = 2  # numbers before the arrays: rows and pieces


class PackableTokens(Protocol):
    """The tokens of a source, with the places of its documents: a `TokenArray`."""

    offsets: Path | None
    documents: int
    dtype: np.dtype

    def __len__(self) -> int: ...

    def read_offsets(self) -> np.ndarray: ...

    def read_into(self, buffer: memoryview, start: int) -> None: ...


class Packing(NamedTuple):
    """The pieces of each row: those of row r are numbered `firsts[r]`, ..., `firsts[r + 1] - 1`."""

    firsts: np.ndarray  # int64 [rows + 1]
    starts: np.ndarray  # int64 [P]: the first token of each piece
    lengths: np.ndarray  # int64 [P]: its tokens

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return len(self.firsts) - 1

    def row_starts(self, row: int) -> np.ndarray:
        """Return the first token of each piece of a row, int64 [n]."""
        return self.starts[self.firsts[row] : self.firsts[row + 1]]


class RowArray:
    """The rows of a source by number."""

    def __init__(self, tokens: PackableTokens, packing: Packing):
        """Take the tokens that the pieces of `packing` are read from."""
        self.tokens, self.packing = tokens, packing

    def __len__(self) -> int:
        return self.packing.rows

    def describe(self) -> str:
        """Return the number of documents, with the parts of long ones, and of rows."""
        pieces, rows = len(self.packing.starts), len(self)
        average = len(self.tokens) / rows
        return f"{pieces:,} documents or parts in {rows:,} rows, {average:,.0f} tokens in each"


def open_rows(
    tokens: PackableTokens,
    packed: PackedRows,
    *,
    shares_rows: bool,
    log: Callable[[str], None],
) -> RowArray:
    """Return the rows of a source: several documents in each, or one if not `shares_rows`.

    The packing is read from a file beside the offsets. It is written where it is missing, whole or
    not at all, so that several processes may do so at once. In a folder that can't be written it is
    kept in memory, and `log` is told so.
    """
    if tokens.offsets is None:
        raise ValueError("the places of the documents are not known")
    path = tokens.offsets.with_name(packing_name(tokens, packed, shares_rows=shares_rows))
    packing = read_packing(path)
    if packing is not None:
        return RowArray(tokens, packing)

    packing = pack(tokens.read_offsets(), packed, shares_rows=shares_rows)
    try:
        write_packing(path, packing)
    except OSError as error:
        log(f"packing of {path.stem}: kept in memory, since {path}: {error.strerror}")
        return RowArray(tokens, packing)
    return RowArray(tokens, read_packing(path) or packing)


# The file


def packing_name(tokens: PackableTokens, packed: PackedRows, *, shares_rows: bool) -> str:
    """Return the name of the file of a packing, which follows from everything that decides it."""
    assert tokens.offsets is not None
    numbers = [VERSION, shares_rows, packed.capacity, packed.part]
    numbers += [tokens.documents, len(tokens)]
    key = np.concatenate([np.array(numbers, "<i8"), packed.sizes.astype("<i8")])
    return f"{tokens.offsets.stem}-packing-{hashlib.sha256(key.tobytes()).hexdigest()[:16]}.npy"


def write_packing(path: Path, packing: Packing) -> None:
    """Write a packing as one int64 array: rows, pieces, then `firsts`, `starts` and `lengths`."""
    header = np.array([packing.rows, len(packing.starts)])
    numbers = np.concatenate([header, *packing]).astype("<i8")
    # Processes on several machines may write at once, and have the same process id.
    own = path.with_name(f"{path.stem}.{secrets.token_hex(8)}")
    with atomic_writer(own) as file:
        np.save(file, numbers)
    own.replace(path)


def read_packing(path: Path) -> Packing | None:
    """Return the packing of a file, mapped into memory; None if it is missing or cut short."""
    try:
        numbers = np.asarray(np.load(path, mmap_mode="r"))
        if numbers.dtype != "<i8" or numbers.ndim != 1:
            return None
        rows, pieces = numbers[:HEADER].tolist()
    except (OSError, ValueError):
        return None

    if len(numbers) != HEADER + rows + 1 + 2 * pieces:
        return None
    parts = np.split(numbers, np.cumsum([HEADER, rows + 1, pieces]))
    return Packing(*parts[1:])


# The algorithm


def pack(offsets: np.ndarray, packed: PackedRows, *, shares_rows: bool) -> Packing:
    """Return the rows of the documents that begin at `offsets` (int64 [n + 1]; the last: the end).

    The same input gives the same rows. It takes about a second and 60 MB for a million documents.
    """
    starts, lengths, sizes = cut_documents(offsets, packed)
    if not shares_rows:
        return Packing(np.arange(len(starts) + 1), starts, lengths)

    rows = best_fit_decreasing(sizes, packed.capacity)
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows)
    firsts = np.concatenate([[0], np.cumsum(counts)])
    return Packing(firsts, starts[order], lengths[order])


def cut_documents(
    offsets: np.ndarray, packed: PackedRows
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start, tokens and size of each piece, in the order of the text; int64 [P] each."""
    longest = len(packed.sizes) - 1
    tokens = np.diff(offsets)
    parts = np.maximum(-(-(tokens - longest) // packed.part), 0)  # before the rest

    number = ragged_range(parts + 1)
    is_rest = np.ones(len(number), bool)
    is_rest[:-1] = number[1:] == 0
    starts = np.repeat(offsets[:-1], parts + 1) + number * packed.part
    lengths = np.full(len(number), packed.part)
    lengths[is_rest] = tokens - parts * packed.part

    sizes = np.full(len(number), packed.capacity)
    sizes[is_rest] = packed.sizes[lengths[is_rest]]
    is_kept = sizes > 0
    return starts[is_kept], lengths[is_kept], sizes[is_kept]


def best_fit_decreasing(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Return the row of each piece, int32 [P]; the sizes of a row's pieces add up to `capacity`.

    Pieces of one size are placed together: rows stand in stacks by the room that they have left,
    and each step takes many rows off one stack. So the steps are as many as there are pairs of a
    size and a room that meet, not as there are pieces.
    """
    order = np.argsort(-sizes, kind="stable")
    counts = np.bincount(sizes, minlength=capacity + 1)

    stacks = [array("i") for _ in range(capacity + 1)]  # rows, by the room that they have left
    filled = 0  # bit r: there are rows with a room of r
    placed = array("i")  # the rows of the pieces, in the order of decreasing sizes
    rows = 0
    for size in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[size])
        while left:
            fitting = filled >> size
            if fitting:
                room = size + (fitting & -fitting).bit_length() - 1
            else:
                room = capacity
                opened = -(-left // (capacity // size))
                stacks[room].extend(range(rows, rows + opened))
                filled |= 1 << room
                rows += opened

            # Each row takes all pieces that fit. If the pieces run out, the last takes the rest.
            stack, each = stacks[room], room // size
            count = min(len(stack), left // each)
            if not count:
                count, each = 1, left
            taken = stack[-count:]
            del stack[-count:]
            left -= each * count
            for _ in range(each):
                placed.extend(taken)

            rest = room - each * size
            stacks[rest].extend(taken)
            filled |= 1 << rest
            if not stack:
                filled &= ~(1 << room)

    result = np.empty(len(sizes), np.int32)
    result[order] = np.frombuffer(placed, np.int32)
    return result


# Reading


def read_pieces(arrays: Sequence[RowArray], sources: np.ndarray, rows: np.ndarray) -> Pieces:
    """Return the pieces of row `rows[i]` of `arrays[sources[i]]`, both int64 [n]."""
    parts = []
    for source in np.unique(sources):
        samples = np.flatnonzero(sources == source)
        packing = arrays[source].packing
        firsts = packing.firsts[rows[samples]]
        counts = packing.firsts[rows[samples] + 1] - firsts
        pieces = np.repeat(firsts, counts) + ragged_range(counts)
        place = np.repeat(samples, counts), np.full(len(pieces), source)
        parts.append(np.stack([*place, packing.starts[pieces], packing.lengths[pieces]]))

    # Each piece is read with the token before it.
    row, source, starts, lengths = np.concatenate(parts, axis=1)
    order = np.argsort(row, kind="stable")
    row, source, starts, lengths = row[order], source[order], starts[order], lengths[order]
    dtype = arrays[0].tokens.dtype
    tokens = np.empty(int(lengths.sum()) + len(row), dtype)
    ends = np.cumsum(lengths + 1)
    read_runs(arrays, source, starts, lengths, tokens.view(np.uint8).data)

    is_previous = np.zeros(len(tokens), bool)
    is_previous[ends - 1] = True
    following = ~np.roll(is_previous, 1)
    return Pieces(
        tokens=tokens[following].astype(np.int32),
        previous=tokens[~is_previous].astype(np.int32),
        lengths=lengths,
        rows=row,
        count=len(rows),
    )


def read_runs(
    arrays: Sequence[RowArray],
    sources: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    buffer: memoryview,
) -> None:
    """Read each piece, after the token before it, into `buffer`, one after another."""
    place = 0
    runs = zip(sources.tolist(), starts.tolist(), lengths.tolist(), strict=True)
    for source, start, length in runs:
        tokens = arrays[source].tokens
        itemsize = tokens.dtype.itemsize
        end = place + (length + 1) * itemsize
        if not 0 <= start <= start + length <= len(tokens):
            files = f"{tokens.offsets.stem}-packing-*.npy" if tokens.offsets else "the packing"
            raise UserError(f"{tokens.offsets}: {files} beside it is damaged: delete it")
        if start:
            tokens.read_into(buffer[place:end], start - 1)
        else:
            # Nothing is before the first document: the end_of_text of the last.
            tokens.read_into(buffer[place : place + itemsize], len(tokens) - 1)
            tokens.read_into(buffer[place + itemsize : end], 0)
        place = end
