"""The weights of a Hugging Face directory: safetensors files, read with every claim of theirs checked, and written as a stream.

A safetensors file is the length of its header (8 bytes, little-endian), the header (JSON: dtype, shape and offsets of each tensor)
and the numbers. Files are read with `readinto`, not mapped: mapped pages count as the process's memory.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

import ml_dtypes
import numpy as np
import safetensors

from jaxlm.config import UserError
from jaxlm.interop.hf_config import parse_json, read_json, shown

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
CHUNK = 4 << 20  # bytes that are compared or scanned at once
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
FLOATS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
# Others may be in a file as long as the model doesn't need them: buffers, mostly.
SIZES = {name: np.dtype(dtype).itemsize for name, dtype in FLOATS.items()}
SIZES |= {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
SIZES |= {"C64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1}


class Entry(NamedTuple):
    """A tensor in a file."""

    path: Path
    name: str
    dtype: str  # "F32"
    shape: tuple[int, ...]
    start: int  # offset in the file
    size: int  # bytes

    def refuse(self, reason: str) -> UserError:
        return UserError(f"{self.path}: {plain(self.name)}: {reason}")


class Tensor(NamedTuple):
    """A tensor that will be written."""

    name: str
    dtype: str  # "F32"
    shape: tuple[int, ...]

    @property
    def numpy(self) -> np.dtype:
        return np.dtype(FLOATS[self.dtype])

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.numpy.itemsize


class Listing(NamedTuple):
    """All tensors of a directory, by name."""

    source: Path  # the file that lists them: the index, or the only file
    entries: dict[str, Entry]


def listing(directory: Path) -> Listing:
    """The tensors of model.safetensors, or of the shards that model.safetensors.index.json names."""
    single, index = directory / SINGLE, directory / INDEX
    if single.exists():
        return Listing(single, header(single))
    if not index.exists():
        pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLES)
        if pickles:
            reason = f"only weights that may run code when read ({pickles[0]}); convert them to safetensors where you trust them"
            raise UserError(f"{directory}: has {reason}")
        raise UserError(f"{directory}: has no {SINGLE} and no {INDEX}")
    weight_map = named_shards(index)
    entries: dict[str, Entry] = {}
    for shard in dict.fromkeys(weight_map.values()):
        for name, entry in header(directory / shard).items():
            if name in entries:
                raise entry.refuse(f"is also in {entries[name].path.name}")
            entries[name] = entry
    for name, shard in weight_map.items():
        if name not in entries or entries[name].path.name != shard:
            raise UserError(
                f"{directory / shard}: {plain(name)}: there is no such tensor, but {INDEX} says so"
            )
    return Listing(index, entries)


def named_shards(index: Path) -> dict[str, str]:
    """The index's map from tensors to files, each of them a plain name: nothing outside the directory is ever opened.

    What is judged is the name, not where a link leads: Hugging Face's cache is made of links.
    """
    content = read_json(index, LARGEST_HEADER)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(
            f"{index}: weight_map: must be an object that says in which file each tensor is"
        )
    for name, shard in weight_map.items():
        if (
            not isinstance(shard, str)
            or not shard.endswith(".safetensors")
            or not shard.isprintable()
            or set(shard) & set("/\\:")
        ):
            reason = (
                f"must be the name of a .safetensors file in the same directory, got {shown(shard)}"
            )
            raise UserError(f"{index}: weight_map: {plain(name)}: {reason}")
    return weight_map


def header(path: Path) -> dict[str, Entry]:
    """The tensors of one file, whose bytes they fill without gaps."""
    content, start, end = read_header(path)
    content.pop("__metadata__", None)
    entries = {name: entry(path, name, value, start) for name, value in content.items()}
    position = start
    for each in sorted(entries.values(), key=lambda each: (each.start, each.size)):
        if each.start != position:
            problem = (
                "overlaps another tensor"
                if each.start < position
                else f"{each.start - position} bytes before it are no tensor's"
            )
            raise each.refuse(f"data_offsets: {problem}")
        position += each.size
        if position > end:
            raise each.refuse(
                f"ends {position - end} bytes behind the end of the file, which is cut short or damaged"
            )
    if position != end:
        raise UserError(f"{path}: its last {end - position} bytes are no tensor's")
    try:
        with safetensors.safe_open(path, "numpy"):
            pass
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: {plain(str(error))}") from None
    return entries


def read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """(header, where the numbers begin, where the file ends)."""
    if not path.is_file():
        raise UserError(f"{path}: {'is not a file' if path.exists() else 'there is no such file'}")
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if end < 8 or length > min(end - 8, LARGEST_HEADER):
                reason = f"a header of {length:,} bytes" if end >= 8 else "the length of a header"
                raise UserError(
                    f"{path}: is cut short, damaged or no safetensors file: {end:,} bytes can't hold {reason}"
                )
            raw = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    content = parse_json(path, raw)
    if not isinstance(content, dict):
        raise UserError(f"{path}: its header must be a JSON object")
    return content, 8 + length, end


def entry(path: Path, name: str, value: Any, start: int) -> Entry:
    """A tensor as the header describes it; `start` is where the numbers of the file begin."""
    blank = Entry(path, name, "", (), 0, 0)
    if not isinstance(value, dict):
        raise blank.refuse(f"must be an object, got {shown(value)}")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise blank.refuse(f"dtype {shown(dtype)} is unknown")
    if not sizes(shape):
        raise blank.refuse(f"shape must be a list of sizes, got {shown(shape)}")
    if not sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise blank.refuse(f"data_offsets must be a first and a last one, got {shown(offsets)}")
    size, expected = offsets[1] - offsets[0], math.prod(shape) * SIZES[dtype]
    if size != expected:
        raise blank.refuse(
            f"{dtype} of shape {shape} has {expected:,} bytes, but data_offsets give it {size:,}"
        )
    return Entry(path, name, dtype, tuple(shape), start + offsets[0], size)


def sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 63
        for size in value
    )


def plain(text: str) -> str:
    """A name that is safe to print in one line."""
    return text if text.isprintable() and len(text) <= 200 else shown(text)


class Reader:
    """Reads tensors one at a time into one buffer. What `read` returns is valid until the next `read`."""

    def __init__(self, largest: int):
        self.buffer = aligned((largest,), np.uint8)
        self.path: Path | None = None
        self.file: BinaryIO | None = None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def read(self, entry: Entry) -> np.ndarray:
        self.bytes(entry, 0, entry.size, self.buffer)
        return self.buffer[: entry.size].view(FLOATS[entry.dtype]).reshape(entry.shape)

    def bytes(self, entry: Entry, offset: int, size: int, into: np.ndarray) -> np.ndarray:
        """`size` bytes of a tensor from `offset` on, at the start of `into`."""
        view = memoryview(into)[:size]  # type: ignore[arg-type]
        try:
            if self.path != entry.path:
                if self.file is not None:
                    self.file.close()
                self.path, self.file = None, entry.path.open("rb", buffering=0)
                self.path = entry.path
            assert self.file is not None
            self.file.seek(entry.start + offset)
            done = 0
            while done < size:
                count = self.file.readinto(view[done:])  # type: ignore[attr-defined]
                if not count:
                    raise entry.refuse("the file ends before it: it was changed while it was read")
                done += count
        except OSError as error:
            raise UserError(f"{entry.path}: can't be read: {error.strerror}") from None
        return into[:size]

    def chunks(self, entry: Entry, into: np.ndarray) -> Iterable[np.ndarray]:
        """The bytes of a tensor in pieces, without its being whole in memory."""
        for offset in range(0, entry.size, len(into)):
            yield self.bytes(entry, offset, min(len(into), entry.size - offset), into)


def any_number(entry: Entry) -> bool:
    """Whether a tensor has a number that is not 0."""
    with Reader(0) as reader:
        pieces = reader.chunks(entry, aligned((CHUNK,), np.uint8))
        return any(
            bool((piece.view(FLOATS[entry.dtype]) if entry.dtype in FLOATS else piece).any())
            for piece in pieces
        )


def equal(one: Entry, other: Entry) -> bool:
    """Whether two tensors are the same, bit by bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with Reader(0) as first, Reader(0) as second:
        buffers = aligned((2, CHUNK), np.uint8)
        pieces = zip(first.chunks(one, buffers[0]), second.chunks(other, buffers[1]), strict=True)
        return all(np.array_equal(a, b) for a, b in pieces)


def aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Zeros at a multiple of 64 bytes, where JAX on a CPU takes them over without a copy. Pages cost nothing until they are written."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset : offset + size].view(dtype).reshape(shape)
