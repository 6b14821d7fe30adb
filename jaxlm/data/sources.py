"""Documents from files: text, JSON lines, pairs, or the Python standard library. Read one at a time, whatever the corpus's size."""

import contextlib
import glob
import hashlib
import json
import os
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxlm import config
from jaxlm.config.errors import ConfigError, UserError
from jaxlm.config.fields import suggestion

JSON_LINES = (".jsonl", ".ndjson")

# Left out of the standard library: what distributions package apart (test suites, editors, demos) and what the build wrote.
STDLIB_EXCLUDED = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "lib2to3",
    "turtledemo",
}
STDLIB_EXCLUDED_STARTS = ("config-", "_sysconfigdata", "sitecustomize")


class Document(NamedTuple):
    """A text and where it comes from: the path relative to the source, with `:LINE` for JSON lines."""

    name: str
    text: str
    target: str | None = None  # of a pair; the text is then its source

    @property
    def texts(self) -> tuple[str, ...]:
        """The text, or source and target."""
        return (self.text,) if self.target is None else (self.text, self.target)


def files(source: config.SourceConfig, key: str = "data.sources") -> list[Path]:
    """The files of a source, sorted. Folders give every file below them that is not hidden. `ConfigError` at `key` if there are none."""
    if source.path is None:
        return [
            path for path in walk(stdlib_folder(), excluded_from_stdlib) if path.suffix == ".py"
        ]
    path = Path(source.path).expanduser()
    if path.is_dir():
        found = walk(path)
    elif path.exists():
        found = [path]
    else:
        found = sorted(
            Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name)
        )  # noqa: PTH113, PTH207
    if not found:
        raise ConfigError(
            key,
            f"{source.path}: {'holds no files' if path.is_dir() else 'no such file' + near_names(path)}",
        )
    return found


def is_hidden(name: str) -> bool:
    return name.startswith(".")


def excluded_from_stdlib(name: str) -> bool:
    return name in STDLIB_EXCLUDED or name.startswith(STDLIB_EXCLUDED_STARTS)


def walk(folder: Path, excluded: Callable[[str], bool] = is_hidden) -> list[Path]:
    """Regular files below `folder`, sorted, without the names (of files and of whole folders) that are excluded."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not excluded(name)]
        found += [Path(parent, name) for name in names if not excluded(name)]
    return sorted(path for path in found if path.is_file())


def near_names(path: Path) -> str:
    """' (did you mean X?)' for a file of nearly that name beside it."""
    return (
        suggestion(path.name, [p.name for p in path.parent.iterdir()])
        if path.parent.is_dir()
        else ""
    )


def stdlib_folder() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def base_folder(source: config.SourceConfig) -> Path:
    """The folder that names are relative to: the source's own, or the part of its glob before the first wildcard."""
    if source.path is None:
        return stdlib_folder()
    path = Path(source.path).expanduser()
    if path.is_dir():
        return path
    fixed = path.parent
    while glob.has_magic(str(fixed)) and not fixed.is_dir():
        fixed = fixed.parent
    return fixed


def documents(source: config.SourceConfig, key: str = "data.sources") -> Iterator[Document]:
    """The non-empty documents of a source in the order of its files; of pairs, one text may be empty.

    `UserError` names the file and the line or byte at fault.
    """
    base = base_folder(source)
    for path in files(source, key):
        name = path.relative_to(base).as_posix()
        if source.format == "pairs":
            found = json_pairs(path, name, source.source_key, source.target_key)
        elif source.format == "jsonl" or (source.format == "auto" and path.suffix in JSON_LINES):
            found = json_documents(path, name, source.text_key)
        elif source.format == "python_stdlib":
            found = stdlib_documents(path, name)
        else:
            found = iter([Document(name, decoded(read(path), str(path)))])
        yield from (document for document in found if any(document.texts))


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def decoded(data: bytes, place: str) -> str:
    """UTF-8 text, newlines as they are; `place` (a file, or FILE:LINE) is named where it is not."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: not UTF-8 at byte {error.start:,} (0x{data[error.start]:02x})"
        ) from error


def stdlib_documents(path: Path, name: str) -> Iterator[Document]:
    """One module; none if it is written in another encoding."""
    with contextlib.suppress(UnicodeDecodeError):
        yield Document(name, read(path).decode())


def json_documents(path: Path, name: str, text_key: str) -> Iterator[Document]:
    """The documents of a JSON lines file."""
    for number, values in json_lines(path):
        yield Document(
            f"{name}:{number}", json_text(values, f"{path}:{number}", "text_key", text_key)
        )


def json_pairs(path: Path, name: str, source_key: str, target_key: str) -> Iterator[Document]:
    """The pairs of a JSON lines file."""
    for number, values in json_lines(path):
        place = f"{path}:{number}"
        source, target = (
            json_text(values, place, "source_key", source_key),
            json_text(values, place, "target_key", target_key),
        )
        yield Document(f"{name}:{number}", source, target)


def json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, object) of a JSON lines file; blank lines are skipped."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, json_object(line, f"{path}:{number}")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def json_object(line: bytes, place: str) -> dict:
    try:
        values = json.loads(decoded(line, place))
    except (json.JSONDecodeError, RecursionError) as error:
        reason = (
            f"{error.msg} at column {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else "nested too deeply"
        )
        raise UserError(f"{place}: not JSON: {reason}") from error
    if not isinstance(values, dict):
        raise UserError(f"{place}: must be a JSON object, got {type(values).__name__}")
    return values


def json_text(values: dict, place: str, setting: str, key: str) -> str:
    """The text under `key`, which the field `setting` of the source names."""
    if key not in values:
        near = suggestion(key, values) or f" (it has {', '.join(map(repr, values)) or 'none'})"
        raise UserError(
            f"{place}: no key {key!r}{near}; data.sources.{setting} names the key of the {setting.removesuffix('_key')}"
        )
    text = values[key]
    if not isinstance(text, str):
        raise UserError(f"{place}: {key!r} must be a text, got {type(text).__name__}")
    if not text.isascii():
        check_unicode(text, place)
    return text


def check_unicode(text: str, place: str) -> None:
    """JSON can spell half of a surrogate pair (\\ud800), which is no character and has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: half a surrogate pair at character {error.start:,}, which is not Unicode text"
        ) from error


def fingerprint(source: config.SourceConfig, cache_path: Path, key: str = "data.sources") -> str:
    """SHA-256 over the names and contents of the source's files.

    `cache_path` (JSON) remembers the hash of each file by path, size and time of change, so that an unchanged corpus is not read
    again; it may be missing, and is left alone where it can't be written.
    """
    base, known, whole = base_folder(source), load_cache(cache_path), hashlib.sha256()
    fresh = {}
    for path in files(source, key):
        content = file_hash(path, known, fresh)
        whole.update(
            f"{path.relative_to(base).as_posix()}\0{content}\n".encode("utf-8", "surrogateescape")
        )
    if fresh:
        save_cache(cache_path, known | fresh)
    return whole.hexdigest()


def file_hash(path: Path, known: dict, fresh: dict) -> str:
    """SHA-256 of a file, from `known` where its size and time of change are the same; new ones are added to `fresh`."""
    place = str(path.absolute())
    try:
        status = path.stat()
        state = [status.st_size, status.st_mtime_ns]
        entry = known.get(place)
        if isinstance(entry, list) and len(entry) == 3 and entry[:2] == state:
            return entry[2]
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    # A file that changed just now may change again within the clock's resolution: not remembered.
    if time.time_ns() - status.st_mtime_ns > 2_000_000_000:
        fresh[place] = [*state, content]
    return content


def load_cache(path: Path) -> dict:
    try:
        cache = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return cache if isinstance(cache, dict) else {}


def save_cache(path: Path, cache: dict) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(cache))
        temporary.replace(path)
