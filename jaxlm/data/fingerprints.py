"""Hash the files of a source, without reading unchanged files again."""

import contextlib
import hashlib
import json
import time
from pathlib import Path

from jaxlm.config import SourceConfig, UserError
from jaxlm.data.documents import FIRST_SOURCE, SourceKeys
from jaxlm.data.formats import JSON_LINES, find_format, format_by_name, is_json_lines
from jaxlm.data.listing import base_folder, list_files
from jaxlm.data.readers.streams import read_head
from jaxlm.files import BYTE_ORDER_MARK, write_atomically

SETTLED_NANOSECONDS = 2_000_000_000


def fingerprint_source(
    source: SourceConfig, cache_path: Path, keys: SourceKeys = FIRST_SOURCE
) -> str:
    """Return the SHA-256 of the names and contents of a source's files, as they are read.

    `cache_path` (JSON) remembers the hash of each file by path, size and time of change. It may be
    missing, and is left alone where it can't be written.
    """
    paths = list_files(source, keys)
    base, known = base_folder(source), read_cache(cache_path)
    new: dict[str, list] = {}
    digest = hashlib.sha256()
    for path in paths:
        line = f"{path.relative_to(base).as_posix()}\0{hash_file(path, known, new)}\n"
        if source.format == "auto":
            line = once_plain_text(path) + line
        digest.update(line.encode("utf-8", "surrogateescape"))

    if new:
        with contextlib.suppress(OSError):
            cache_path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cache_path, json.dumps(known | new))
    return digest.hexdigest()


def once_plain_text(path: Path) -> str:
    """Return a prefix for the name of a file that earlier versions read as plain text, or "".

    Their stores then have another name than those that are built of it now.
    """
    if is_json_lines(path) and path.suffix not in JSON_LINES:
        return "JSON lines\0"
    kind = format_by_name(path)
    if kind in ("warc", "wikipedia") and find_format(path, read_head(path)[0]) == kind:
        return f"{kind}\0"
    return ""


def hash_file(path: Path, known: dict, new: dict) -> str:
    """Return the SHA-256 of a file, from `known` if its size and time of change are the same.

    A leading byte order mark does not count, since it is not read.
    A hash that was computed is added to `new`.
    """
    key = str(path.absolute())
    try:
        status = path.stat()
        state = [status.st_size, status.st_mtime_ns]
        entry = known.get(key)
        if isinstance(entry, list) and len(entry) == 3 and entry[:2] == state:
            return entry[2]
        with path.open("rb") as file:
            if file.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
                file.seek(0)
            content_hash = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error

    # A file that changed just now may change again within the clock's resolution, so its hash is
    # not remembered.
    if time.time_ns() - status.st_mtime_ns > SETTLED_NANOSECONDS:
        new[key] = [*state, content_hash]
    return content_hash


def read_cache(path: Path) -> dict:
    """Return the remembered hashes; none if the file is missing or damaged."""
    try:
        cache = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return cache if isinstance(cache, dict) else {}
