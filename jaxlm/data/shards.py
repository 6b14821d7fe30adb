"""Tokens on disk: flat little-endian shards, written in order and read at any place."""

import os
import weakref
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxlm.config.errors import UserError
from jaxlm.objectives import Objective


class TokenArray:
    """The tokens of several shards as one read-only array.

    Reads go through `preadv`, not a memory map: the pages of a map would count as this process's memory, a shard that was cut
    short would kill it, and waiting for the disk would hold the interpreter's lock. Safe to read from several threads.
    """

    def __init__(self, paths: Sequence[Path], lengths: Sequence[int], dtype: np.dtype):
        """`lengths[i]` tokens of `dtype` in `paths[i]`. `UserError` names a shard that is missing or has another size."""
        self.paths, self.dtype = tuple(paths), dtype
        self.ends = tuple(accumulate(lengths))
        self.descriptors: list[int] = []
        weakref.finalize(self, close_all, self.descriptors)
        for path, length in zip(paths, lengths, strict=True):
            self.descriptors.append(open_shard(path, length * dtype.itemsize))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """int32 [n, length]: the tokens from each of the `starts` (int64 [n]) on. Windows may cross shards, not the end."""
        if len(starts) and (starts.min() < 0 or starts.max() + length > len(self)):
            raise IndexError(f"a window of {length} tokens leaves its array")
        rows = np.empty((len(starts), length), self.dtype)
        buffer, row_bytes = rows.reshape(-1).view(np.uint8).data, length * rows.itemsize
        for row, start in enumerate(starts.tolist()):
            self.read_into(buffer[row * row_bytes : (row + 1) * row_bytes], start)
        return rows.astype(np.int32)

    def places(self, objective: Objective) -> int:
        """Where a sample can begin: at each token with a whole window behind it."""
        return max(len(self) - objective.window + 1, 0)

    def read(self, starts: np.ndarray, objective: Objective) -> np.ndarray:
        """int32 [n, window]: the samples that begin at the tokens `starts` (int64 [n]); behind the end of the text is 0."""
        left = len(self) - starts
        whole = left >= objective.window
        if whole.all():
            return self.windows(starts, objective.window)
        rows = np.zeros((len(starts), objective.window), np.int32)
        rows[whole] = self.windows(starts[whole], objective.window)
        for row in np.flatnonzero(~whole):
            rows[row, : left[row]] = self.windows(starts[[row]], left[row])
        return rows

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fills `buffer` with the bytes of the tokens from `start` on."""
        itemsize = self.dtype.itemsize
        shard = bisect_right(self.ends, start)
        offset = (start - (self.ends[shard - 1] if shard else 0)) * itemsize
        while buffer:
            count = os.preadv(self.descriptors[shard], [buffer], offset)
            buffer, offset = buffer[count:], offset + count
            if not count:
                begin = self.ends[shard - 1] if shard else 0
                if offset < (self.ends[shard] - begin) * itemsize:
                    raise UserError(
                        f"{self.paths[shard]}: ends at byte {offset:,}, before its last token"
                    )
                shard, offset = shard + 1, 0


def open_shard(path: Path, size: int) -> int:
    """A file descriptor of a shard of `size` bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; delete the folder {path.parent} to have it built again"
        ) from error
    found = os.fstat(descriptor).st_size
    if found != size:
        os.close(descriptor)
        raise UserError(
            f"{path}: has {found:,} bytes instead of {size:,}; delete the folder {path.parent} to have it built again"
        )
    return descriptor


def close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class TokenWriter:
    """Writes documents into shards `STEM-00000.bin`, ... of at most `shard_tokens` tokens, and their ends into `STEM.offsets`.

    The offsets are little-endian int64: where each document begins, and one more for the end of the last.
    """

    def __init__(self, folder: Path, stem: str, dtype: np.dtype, shard_tokens: int):
        self.folder, self.stem, self.dtype, self.shard_tokens = folder, stem, dtype, shard_tokens
        self.tokens = self.documents = 0
        self.shards: list[dict[str, Any]] = []
        self.shard: BinaryIO | None = None
        self.offsets = (folder / f"{stem}.offsets").open("wb")
        self.offsets.write(np.zeros(1, "<i8").tobytes())

    def add(self, ids: np.ndarray) -> None:
        """The next tokens of a document."""
        left = ids.astype(self.dtype)
        while len(left):
            if self.shard is None or self.shards[-1]["tokens"] == self.shard_tokens:
                self.shard = self.next_shard()
            entry = self.shards[-1]
            part, left = np.split(left, [self.shard_tokens - entry["tokens"]])
            data = part.tobytes()
            self.shard.write(data)
            entry["tokens"] += len(part)
            entry["crc32"] = zlib.crc32(data, entry["crc32"])
        self.tokens += len(ids)

    def end_document(self, end_of_text: int) -> None:
        """Writes the token that ends a document; the next one begins behind it."""
        self.add(np.array([end_of_text]))
        self.documents += 1
        self.offsets.write(np.array([self.tokens], "<i8").tobytes())

    def next_shard(self) -> BinaryIO:
        if self.shard is not None:
            finish(self.shard)
        name = f"{self.stem}-{len(self.shards):05d}.bin"
        self.shards.append({"file": name, "tokens": 0, "crc32": 0})
        return (self.folder / name).open("wb")

    def close(self) -> dict[str, Any]:
        """What the manifest says of these files."""
        finish(self.offsets)
        if self.shard is not None:
            finish(self.shard)
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "offsets": self.offsets.name.rpartition("/")[2],
            "shards": self.shards,
        }


def finish(file: BinaryIO) -> None:
    """Closes a file once its bytes are on the disk."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
