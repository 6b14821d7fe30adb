"""Store tokens as flat little-endian shards: written in order, read from any place."""

import os
import weakref
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxlm.config import UserError
from jaxlm.files import sync
from jaxlm.objectives import Objective


class TokenArray:
    """The tokens of several shards as one read-only array.

    It reads with `preadv`, not through a memory map: the pages of a map would count as memory of
    this process, a shard that was cut short would kill it, and waiting for the disk would hold the
    interpreter's lock. Several threads may read at once.
    """

    def __init__(self, paths: Sequence[Path], lengths: Sequence[int], dtype: np.dtype):
        """Open `paths`, which hold `lengths[i]` tokens of `dtype` each.

        Raises `UserError`, naming the shard, if one is missing or has another size.
        """
        self.paths, self.dtype = tuple(paths), dtype
        self.ends = tuple(accumulate(lengths))
        self.descriptors: list[int] = []
        weakref.finalize(self, close_descriptors, self.descriptors)
        for path, length in zip(paths, lengths, strict=True):
            self.descriptors.append(open_shard(path, length * dtype.itemsize))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

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
        itemsize = self.dtype.itemsize
        shard = bisect_right(self.ends, start)
        offset = (start - self.first_token(shard)) * itemsize

        while buffer:
            count = os.preadv(self.descriptors[shard], [buffer], offset)
            buffer, offset = buffer[count:], offset + count
            if count:
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


def open_shard(path: Path, size: int) -> int:
    """Return a file descriptor of a shard that must have `size` bytes."""
    rebuild = f"delete the folder {path.parent} to have it built again"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {rebuild}") from error

    file_size = os.fstat(descriptor).st_size
    if file_size != size:
        os.close(descriptor)
        raise UserError(f"{path}: has {file_size:,} bytes instead of {size:,}; {rebuild}")
    return descriptor


def close_descriptors(descriptors: list[int]) -> None:
    """Close open files."""
    for descriptor in descriptors:
        os.close(descriptor)


class TokenWriter:
    """Write documents into shards `STEM-00000.bin`, ... and their ends into `STEM.offsets`.

    The offsets are little-endian int64: where each document begins, and the end of the last.
    """

    def __init__(self, folder: Path, stem: str, dtype: np.dtype, shard_tokens: int):
        """Start the files in `folder`; a shard takes at most `shard_tokens` tokens."""
        self.folder, self.stem, self.dtype, self.shard_tokens = folder, stem, dtype, shard_tokens
        self.tokens = self.documents = 0
        self.shards: list[dict[str, Any]] = []
        self.shard: BinaryIO | None = None
        self.offsets = (folder / f"{stem}.offsets").open("wb")
        self.offsets.write(np.zeros(1, "<i8").tobytes())

    def add(self, ids: np.ndarray) -> None:
        """Append the next tokens of a document."""
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
        self.offsets.write(np.array([self.tokens], "<i8").tobytes())

    def open_next_shard(self) -> BinaryIO:
        """Close the current shard, if any, and return the file of the next."""
        if self.shard is not None:
            close_synced(self.shard)
        name = f"{self.stem}-{len(self.shards):05d}.bin"
        self.shards.append({"file": name, "tokens": 0, "crc32": 0})
        return (self.folder / name).open("wb")

    def close(self) -> dict[str, Any]:
        """Close the files and return their entry in the manifest."""
        close_synced(self.offsets)
        if self.shard is not None:
            close_synced(self.shard)
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "offsets": Path(self.offsets.name).name,
            "shards": self.shards,
        }


def close_synced(file: BinaryIO) -> None:
    """Close a file once its bytes are on the disk."""
    sync(file)
    file.close()
