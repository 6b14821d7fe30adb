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


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the content of `path` (text as UTF-8), or leave the file as it was after an error."""
    with atomic_writer(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_output(path: str | Path, content: bytes) -> None:
    """Write a file that a user named: whole, or as it was after an error.

    What is no regular file, such as a pipe, is written directly. Raises OSError.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        target.write_bytes(content)
    else:
        write_atomically(target.resolve(), content)  # a link keeps pointing to the file


def sync(file: BinaryIO) -> None:
    """Wait until everything that was written to `file` is on the disk."""
    file.flush()
    os.fsync(file.fileno())
