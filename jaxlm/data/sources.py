"""Read documents from files: text, JSON lines, pairs, or the Python standard library.

Documents are read one at a time, whatever the size of the corpus.
"""

import contextlib
import functools
import glob
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.config import ConfigError, SourceConfig, UserError
from jaxlm.config.fields import suggestion
from jaxlm.data.formats import check_json_lines, check_plain_text, describe_binary, is_json_lines
from jaxlm.files import expand_home, strip_byte_order_mark

# Parts of the standard library that are left out: what distributions package separately (test
# suites, editors, demos) and what the build of Python wrote.
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
MOST_SHOWN = 20  # keys of a JSON object in a message
STDLIB_EXCLUDED_STARTS = ("config-", "_sysconfigdata", "sitecustomize")


class Document(NamedTuple):
    """A text, or a pair of texts, and where it comes from."""

    name: str  # path relative to the source; for JSON lines with `:LINE`
    text: str  # of a pair: the source
    target: str | None = None  # of a pair

    @property
    def texts(self) -> tuple[str, ...]:
        """The text, or source and target."""
        return (self.text,) if self.target is None else (self.text, self.target)


class SourceKeys(NamedTuple):
    """The names under which the user sets the fields of a source, for messages."""

    path: str
    section: str | None  # None: the fields are options of a command

    def field(self, name: str) -> str:
        """Return the name of a field beside the path."""
        return f"--{name.replace('_', '-')}" if self.section is None else f"{self.section}.{name}"

    def setting(self, name: str, value: str) -> str:
        """Return how a field is set to a value."""
        return f"{self.field(name)}{' ' if self.section is None else '='}{value}"


FIRST_SOURCE = SourceKeys("data.sources.0.path", "data.sources.0")
COMMAND_OPTIONS = SourceKeys("--data", None)


def read_documents(source: SourceConfig, keys: SourceKeys = FIRST_SOURCE) -> Iterator[Document]:
    """Yield the documents of a source in the order of its files.

    Empty documents are skipped; one of the two texts of a pair may be empty. Raises `UserError`
    naming the file and the line or byte at fault, `ConfigError` at `keys.path` if there are no
    files.
    """
    paths = list_files(source, keys)
    base = base_folder(source)
    for path in paths:
        name = path.relative_to(base).as_posix()
        if source.format == "pairs":
            documents = read_json_pairs(path, name, source, keys)
        elif source.format == "jsonl" or (source.format == "auto" and is_json_lines(path)):
            documents = read_json_documents(path, name, source, keys)
        elif source.format == "python_stdlib":
            documents = read_stdlib_module(path, name)
        else:
            documents = read_text_document(path, name, source, keys)

        yield from (document for document in documents if any(document.texts))


# Files


def list_files(source: SourceConfig, keys: SourceKeys = FIRST_SOURCE) -> list[Path]:
    """Return the files of a source, sorted; a folder gives every file below it that is not hidden.

    Raises `ConfigError` at `keys.path` if there are none.
    """
    if source.path is None:
        modules = walk_files(stdlib_folder(), is_excluded_from_stdlib)
        return [path for path in modules if path.suffix == ".py"]

    path = expand_home(source.path)
    try:
        if path.is_dir():
            paths = walk_files(path)
        elif path.exists():
            paths = [path]
        else:
            names = glob.glob(str(path), recursive=True)  # noqa: PTH207
            paths = sorted(Path(name) for name in names if Path(name).is_file())

        if not paths:
            reason = "holds no files" if path.is_dir() else "no such file" + suggest_file(path)
            raise ConfigError(keys.path, f"{source.path}: {reason}")
        if paths == [path] and not path.is_file():
            raise ConfigError(keys.path, f"{source.path}: is no regular file, which is read twice")
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise ConfigError(keys.path, f"{source.path}: {error.strerror}") from error
    return paths


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden."""
    return name.startswith(".")


def is_excluded_from_stdlib(name: str) -> bool:
    """Return whether a file or folder of the standard library is left out."""
    return name in STDLIB_EXCLUDED or name.startswith(STDLIB_EXCLUDED_STARTS)


def walk_files(folder: Path, is_excluded: Callable[[str], bool] = is_hidden) -> list[Path]:
    """Return the regular files below `folder`, sorted.

    Files and whole folders whose name `is_excluded` are left out.
    """
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_excluded(name)]
        paths += [Path(parent, name) for name in names if not is_excluded(name)]
    return sorted(path for path in paths if path.is_file())


def suggest_file(path: Path) -> str:
    """Return ' (did you mean X?)' if a file of nearly that name is in the same folder."""
    try:
        return suggestion(path.name, [neighbour.name for neighbour in path.parent.iterdir()])
    except OSError:
        return ""


def stdlib_folder() -> Path:
    """Return the folder of the Python standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def base_folder(source: SourceConfig) -> Path:
    """Return the folder that the names of a source's documents are relative to.

    It is the source's own folder, or the part of a glob before the first wildcard.
    """
    if source.path is None:
        return stdlib_folder()
    path = expand_home(source.path)
    if path.is_dir():
        return path

    folder = path.parent
    while glob.has_magic(str(folder)) and not folder.is_dir():
        folder = folder.parent
    return folder


# Formats


def read_bytes(path: Path) -> bytes:
    """Return the content of a file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def decode_utf8(data: bytes, place: str) -> str:
    """Return UTF-8 text, with newlines as they are; errors name `place` (FILE or FILE:LINE)."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        binary = describe_binary(data)
        if binary:
            raise UserError(f"{place}: {binary}") from error
        raise UserError(
            f"{place}: not UTF-8 at byte {error.start:,} (0x{data[error.start]:02x})"
        ) from error


def read_stdlib_module(path: Path, name: str) -> Iterator[Document]:
    """Yield the text of a module; nothing if it has another encoding than UTF-8."""
    with contextlib.suppress(UnicodeDecodeError):
        yield Document(name, read_bytes(path).decode())


def read_text_document(
    path: Path, name: str, source: SourceConfig, keys: SourceKeys
) -> Iterator[Document]:
    """Yield the text of a file.

    A file that looks like another format is only read as text if the source says so.
    """
    data = strip_byte_order_mark(read_bytes(path))
    if source.format == "auto":
        check_plain_text(
            path, data, keys.setting("format", "jsonl"), keys.setting("format", "text")
        )
    yield Document(name, decode_utf8(data, str(path)))


def read_json_documents(
    path: Path, name: str, source: SourceConfig, keys: SourceKeys
) -> Iterator[Document]:
    """Yield the documents of a JSON lines file."""
    for number, values in read_json_lines(path, (source.text_key,)):
        text = json_string(values, f"{path}:{number}", "text_key", source.text_key, keys)
        yield Document(f"{name}:{number}", text)


def read_json_pairs(
    path: Path, name: str, source: SourceConfig, keys: SourceKeys
) -> Iterator[Document]:
    """Yield the pairs of a JSON lines file."""
    for number, values in read_json_lines(path, (source.source_key, source.target_key)):
        place = f"{path}:{number}"
        source_text = json_string(values, place, "source_key", source.source_key, keys)
        target_text = json_string(values, place, "target_key", source.target_key, keys)
        yield Document(f"{name}:{number}", source_text, target_text)


def read_json_lines(path: Path, names: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
    """Yield (line number, object) of a JSON lines file; blank lines are skipped.

    `names` are the keys that are read: none of them may stand in an object twice.
    """
    try:
        with path.open("rb") as lines:
            check_json_lines(path, lines.peek(16))
            for number, line in enumerate(lines, start=1):
                if number == 1:
                    line = strip_byte_order_mark(line)
                if line.strip():
                    yield number, parse_json_object(line, f"{path}:{number}", names)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def parse_json_object(line: bytes, place: str, names: tuple[str, ...]) -> dict:
    """Return the JSON object on a line; errors name `place`."""
    try:
        # Only a line that has the name of a key twice is worth the slower look at all pairs.
        has_twice = any(line.count(json.dumps(name).encode()) > 1 for name in names)
        hook = functools.partial(unique_names, names, place) if has_twice else None
        values = json.loads(decode_utf8(line, place), object_pairs_hook=hook)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise UserError(f"{place}: not JSON: nested too deeply") from error
    except ValueError as error:
        reason = "not JSON that can be read: a number has too many digits"
        raise UserError(f"{place}: {reason}") from error

    if not isinstance(values, dict):
        raise UserError(f"{place}: must be a JSON object, got {type(values).__name__}")
    return values


def unique_names(names: tuple[str, ...], place: str, pairs: list[tuple[str, Any]]) -> dict:
    """Return a JSON object as a dict. Raises UserError if one of `names` stands in it twice."""
    found = [name for name, _ in pairs]
    for name in names:
        if found.count(name) > 1:
            raise UserError(f"{place}: the key {name!r} stands twice in one object")
    return dict(pairs)


def json_string(values: dict, place: str, field: str, key: str, keys: SourceKeys) -> str:
    """Return the string under `key`, which the `field` of the source names."""
    if key not in values:
        names = list(values)
        known = ", ".join(map(repr, names[:MOST_SHOWN])) or "none"
        known += f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
        near = suggestion(key, names) or f" (it has {known})"
        role = f"names the key of the {field.removesuffix('_key')}"
        raise UserError(f"{place}: no key {key!r}{near}; {keys.field(field)} {role}")

    text = values[key]
    if not isinstance(text, str):
        raise UserError(f"{place}: {key!r} must be a string, got {type(text).__name__}")
    if not text.isascii():
        check_unicode(text, place)
    return text


def check_unicode(text: str, place: str) -> None:
    """Refuse half of a surrogate pair, which JSON can spell (\\ud800) but UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: half a surrogate pair at character {error.start:,}, "
            "which is not Unicode text"
        ) from error
