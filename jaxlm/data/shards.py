"""Store tokens as flat little-endian shards: written in order, read from any place."""

import errno
import os
import threading
import weakref
import zlib
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import accumulate, count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxlm.config import UserError
from jaxlm.data.verification import ShardVerifier, how_to_rebuild
from jaxlm.files import sync
from jaxlm.objectives import Objective

OPEN_SHARDS = 128  # of all arrays of this process; the usual limit is 1,024 files


def token_dtype(size: int) -> np.dtype:
    """Return the type in which the ids of a tokenizer of that size are stored."""
    return np.dtype("<u2" if size <= 1 << 16 else "<u4")


class OpenShard:
    """A file that is closed with its last reference: a thread may still read an evicted one."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        # Without a descriptor opening failed.
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class OpenShards:
    """The shards that were read last. Several threads may open them at once."""

    def __init__(self, limit: int):
        self.limit = limit
        self.lock = threading.Lock()
        self.shards: OrderedDict[tuple[int, Path], OpenShard] = OrderedDict()
        self.unused: deque[int] = deque()  # arrays whose shards are still to be closed

    def open(self, owner: int, path: Path) -> OpenShard:
        """Return a shard of the array `owner`, opened unless it is open."""
        with self.lock:
            self.close_unused()
            shard = self.shards.pop((owner, path), None) or OpenShard(path)
            self.shards[owner, path] = shard
            while len(self.shards) > self.limit:
                self.shards.popitem(last=False)
        return shard

    def close(self, owner: int) -> None:
        """Close the shards of an array that is no longer used, at the latest in the next `open`.

        The garbage collector calls it at any moment, also while this very thread holds the lock.
        It therefore never waits for it.
        """
        self.unused.append(owner)
        if self.lock.acquire(blocking=False):
            try:
                self.close_unused()
            finally:
                self.lock.release()

    def close_unused(self) -> None:
        """Close the shards of all unused arrays. The caller holds the lock."""
        while self.unused:
            owner = self.unused.popleft()
            for key in [key for key in self.shards if key[0] == owner]:
                del self.shards[key]


open_shards = OpenShards(OPEN_SHARDS)
array_numbers = count()


class TokenArray:
    """The tokens of several shards as one read-only array.

    It reads with `preadv`, not through a memory map: the pages of a map would count as memory of
    this process, a shard that was cut short would kill it, and waiting for the disk would hold the
    interpreter's lock. Several threads may read at once. The first read starts the comparison of
    the shards with their checksums.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        lengths: Sequence[int],
        dtype: np.dtype,
        checksums: Sequence[int] | None = None,
        *,
        offsets: Path | None = None,
        documents: int = 0,
    ):
        """Take `paths`, which hold `lengths[i]` tokens of `dtype` each.

        `checksums` are the CRC-32 of the files; None: they are not verified. `offsets` is the file
        that says where the `documents` begin; None: it is not known. Raises `UserError`, naming the
        shard, if one is missing or has another size.
        """
        self.paths, self.dtype = tuple(paths), dtype
        self.offsets, self.documents = offsets, documents
        self.ends = tuple(accumulate(lengths))
        for path, length in zip(paths, lengths, strict=True):
            check_size(path, length * dtype.itemsize)

        self.number = next(array_numbers)
        weakref.finalize(self, open_shards.close, self.number)
        self.verifier = None if checksums is None else ShardVerifier(self.paths, checksums)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def read_offsets(self) -> np.ndarray:
        """Return where the documents begin and, last, the number of tokens; int64, memory-mapped.

        Raises `UserError` if the file is missing or damaged.
        """
        assert self.offsets is not None, "the caller knows that there is a file"
        return read_offsets(self.offsets, count=self.documents + 1, tokens=len(self))

    def start_count(self, objective: Objective) -> int:
        """Return at how many tokens a whole window starts."""
        return max(len(self) - objective.window + 1, 0)

    def read_samples(self, starts: np.ndarray, objective: Objective) -> np.ndarray:
        """Return the samples that start at the tokens `starts` (int64 [n]); int32 [n, window].

        Columns after the end of the text are 0.
        """
        left = len(self) - starts
        complete = left >= objective.window
        if complete.all():
            return self.read_windows(starts, objective.window)

        rows = np.zeros((len(starts), objective.window), np.int32)
        rows[complete] = self.read_windows(starts[complete], objective.window)
        for row in np.flatnonzero(~complete):
            rows[row, : left[row]] = self.read_windows(starts[[row]], left[row])
        return rows

    def read_windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Return `length` tokens from each of `starts` (int64 [n]) on; int32 [n, length].

        Windows may cross shards. Raises IndexError if one leaves the array.
        """
        if len(starts) and (starts.min() < 0 or starts.max() + length > len(self)):
            raise IndexError(f"a window of {length} tokens leaves its array")

        rows = np.empty((len(starts), length), self.dtype)
        buffer, row_bytes = rows.reshape(-1).view(np.uint8).data, length * rows.itemsize
        for row, start in enumerate(starts.tolist()):
            self.read_into(buffer[row * row_bytes : (row + 1) * row_bytes], start)
        return rows.astype(np.int32)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the bytes of the tokens from `start` on."""
        if self.verifier is not None:
            self.verifier.check()
        itemsize = self.dtype.itemsize
        shard = bisect_right(self.ends, start)
        offset = (start - self.first_token(shard)) * itemsize

        while buffer:
            file = self.open_shard(shard)
            read = os.preadv(file.descriptor, [buffer], offset)
            buffer, offset = buffer[read:], offset + read
            if read:
                continue

            # Nothing was read: this is the end of the shard, or the file is shorter than it was.
            if offset < (self.ends[shard] - self.first_token(shard)) * itemsize:
                raise UserError(
                    f"{self.paths[shard]}: ends at byte {offset:,}, before its last token"
                )
            shard, offset = shard + 1, 0

    def first_token(self, shard: int) -> int:
        """Return the number of the first token of a shard."""
        return self.ends[shard - 1] if shard else 0

    def open_shard(self, shard: int) -> OpenShard:
        """Return the open file of a shard."""
        path = self.paths[shard]
        try:
            return open_shards.open(self.number, path)
        except OSError as error:
            raise UserError(describe_failure(path, error)) from error


def read_offsets(path: Path, count: int, tokens: int) -> np.ndarray:
    """Return where documents begin and, last, the number of tokens; int64 [count].

    The file is mapped into memory: a training host reads the few pages that it needs, whatever the
    number of documents.
    """
    try:
        offsets = np.asarray(np.memmap(path, "<i8", mode="r"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {how_to_rebuild(path)}") from error
    except ValueError:  # an empty file
        offsets = np.zeros(0, "<i8")
    if len(offsets) != count or offsets[-1] != tokens:
        raise UserError(f"{path}: damaged; {how_to_rebuild(path)}")
    return offsets


def check_size(path: Path, size: int) -> None:
    """Raise UserError unless the file of a shard has `size` bytes."""
    try:
        file_size = path.stat().st_size
    except OSError as error:
        raise UserError(describe_failure(path, error)) from error
    if file_size != size:
        damage = f"has {file_size:,} bytes instead of {size:,}"
        raise UserError(f"{path}: {damage}; {how_to_rebuild(path)}")


def describe_failure(path: Path, error: OSError) -> str:
    """Return one line about a shard that can't be opened."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{path}: too many open files: raise the limit of this process (ulimit -n)"
    return f"{path}: {error.strerror}; {how_to_rebuild(path)}"


class TokenWriter:
    """Write documents into shards `STEM-00000.bin`, ... and their ends into `STEM.offsets`.

    The offsets are little-endian int64: where each document begins, and the end of the last. The
    files are opened with the first token.
    """

    def __init__(self, folder: Path, stem: str, dtype: np.dtype, shard_tokens: int):
        """Prepare to write to `folder`; a shard takes at most `shard_tokens` tokens."""
        self.folder, self.stem, self.dtype, self.shard_tokens = folder, stem, dtype, shard_tokens
        self.tokens = self.documents = 0
        self.shards: list[dict[str, Any]] = []
        self.shard: BinaryIO | None = None
        self.offsets: BinaryIO | None = None
        self.is_closed = False

    def add(self, ids: np.ndarray) -> None:
        """Append the next tokens of a document."""
        if self.offsets is None:
            self.offsets = self.open_offsets()

        left = ids.astype(self.dtype)
        while len(left):
            if self.shard is None or self.shards[-1]["tokens"] == self.shard_tokens:
                self.shard = self.open_next_shard()

            entry = self.shards[-1]
            part, left = np.split(left, [self.shard_tokens - entry["tokens"]])
            data = part.tobytes()
            self.shard.write(data)
            entry["tokens"] += len(part)
            entry["crc32"] = zlib.crc32(data, entry["crc32"])
        self.tokens += len(ids)

    def end_document(self, end_of_text: int) -> None:
        """Append the token that ends a document; the next document begins after it."""
        self.add(np.array([end_of_text]))
        self.documents += 1
        assert self.offsets is not None, "opened by the token"
        self.offsets.write(np.array([self.tokens], "<i8").tobytes())

    def add_ends(self, ends: np.ndarray) -> None:
        """Append where documents end whose tokens were added last.

        `ends` (int64 [documents]) counts from the first of these tokens, so that its last is their
        number.
        """
        if len(ends):
            assert self.offsets is not None, "opened by the tokens"
            self.offsets.write((self.tokens - ends[-1] + ends).astype("<i8").tobytes())
            self.documents += len(ends)

    def open_offsets(self) -> BinaryIO:
        """Return the file of the offsets, in which the first is 0."""
        file = (self.folder / f"{self.stem}.offsets").open("wb")
        file.write(np.zeros(1, "<i8").tobytes())
        return file

    def open_next_shard(self) -> BinaryIO:
        """Close the current shard, if any, and return the file of the next."""
        if self.shard is not None:
            close_synced(self.shard)
        name = f"{self.stem}-{len(self.shards):05d}.bin"
        self.shards.append({"file": name, "tokens": 0, "crc32": 0})
        return (self.folder / name).open("wb")

    def close(self) -> dict[str, Any]:
        """Close the files, which may be closed already, and return their entry in the manifest."""
        if not self.is_closed:
            close_synced(self.offsets or self.open_offsets())
            if self.shard is not None:
                close_synced(self.shard)
            self.is_closed = True

        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "offsets": f"{self.stem}.offsets",
            "shards": self.shards,
        }


def close_synced(file: BinaryIO) -> None:
    """Close a file once its bytes are on the disk."""
    sync(file)
    file.close()
