"""model.tar.gz: an exported directory as the Hugging Face containers of SageMaker read it."""

import gzip
import os
import tarfile
from pathlib import Path

from jaxlm.config import UserError
from jaxlm.files import atomic_writer

ARCHIVE_FILE = "model.tar.gz"
FASTEST_GZIP = 1  # weights hardly shrink at higher levels


def write_archive(directory: Path) -> Path:
    """Write the directory's files, without hidden ones, into its model.tar.gz; return its path.

    They have the names that they have in the directory, sorted. The same files give the same bytes:
    times are 0 and the owner is root. UserError where it can't be written.
    """
    target = directory / ARCHIVE_FILE
    names = {
        path.relative_to(directory).as_posix(): path
        for path in directory.rglob("*")
        if path.is_file() and path != target
    }
    try:
        with (
            atomic_writer(target) as raw,
            gzip.GzipFile("", "wb", FASTEST_GZIP, raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w|") as archive,
        ):
            for name, path in sorted(names.items()):
                if name.startswith(".") or "/." in name:
                    continue
                with path.open("rb") as content:
                    size = os.fstat(content.fileno()).st_size
                    archive.addfile(archive_entry(name, size), content)
    except OSError as error:
        raise UserError(f"{target}: can't be written: {error.strerror or error}") from error

    return target


def archive_entry(name: str, size: int) -> tarfile.TarInfo:
    """Return the header of a file without anything that depends on the machine."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o644, 0
    entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, "root", "root"
    return entry
