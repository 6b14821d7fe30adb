"""Writes a Hugging Face directory: weights as a stream, and nothing under its final name before all of it is there."""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config import UserError
from jaxlm.interop.files import INDEX, SINGLE, Tensor

WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


class Staged:
    """Files of a directory that are not yet under their names."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.names: list[str] = []

    def path(self, name: str) -> Path:
        """Where to write the file `name`."""
        self.names.append(name)
        return self.temporary(name)

    def temporary(self, name: str) -> Path:
        return self.directory / f".{name}.unfinished"

    def json(self, name: str, values: Any) -> None:
        with self.path(name).open("wb") as file:
            file.write(json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n")
            finish(file)


@contextlib.contextmanager
def staged(directory: Path) -> Iterator[Staged]:
    """Files get their names when all of them are written; after an error there is nothing of them left.

    Weights that an earlier export left in the directory go: beside others of another number of shards they would be read instead.
    """
    there = directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: can't be made: {error.strerror}") from None
    files, done = Staged(directory), False
    try:
        yield files
        for path in directory.iterdir():
            if WEIGHTS.fullmatch(path.name) and path.name not in files.names:
                path.unlink()
        for name in files.names:
            files.temporary(name).replace(directory / name)
        done = True
    except OSError as error:
        raise UserError(
            f"{error.filename or directory}: can't be written: {error.strerror or error}"
        ) from None
    finally:
        if not done:
            with contextlib.suppress(OSError):
                for name in files.names:
                    files.temporary(name).unlink(missing_ok=True)
                if not there:
                    directory.rmdir()


def write(
    files: Staged, tensors: Sequence[Tensor], arrays: Iterator[np.ndarray], shard_bytes: int
) -> None:
    """model.safetensors, or shards of at most `shard_bytes` (a larger tensor has one for itself) and their index."""
    shards = split(tensors, shard_bytes)
    names = [
        SINGLE if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
        for i in range(1, len(shards) + 1)
    ]
    for name, shard in zip(names, shards, strict=True):
        write_file(files.path(name), shard, arrays)
    if len(shards) > 1:
        weight_map = {
            tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        total = sum(tensor.size for tensor in tensors)
        files.json(
            INDEX,
            {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
        )


def split(tensors: Sequence[Tensor], shard_bytes: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    held = 0
    for tensor in tensors:
        if shards[-1] and held + tensor.size > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += tensor.size
    return shards


def write_file(path: Path, tensors: Sequence[Tensor], arrays: Iterator[np.ndarray]) -> None:
    """One file: the header first, then each array as it comes."""
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt"}
    }  # transformers refuses files that don't say so
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
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in tensors:
            array = next(arrays)
            if (array.shape, array.dtype) != (tensor.shape, tensor.numpy):
                raise ValueError(
                    f"{tensor.name}: {array.dtype} {array.shape} instead of {tensor.dtype} {tensor.shape}"
                )
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        finish(file)


def finish(file: Any) -> None:
    """A rename must not come to the disk before what it names."""
    file.flush()
    os.fsync(file.fileno())
