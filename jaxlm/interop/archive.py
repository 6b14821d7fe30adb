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

    All files are at the root of the archive, sorted by name. The same files give the same bytes:
    times are 0 and the owner is root. UserError where it can't be written.
    """
    target = directory / ARCHIVE_FILE
    files = sorted(
        path
        for path in directory.iterdir()
        if path.is_file() and path != target and not path.name.startswith(".")
    )
    try:
        with (
            atomic_writer(target) as raw,
            gzip.GzipFile("", "wb", FASTEST_GZIP, raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w|") as archive,
        ):
            for path in files:
                with path.open("rb") as content:
                    size = os.fstat(content.fileno()).st_size
                    archive.addfile(archive_entry(path.name, size), content)
    except OSError as error:
        raise UserError(f"{target}: can't be written: {error.strerror or error}") from error

    return target


def archive_entry(name: str, size: int) -> tarfile.TarInfo:
    """Return the header of a file without anything that depends on the machine."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o644, 0
    entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, "root", "root"
    return entry
