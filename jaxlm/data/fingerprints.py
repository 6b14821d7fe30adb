"""Hash the files of a source, without reading unchanged files again."""

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

from jaxlm.config import SourceConfig, UserError
from jaxlm.data.documents import FIRST_SOURCE, SourceKeys
from jaxlm.data.formats import JSON_LINES, find_mark, format_by_name, is_json_lines
from jaxlm.data.listing import base_folder, list_files
from jaxlm.data.readers.token_files import add_indexes
from jaxlm.data.remote_files import RemoteFile, SourceFile
from jaxlm.files import strip_byte_order_mark, write_atomically

SETTLED_NANOSECONDS = 2_000_000_000
HEAD_BYTES = 4096
BLOCK_BYTES = 1 << 20
LINE_COUNT_BYTES = 1 << 26  # lines of a file are counted up to each multiple, for its division
UNREADABLE = "unreadable"  # in place of a hash


class FileHash(NamedTuple):
    """The result of reading a file once."""

    hash: str  # SHA-256 of the content
    # Of a file of more than twice LINE_COUNT_BYTES: the newlines before each multiple of these.
    newlines: tuple[int, ...] = ()


class SourceFingerprint(NamedTuple):
    """Hash of the text of a source, and where lines of its large files begin."""

    hash: str
    newlines: dict[str, tuple[int, ...]]  # of large files, by path


def fingerprint_source(
    source: SourceConfig, cache_path: Path, keys: SourceKeys = FIRST_SOURCE, skips: bool = False
) -> SourceFingerprint:
    """Return the SHA-256 of the names and contents of a source's files, as they are read.

    A file that can't be read is an error, or with `skips` one without content.

    `cache_path` (JSON) remembers the hash of each file by path, size and time of change. It may be
    missing, and is left alone where it can't be written.
    """
    paths = list_files(source, keys)
    if source.format == "tokens":
        paths = add_indexes(paths)
    base, known = base_folder(source), read_cache(cache_path)
    new: dict[str, list] = {}
    digest, newlines = hashlib.sha256(), {}
    for path in paths:
        try:
            content_hash, counts = hash_file(path, known, new)
            if counts:
                newlines[str(path)] = counts
            prefix = once_plain_text(path) if source.format == "auto" else ""
        except OSError as error:
            if not skips:
                raise UserError(f"{path}: {error.strerror}") from error
            prefix, content_hash = "", UNREADABLE
        line = f"{prefix}{path.relative_to(base).as_posix()}\0{content_hash}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))

    if new:
        with contextlib.suppress(OSError):
            cache_path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cache_path, json.dumps(known | new))
    return SourceFingerprint(digest.hexdigest(), newlines)


def once_plain_text(path: SourceFile) -> str:
    """Return a prefix for the name of a file that earlier versions read as plain text, or "".

    Their stores then have another name than those that are built of it now.
    """
    if isinstance(path, RemoteFile):  # which earlier versions could not read
        return ""
    if is_json_lines(path) and path.suffix not in JSON_LINES:
        return "JSON lines\0"
    kind = format_by_name(path)
    if kind not in ("warc", "wikipedia"):
        return ""
    with path.open("rb") as file:
        is_marked = find_mark(file.read(HEAD_BYTES)) == kind  # compressed files were refused
    return f"{kind}\0" if is_marked else ""


def hash_file(path: SourceFile, known: dict, new: dict) -> FileHash:
    """Return the hash of a file, from `known` if its size and time of change are the same.

    A leading byte order mark does not count, since it is not read. A hash that was computed is
    added to `new`. Raises OSError.
    """
    if isinstance(path, RemoteFile):
        return FileHash(path.content_mark())
    key = str(path.absolute())
    status = path.stat()
    state = [status.st_size, status.st_mtime_ns]
    is_large = status.st_size > 2 * LINE_COUNT_BYTES
    entry = known.get(key)
    if isinstance(entry, list) and entry[:2] == state and len(entry) == 3 + is_large:
        return FileHash(entry[2], tuple(*entry[3:]))

    found = read_hash(path, is_large)
    # A file that changed just now may change again within the clock's resolution, so its hash is
    # not remembered.
    if time.time_ns() - status.st_mtime_ns > SETTLED_NANOSECONDS:
        new[key] = [*state, found.hash, *([list(found.newlines)] if is_large else [])]
    return found


def read_hash(path: Path, counts_lines: bool) -> FileHash:
    """Return the hash of a file, and its newlines where they count. Raises OSError."""
    digest, newlines, count, size = hashlib.sha256(), [], 0, 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block if size else strip_byte_order_mark(block))
            if counts_lines:
                if size % LINE_COUNT_BYTES == 0:
                    newlines.append(count)
                count += block.count(b"\n")
            size += len(block)
    return FileHash(digest.hexdigest(), tuple(newlines))


def read_cache(path: Path) -> dict:
    """Return the remembered hashes; none if the file is missing or damaged."""
    try:
        cache = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return cache if isinstance(cache, dict) else {}
