"""Read the texts that are to be classified, from files or standard input. Imports no jax."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.config import UserError
from jaxlm.config.fields import list_names, suggestion
from jaxlm.input_text import STDIN, check_spelling, parse_json_line, read_input

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = {".csv": ",", ".tsv": "\t"}
MOST_BYTES = 1 << 28  # of a file or standard input, which may have no end
MOST_SHOWN = 40  # characters of a wrong value, in an error


class InputKeys(NamedTuple):
    """The keys, or columns, of a record."""

    text: str = "text"
    pair: str | None = None  # None: "pair", where a record has it
    tokens: str = "tokens"


class TextInput(NamedTuple):
    """A text, or a pair of texts, to be classified; or its words, whose labels are asked for."""

    place: str  # FILE:LINE
    text: str
    pair: str | None = None
    words: tuple[str, ...] = ()


class Line(NamedTuple):
    """A record, or a line of plain text."""

    place: str
    content: dict[str, Any] | str


def read_lines(name: str) -> list[Line]:
    """Return the records of a file, or of standard input for -. UserError if there are none.

    Files are JSON lines or tables with a header by their names, else plain text with a text on each
    line; standard input is JSON lines if its first line is an object. Blank lines are left out.
    """
    text = read_input(name, "--texts", MOST_BYTES)
    source = "stdin" if name == STDIN else name
    suffix = Path(name).suffix.lower()
    if suffix in TABLE_SUFFIXES:
        lines = list(read_table(text, source, TABLE_SUFFIXES[suffix]))
    else:
        numbered = [
            (f"{source}:{number}", line.removesuffix("\r"))
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip()
        ]
        is_json = suffix in JSON_SUFFIXES
        if name == STDIN and numbered:
            is_json = is_object(numbered[0][1])
        lines = [
            Line(place, parse_object(line, place) if is_json else line) for place, line in numbered
        ]
    if not lines:
        raise UserError(f"--texts: {source}: holds no texts")
    return lines


def read_table(text: str, source: str, delimiter: str) -> Iterator[Line]:
    """Yield the rows of a table, whose first one names the columns."""
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    csv.field_size_limit(MOST_BYTES)
    try:
        for row in reader:
            place = f"{source}:{reader.line_num}"
            if None in row:
                raise UserError(f"{place}: has more fields than the header names columns")
            yield Line(place, dict(row))
    except csv.Error as error:
        raise UserError(f"{source}:{reader.line_num}: is no row of a table: {error}") from error


def is_object(line: str) -> bool:
    """Return whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def parse_object(line: str, place: str) -> dict[str, Any]:
    """Return the JSON object of a line."""
    record = parse_json_line(line, place)
    if not isinstance(record, dict):
        shown = json.dumps(record)[:MOST_SHOWN]
        raise UserError(f'{place}: must be a JSON object such as {{"text": ...}}, got {shown}')
    return record


def build_inputs(lines: list[Line], keys: InputKeys, *, of_tokens: bool) -> list[TextInput]:
    """Return what the lines have to be classified: texts, or words with `of_tokens`.

    The words of a text without a list of them are what white space divides. Raises UserError naming
    file, line and key.
    """
    build = build_words if of_tokens else build_text
    return [build(line, keys) for line in lines]


def build_text(line: Line, keys: InputKeys) -> TextInput:
    """Return a text, or a pair of texts."""
    place, content = line
    if isinstance(content, str):
        return TextInput(place, check_text(content, place))

    text = read_string(content, keys.text, "--text-key", place)
    pair = None
    if keys.pair is not None or content.get("pair") is not None:
        pair = read_string(content, keys.pair or "pair", "--pair-key", place)
    return TextInput(place, text, pair)


def build_words(line: Line, keys: InputKeys) -> TextInput:
    """Return the words of a text."""
    place, content = line
    if isinstance(content, str):
        text = check_text(content, place)
        return TextInput(place, text, words=tuple(text.split()))

    if keys.tokens not in content and keys.text in content:
        text = read_string(content, keys.text, "--text-key", place)
        return TextInput(place, text, words=tuple(text.split()))

    words = read_value(content, keys.tokens, "--tokens-key", place)
    words = words.split() if isinstance(words, str) else words
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{place}: {keys.tokens!r}: must be a list of strings")
    for word in words:
        check_text(word, f"{place}: {keys.tokens!r}")
    return TextInput(place, " ".join(words), words=tuple(words))


def read_string(record: dict[str, Any], key: str, option: str, place: str) -> str:
    """Return the string of a record at a key; `option` names the key."""
    value = read_value(record, key, option, place)
    if not isinstance(value, str):
        raise UserError(f"{place}: {key!r}: must be a string, got {type(value).__name__}")
    return check_text(value, f"{place}: {key!r}")


def read_value(record: dict[str, Any], key: str, option: str, place: str) -> Any:
    """Return the value of a record at a key."""
    if key not in record:
        names = list(record)
        near = suggestion(key, names) or f" (it has {list_names(names)})"
        raise UserError(f"{place}: no key {key!r}{near}; {option} names another")
    return record[key]


def check_text(text: str, place: str) -> str:
    """Return a text that is Unicode."""
    check_spelling(text, place)
    return text
