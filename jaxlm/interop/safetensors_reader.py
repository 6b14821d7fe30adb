"""Read safetensors files, and check every claim that they make.

A safetensors file is the length of its header (8 bytes, little-endian), the header (JSON with
dtype, shape and offsets of each tensor) and the numbers. Files are read with `readinto` and not
mapped into memory: mapped pages count as memory of the process.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, TypeGuard

import ml_dtypes
import numpy as np
import safetensors

from jaxlm.config import UserError
from jaxlm.interop.hf_config import format_json, parse_json, read_json

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
CHUNK_BYTES = 4 << 20  # compared or scanned at once
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
FLOAT_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
# Bytes per number. Tensors of other dtypes than floats may be in a file as long as the model
# doesn't need them: buffers, mostly.
ITEM_SIZES = {name: np.dtype(dtype).itemsize for name, dtype in FLOAT_DTYPES.items()}
ITEM_SIZES |= {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1}
ITEM_SIZES |= {"BOOL": 1, "C64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
ITEM_SIZES |= {"F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1}


class TensorEntry(NamedTuple):
    """A tensor in a file."""

    path: Path
    name: str
    dtype: str  # "F32"
    shape: tuple[int, ...]
    start: int  # offset in the file
    size: int  # bytes

    def error(self, reason: str) -> UserError:
        """Return an error that names the file and the tensor."""
        return UserError(f"{self.path}: {printable_name(self.name)}: {reason}")


class TensorIndex(NamedTuple):
    """All tensors of a directory, by name."""

    source: Path  # the file that lists them: the index, or the only file of weights
    entries: dict[str, TensorEntry]


# --- which tensors there are ---


def read_tensor_index(directory: Path) -> TensorIndex:
    """Return the tensors of model.safetensors, or of the shards that its index names.

    Raises UserError where there are none, only pickles, or where the index and the shards disagree.
    """
    single, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
    if single.exists():
        return TensorIndex(single, read_tensor_entries(single))
    if not index.exists():
        pickles = sorted(
            path.name for path in directory.iterdir() if path.suffix in PICKLE_SUFFIXES
        )
        if pickles:
            raise UserError(
                f"{directory}: has only weights that may run code when read ({pickles[0]}); "
                "convert them to safetensors if you trust them"
            )
        raise UserError(f"{directory}: has no {WEIGHTS_FILE} and no {INDEX_FILE}")

    weight_map = read_weight_map(index)
    entries: dict[str, TensorEntry] = {}
    for shard in dict.fromkeys(weight_map.values()):
        for name, entry in read_tensor_entries(directory / shard).items():
            if name in entries:
                raise entry.error(f"is also in {entries[name].path.name}")
            entries[name] = entry

    for name, shard in weight_map.items():
        if name not in entries or entries[name].path.name != shard:
            raise UserError(
                f"{directory / shard}: {printable_name(name)}: there is no such tensor, "
                f"but {INDEX_FILE} says that it is in this file"
            )
    return TensorIndex(index, entries)


def read_weight_map(index: Path) -> dict[str, str]:
    """Return the index's map from tensors to files.

    Each file must be a plain name, so that nothing outside the directory is ever opened. The name
    is judged, not where a link leads: Hugging Face's cache is made of links.
    """
    content = read_json(index, MAX_HEADER_BYTES)
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
            raise UserError(
                f"{index}: weight_map: {printable_name(name)}: must be the name of a "
                f".safetensors file in the same directory, got {format_json(shard)}"
            )
    return weight_map


def read_tensor_entries(path: Path) -> dict[str, TensorEntry]:
    """Return the tensors of one file. Together they must fill its bytes without gaps."""
    header, start, end = read_header(path)
    header.pop("__metadata__", None)
    entries = {name: parse_tensor_entry(path, name, value, start) for name, value in header.items()}

    position = start
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.size)):
        if entry.start < position:
            raise entry.error("data_offsets: overlaps another tensor")
        if entry.start > position:
            gap = entry.start - position
            raise entry.error(f"data_offsets: the {gap} bytes before it belong to no tensor")
        position += entry.size
        if position > end:
            raise entry.error(
                f"ends {position - end} bytes past the end of the file, "
                "which is truncated or damaged"
            )
    if position != end:
        raise UserError(f"{path}: its last {end - position} bytes belong to no tensor")

    # The library has checks of its own: of the metadata, for instance.
    try:
        with safetensors.safe_open(path, "numpy"):
            pass
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: {printable_name(str(error))}") from None
    return entries


def read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return (header, offset of the first number, size of the file).

    Its length is checked against the file and MAX_HEADER_BYTES before it is read.
    """
    try:
        if not path.is_file():
            problem = "is not a file" if path.exists() else "there is no such file"
            raise UserError(f"{path}: {problem}")
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if end < 8 or length > min(end - 8, MAX_HEADER_BYTES):
                reason = f"a header of {length:,} bytes" if end >= 8 else "the length of a header"
                raise UserError(
                    f"{path}: is truncated, damaged or not a safetensors file: "
                    f"{end:,} bytes can't hold {reason}"
                )
            raw = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None

    header = parse_json(path, raw)
    if not isinstance(header, dict):
        raise UserError(f"{path}: its header must be a JSON object")
    return header, 8 + length, end


def parse_tensor_entry(path: Path, name: str, value: Any, start: int) -> TensorEntry:
    """Return a tensor as the header describes it; the numbers of the file begin at `start`."""
    blank = TensorEntry(path, name, "", (), 0, 0)
    if not isinstance(value, dict):
        raise blank.error(f"must be an object, got {format_json(value)}")

    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise blank.error(f"dtype {format_json(dtype)} is unknown")
    if not is_size_list(shape):
        raise blank.error(f"shape must be a list of sizes, got {format_json(shape)}")
    if not is_size_list(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise blank.error(f"data_offsets must be [start, end], got {format_json(offsets)}")

    size, expected = offsets[1] - offsets[0], math.prod(shape) * ITEM_SIZES[dtype]
    if size != expected:
        raise blank.error(
            f"{dtype} of shape {shape} has {expected:,} bytes, but data_offsets give it {size:,}"
        )
    return TensorEntry(path, name, dtype, tuple(shape), start + offsets[0], size)


def is_size_list(value: Any) -> TypeGuard[list[int]]:
    """Return whether a value of the header is a list of integers from 0 to 2^63 - 1."""
    return isinstance(value, list) and all(
        isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 63
        for size in value
    )


def printable_name(text: str) -> str:
    """Return a name that is safe to print in one line."""
    return text if text.isprintable() and len(text) <= 200 else format_json(text)


# --- the numbers ---


class TensorReader:
    """Read tensors one at a time into one buffer.

    What `read` returns is valid until the next `read`.
    """

    def __init__(self, largest: int):
        """`largest` is the size of the buffer in bytes."""
        self.buffer = aligned_zeros((largest,), np.uint8)
        self.path: Path | None = None
        self.file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def read(self, entry: TensorEntry) -> np.ndarray:
        """Return a tensor of floats in the shape and dtype of the file, without a copy."""
        self.read_bytes(entry, 0, entry.size, self.buffer)
        return self.buffer[: entry.size].view(FLOAT_DTYPES[entry.dtype]).reshape(entry.shape)

    def read_bytes(
        self, entry: TensorEntry, offset: int, size: int, into: np.ndarray
    ) -> np.ndarray:
        """Read `size` bytes of a tensor from `offset` on to the start of `into`; return them."""
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
                    raise entry.error("the file ends before it: it was changed while it was read")
                done += count
        except OSError as error:
            raise UserError(f"{entry.path}: can't be read: {error.strerror}") from None
        return into[:size]

    def read_chunks(self, entry: TensorEntry, into: np.ndarray) -> Iterable[np.ndarray]:
        """Yield the bytes of a tensor in pieces that fit `into`."""
        for offset in range(0, entry.size, len(into)):
            yield self.read_bytes(entry, offset, min(len(into), entry.size - offset), into)


def has_nonzero(entry: TensorEntry) -> bool:
    """Return whether a tensor has a value other than 0 (-0.0 counts as 0)."""
    with TensorReader(0) as reader:
        for chunk in reader.read_chunks(entry, aligned_zeros((CHUNK_BYTES,), np.uint8)):
            values = chunk.view(FLOAT_DTYPES[entry.dtype]) if entry.dtype in FLOAT_DTYPES else chunk
            if values.any():
                return True
    return False


def equal_tensors(one: TensorEntry, other: TensorEntry) -> bool:
    """Return whether two tensors are the same, bit by bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with TensorReader(0) as first, TensorReader(0) as second:
        buffers = aligned_zeros((2, CHUNK_BYTES), np.uint8)
        chunks = zip(
            first.read_chunks(one, buffers[0]), second.read_chunks(other, buffers[1]), strict=True
        )
        return all(np.array_equal(a, b) for a, b in chunks)


def aligned_zeros(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Return zeros at a multiple of 64 bytes, where JAX on a CPU takes them over without a copy.

    Pages use no memory until they are written.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset : offset + size].view(dtype).reshape(shape)
