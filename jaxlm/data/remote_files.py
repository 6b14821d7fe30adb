"""Files at URLs (s3://, gs://, hf://, https://, ...), through fsspec.

A `RemoteFile` has the part of pathlib.Path that the readers use. Whatever goes wrong with it is a
`RemoteError`, an OSError, as with a local file: the libraries behind fsspec share no other class.
"""

import contextlib
import errno
import glob
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from jaxlm.config.urls import hide_credentials, url_scheme
from jaxlm.files import BYTE_ORDER_MARK

# Scheme -> the library that its file system needs.
LIBRARIES = {
    "abfs": "adlfs",
    "az": "adlfs",
    "gcs": "gcsfs",
    "gs": "gcsfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "s3a": "s3fs",
    "sftp": "paramiko",
    "ssh": "paramiko",
}
# What file systems say of a file that changes with its content, the surest first. Google gives
# MD5s and generations, Hugging Face the hash that git knows the file by.
MARKS = ("md5Hash", "blob_id", "Content-MD5", "ETag", "etag", "generation")
TIMES = ("mtime", "LastModified", "Last-Modified", "last_modified", "modify")
BUFFER = 1 << 18  # bytes


class RemoteError(OSError):
    """A file system that can't be reached, or a file there that can't be read."""

    def __init__(self, reason: str):
        super().__init__(errno.EIO, reason)


@contextlib.contextmanager
def remote_errors() -> Iterator[None]:
    """Turn any error of a file system's library into a RemoteError of one line."""
    try:
        yield
    except RemoteError:
        raise
    except Exception as error:
        raise RemoteError(describe_error(error)) from error


def describe_error(error: BaseException) -> str:
    """Return what went wrong as a part of a line, without credentials."""
    # The file system of https takes every failure for a missing file, with the true one as cause.
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, FileNotFoundError) or getattr(error, "status", None) == 404:
        return "no such file"

    text = getattr(error, "strerror", None) or str(error)
    lines = hide_credentials(text).split("\n")
    reason = lines[0].strip().rstrip(".")
    if isinstance(error, PermissionError):
        return f"no permission ({reason})" if reason else "no permission"
    name = type(error).__name__
    return f"{name}: {reason}" if reason else name


@dataclass(frozen=True, repr=False)
class RemoteFile:
    """A file of a file system of fsspec. Messages show its URL without credentials."""

    key: str  # the name of the file in its file system
    address: str  # of the file system: the part of the URL before the key
    file_system: Any = field(compare=False)
    info: dict[str, Any] = field(compare=False)

    def __str__(self) -> str:
        return hide_credentials(self.address + self.key.lstrip("/"))

    __repr__ = __str__

    @property
    def path(self) -> PurePosixPath:
        """The key as a path, without the query of a web address."""
        return PurePosixPath(hide_credentials(self.key))

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def suffix(self) -> str:
        return self.path.suffix

    @property
    def suffixes(self) -> list[str]:
        return self.path.suffixes

    @property
    def parent(self) -> PurePosixPath:
        return self.path.parent

    def relative_to(self, folder: str | Path) -> PurePosixPath:
        """Return the name below a folder, which is given by its key without credentials."""
        below = hide_credentials(self.key).removeprefix(str(folder))
        return PurePosixPath(below.lstrip("/"))

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Open the file for reading; it can seek if its file system can. Raises RemoteError."""
        del mode
        with remote_errors():
            file = self.file_system.open(self.key, "rb")
        return io.BufferedReader(RemoteStream(file), BUFFER)

    def content_mark(self) -> str:
        """Return a text that changes with the content, at best without reading it.

        It is the file system's own mark of this version, size and time where there is none, and the
        SHA-256 of the content where there is no such time. Raises RemoteError.
        """
        mark = version_mark(self.info)
        if mark is None:  # a listing may tell less than a question about one file
            with remote_errors():
                mark = version_mark(self.file_system.info(self.key))
        if mark is not None:
            return mark

        with self.open() as file:
            if file.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:  # which is not read
                file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()


SourceFile = Path | RemoteFile


def file_size(path: SourceFile) -> int:
    """Return the bytes of a file; 0 where a file system does not say. Raises OSError."""
    if isinstance(path, RemoteFile):
        return int(path.info.get("size") or 0)
    return path.stat().st_size


def version_mark(info: dict[str, Any]) -> str | None:
    """Return what tells this version of a file from others; None if the file system has nothing."""
    for name in MARKS:
        if info.get(name):
            return f"{name} {info[name]}"
    for name in TIMES:
        if info.get(name) and info.get("size") is not None:
            return f"{name} {info[name]} {info['size']}"
    return None


class RemoteStream(io.RawIOBase):
    """The bytes of an open file of fsspec. Raises RemoteError where they can't be had."""

    def __init__(self, file: Any):
        self.file = file
        self.size = getattr(file, "size", None)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with remote_errors():
            return self.file.seek(offset, whence)

    def tell(self) -> int:
        with remote_errors():
            return self.file.tell()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the bytes at hand go; 0 at the end."""
        position = self.file.tell()
        try:
            with remote_errors():
                data = self.file.read(len(buffer))
        except RemoteError as error:
            raise RemoteError(f"failed at byte {position:,}: {error.strerror}") from error

        if not data and len(buffer) and isinstance(self.size, int) and position < self.size:
            raise RemoteError(f"ended at byte {position:,} of {self.size:,}")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            with contextlib.suppress(Exception):  # nothing was written
                self.file.close()
        super().close()


def connect(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the name in it. Raises RemoteError."""
    scheme = url_scheme(url)
    try:
        import fsspec
    except ImportError as error:
        raise RemoteError('needs fsspec: pip install "jaxlm[data]"') from error

    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError as error:
        raise RemoteError(f"there is no file system for {scheme}://") from error
    except ImportError as error:
        library = LIBRARIES.get(scheme)
        advice = f"{scheme}:// needs {library}: pip install {library}"
        raise RemoteError(advice if library else describe_error(error)) from error
    with remote_errors():
        return fsspec.url_to_fs(url)


def list_remote_files(url: str) -> list[RemoteFile]:
    """Return the files that a URL names, sorted: one, those below a folder, or those of a glob.

    Hidden ones are left out. Raises RemoteError where there are none, or they can't be listed.
    """
    file_system, key = connect(url)
    with remote_errors():
        kind = "directory" if url.endswith("/") else find_type(file_system, key)
        if kind == "directory":
            entries = file_system.find(key, detail=True)
        elif kind is not None:
            entries = {key: file_system.info(key)}
        elif has_wildcard(key):
            entries = file_system.glob(key, detail=True)
        else:
            entries = {}

    address = find_address(url, key)
    files = [
        RemoteFile(name, address, file_system, info)
        for name, info in entries.items()
        if info.get("type", "file") == "file" and not name.endswith("/")
    ]
    if kind != "file":
        base = remote_base(key, kind == "directory")
        files = [file for file in files if not is_hidden_below(file.relative_to(base))]
    if not files:
        raise RemoteError("holds no files" if kind == "directory" else "no such file")
    return sorted(files, key=lambda file: file.path)  # in the order of local files


def find_address(url: str, key: str) -> str:
    """Return the part of a URL before the name in its file system: s3://, sftp://host/."""
    name = key.strip("/")
    start = url.rfind(name) if name else len(url)
    return url[:start] if start >= 0 else f"{url_scheme(url)}://"


def find_type(file_system: Any, key: str) -> str | None:
    """Return "file" or "directory", None where there is nothing of that name."""
    try:
        return "directory" if file_system.info(key).get("type") == "directory" else "file"
    except FileNotFoundError:
        if has_wildcard(key):
            return None
        raise


def has_wildcard(key: str) -> bool:
    """Return whether a key is a glob. At a web address the question mark begins a query."""
    return glob.has_magic(hide_credentials(key))


def remote_base(key: str, is_folder: bool) -> str:
    """Return the key of the folder that the names of files are relative to, without credentials.

    It is the folder itself, or the part of a file's name or of a glob before its last, or its first
    special, part.
    """
    base = hide_credentials(key).rstrip("/")
    if is_folder:
        return base
    base = base.rpartition("/")[0]
    while glob.has_magic(base):
        base = base.rpartition("/")[0]
    return base


def remote_base_folder(url: str) -> str:
    """Return `remote_base` of what a URL names. Raises RemoteError."""
    file_system, key = connect(url)
    with remote_errors():
        is_folder = url.endswith("/") or find_type(file_system, key) == "directory"
    return remote_base(key, is_folder)


def is_hidden_below(name: PurePosixPath) -> bool:
    """Return whether a file, or a folder on its way, is hidden."""
    return any(part.startswith(".") for part in name.parts)
