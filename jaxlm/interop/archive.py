"""model.tar.gz: an exported directory in the form that the Hugging Face containers of SageMaker read."""

import contextlib
import gzip
import os
import tarfile
from pathlib import Path

from jaxlm.config import UserError

FILE = "model.tar.gz"
FASTEST = 1  # of gzip: numbers of weights hardly shrink


def pack(directory: Path) -> Path:
    """Writes the directory's files, without hidden ones, into its model.tar.gz: all at the root of the archive, sorted by name.

    The same files give the same bytes: times are 0 and the owner is root. The archive appears under its name when it is whole.
    """
    target = directory / FILE
    partial = directory / f".{FILE}.{os.getpid()}"
    files = sorted(
        path
        for path in directory.iterdir()
        if path.is_file() and path != target and not path.name.startswith(".")
    )
    try:
        with partial.open("wb") as raw:
            with (
                gzip.GzipFile("", "wb", FASTEST, raw, mtime=0) as packed,
                tarfile.open(fileobj=packed, mode="w|") as archive,
            ):
                for path in files:
                    with path.open("rb") as content:
                        archive.addfile(
                            entry(path.name, os.fstat(content.fileno()).st_size), content
                        )
            raw.flush()
            os.fsync(raw.fileno())
        partial.replace(target)
    except OSError as error:
        raise UserError(f"{target}: can't be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return target


def entry(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    info.uid, info.gid, info.uname, info.gname = 0, 0, "root", "root"
    return info
