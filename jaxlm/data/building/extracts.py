"""Keep the text of a unit between two passes: blocks of whole documents, compressed a little.

A block is at least BLOCK_BYTES of text, or what is left; before it stand two little-endian uint64:
its compressed bytes and its documents. How long the texts are stands in a file of its own.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxlm.files import sync

BLOCK_BYTES = 1 << 20
LEVEL = 1  # zlib: halves the text and takes a tenth of the time of tokenizing it
HEADER = struct.Struct("<QQ")


class ExtractWriter:
    """Write documents, each of a name and as many strings as the others, to the files of a unit."""

    def __init__(self, folder: Path, unit: str):
        self.sizes_path = folder / f"extract-{unit}.sizes"
        self.file = (folder / f"extract-{unit}.text").open("wb")
        self.sizes: list[int] = []
        self.block: list[bytes] = []
        self.block_bytes = self.block_documents = 0

    def add(self, name: str, texts: list[bytes]) -> None:
        """Append a document; texts are UTF-8."""
        strings = [name.encode("utf-8", "surrogateescape"), *texts]
        sizes = [len(string) for string in strings]
        self.sizes += sizes
        self.block += strings
        self.block_bytes += sum(sizes)
        self.block_documents += 1
        if self.block_bytes >= BLOCK_BYTES:
            self.end_block()

    def end_block(self) -> None:
        """Write the documents at hand as a block."""
        data = zlib.compress(b"".join(self.block), LEVEL)
        self.file.write(HEADER.pack(len(data), self.block_documents))
        self.file.write(data)
        self.block, self.block_bytes, self.block_documents = [], 0, 0

    def close(self) -> None:
        """Write what is left, and have all of it on the disk."""
        if self.block:
            self.end_block()
        for file, data in (
            (self.file, b""),
            (self.sizes_path.open("wb"), np.array(self.sizes, "<i8").tobytes()),
        ):
            file.write(data)
            sync(file)
            file.close()


def read_sizes(folder: Path, unit: str, strings: int) -> np.ndarray:
    """Return the bytes of each document's name and strings, int64 [documents, 1 + strings]."""
    return np.fromfile(folder / f"extract-{unit}.sizes", "<i8").reshape(-1, 1 + strings)


def read_extract(
    folder: Path, unit: str, sizes: np.ndarray, wanted: np.ndarray
) -> Iterator[tuple[int, list[str]]]:
    """Yield the number, and the name and texts, of each document that is `wanted` (bool [n]).

    `sizes` are those of `read_sizes`. Blocks without such documents are passed over.
    """
    first = 0
    with (folder / f"extract-{unit}.text").open("rb") as file:
        while header := file.read(HEADER.size):
            size, count = HEADER.unpack(header)
            numbers = first + np.flatnonzero(wanted[first : first + count])
            if not len(numbers):
                file.seek(size, 1)
                first += count
                continue

            data = zlib.decompress(file.read(size))
            ends = np.cumsum(sizes[first : first + count])  # of all strings of the block
            bounds = np.concatenate([[0], ends]).tolist()
            width = sizes.shape[1]
            for number in numbers.tolist():
                place = (number - first) * width
                strings = [
                    data[bounds[place + index] : bounds[place + index + 1]]
                    for index in range(width)
                ]
                name, *texts = strings
                yield (
                    number,
                    [name.decode("utf-8", "surrogateescape"), *(t.decode() for t in texts)],
                )
            first += count
