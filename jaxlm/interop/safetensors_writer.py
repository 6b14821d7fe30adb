"""Write a Hugging Face directory: weights as a stream, and all files at once."""

import contextlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import UserError
from jaxlm.files import sync
from jaxlm.interop.safetensors_reader import FLOAT_DTYPES, INDEX_FILE, WEIGHTS_FILE

WRITTEN_DTYPES = {**FLOAT_DTYPES, "I8": np.int8, "U8": np.uint8, "I32": np.int32, "I64": np.int64}
WEIGHTS_NAME = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


class TensorSpec(NamedTuple):
    """A tensor that will be written."""

    name: str
    dtype: str  # "F32"
    shape: tuple[int, ...]

    @property
    def numpy_dtype(self) -> np.dtype:
        """Return the dtype of its array."""
        return np.dtype(WRITTEN_DTYPES[self.dtype])

    @property
    def size(self) -> int:
        """Return its bytes."""
        return math.prod(self.shape) * self.numpy_dtype.itemsize


class StagedFiles:
    """Files of a directory that don't have their names yet."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.names: list[str] = []

    def add(self, name: str) -> Path:
        """Return where to write the file that becomes `name`."""
        self.names.append(name)
        return self.temporary_path(name)

    def temporary_path(self, name: str) -> Path:
        """Return the path that a file has until all are written."""
        return self.directory / f".{name}.unfinished"

    def write_json(self, name: str, values: Any) -> None:
        """Add a JSON file."""
        with self.add(name).open("wb") as file:
            file.write(json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n")
            sync(file)


@contextlib.contextmanager
def staged_files(directory: Path) -> Iterator[StagedFiles]:
    """Give files their names at the end of the block, or remove them after an error.

    Weights that an earlier export left in the directory are removed: they would be read instead if
    their number of shards is another one. Raises UserError where the directory can't be written.
    """
    existed = directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: can't be created: {error.strerror}") from None

    files = StagedFiles(directory)
    done = False
    try:
        yield files
        for path in directory.iterdir():
            if WEIGHTS_NAME.fullmatch(path.name) and path.name not in files.names:
                path.unlink()
        for name in files.names:
            files.temporary_path(name).replace(directory / name)
        done = True
    except OSError as error:
        place = error.filename or directory
        raise UserError(f"{place}: can't be written: {error.strerror or error}") from None
    finally:
        if not done:
            with contextlib.suppress(OSError):
                for name in files.names:
                    files.temporary_path(name).unlink(missing_ok=True)
                if not existed:
                    directory.rmdir()


def write_safetensors(
    files: StagedFiles,
    tensors: Sequence[TensorSpec],
    arrays: Iterator[np.ndarray],
    max_shard_bytes: int,
) -> None:
    """Write model.safetensors, or several shards and their index.

    `arrays` yields the numbers of `tensors` in order. A shard has at most `max_shard_bytes`, unless
    a single tensor is larger.
    """
    shards = split_into_shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        write_safetensors_file(files.add(WEIGHTS_FILE), shards[0], arrays)
        return

    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors_file(files.add(name), shard, arrays)
        weight_map |= {tensor.name: name for tensor in shard}
    total_size = sum(tensor.size for tensor in tensors)
    files.write_json(
        INDEX_FILE,
        {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))},
    )


def split_into_shards(
    tensors: Sequence[TensorSpec], max_shard_bytes: int
) -> list[list[TensorSpec]]:
    """Return the tensors in groups of at most `max_shard_bytes`, in their order."""
    shards: list[list[TensorSpec]] = [[]]
    shard_bytes = 0
    for tensor in tensors:
        if shards[-1] and shard_bytes + tensor.size > max_shard_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(tensor)
        shard_bytes += tensor.size
    return shards


def write_safetensors_file(
    path: Path, tensors: Sequence[TensorSpec], arrays: Iterator[np.ndarray]
) -> None:
    """Write one file: the header, then the next array of `arrays` for each tensor."""
    # transformers refuses files without the format.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        if tensor.name in header:
            raise ValueError(f"{tensor.name} would be written twice")
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [position, position + tensor.size],
        }
        position += tensor.size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # the numbers begin at a multiple of 8 bytes

    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in tensors:
            array = next(arrays)
            if (array.shape, array.dtype) != (tensor.shape, tensor.numpy_dtype):
                raise ValueError(
                    f"{tensor.name}: {array.dtype} {array.shape} "
                    f"instead of {tensor.dtype} {tensor.shape}"
                )
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        sync(file)
