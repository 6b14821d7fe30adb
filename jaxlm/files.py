"""Files that are either complete or absent."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` once the block ends.

    The bytes are on the disk before the name changes. After an error, or in a killed process,
    `path` is what it was before. Raises OSError where the folder can't be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
            sync(file)

        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def output_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a file that a user named for results: `atomic_writer`, or a pipe or device as it is."""
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
    else:
        with atomic_writer(path) as file:
            yield file


def write_output(path: Path, text: str) -> None:
    """Write a text as UTF-8 by `output_writer`: a file is there as a whole or not at all."""
    with output_writer(path) as file:
        file.write(text.encode())


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the content of `path` (text as UTF-8), or leave the file as it was after an error."""
    with atomic_writer(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync(file: BinaryIO) -> None:
    """Wait until everything that was written to `file` is on the disk."""
    file.flush()
    os.fsync(file.fileno())
