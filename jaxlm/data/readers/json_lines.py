"""Read JSON lines: an object on each line."""

import functools
import json
from collections.abc import Iterator
from typing import Any

from jaxlm.config import UserError
from jaxlm.data.documents import Columns, FilePart, Record
from jaxlm.data.formats import check_json_lines
from jaxlm.data.readers.streams import open_stream, read_lines, too_long
from jaxlm.data.readers.text import decode_utf8
from jaxlm.data.remote_files import SourceFile
from jaxlm.files import strip_byte_order_mark


def read_json_lines(
    path: SourceFile, columns: Columns, part: FilePart | None = None
) -> Iterator[Record | UserError]:
    """Yield the objects of a JSON lines file, or what is wrong with a line; blank ones are skipped.

    None of the keys that are read may stand in an object twice. Of a file that is not compressed a
    `part` can be read alone.
    """
    with open_stream(path) as stream:
        for number, line in read_lines(stream, part or FilePart(path)):
            place = f"{path}:{number}"
            if line is None:
                yield too_long(place)
                continue

            if number == 1:
                line = strip_byte_order_mark(line)
                check_json_lines(path, line)
            if line.strip():
                try:
                    record = Record(number, parse_json_object(line, place, columns.names))
                except UserError as error:
                    yield error
                else:
                    yield record


def parse_json_object(line: bytes, place: str, names: tuple[str, ...]) -> dict:
    """Return the JSON object on a line; errors name `place`."""
    try:
        # Only a line that has the name of a key twice is worth the slower look at all pairs.
        has_twice = any(line.count(json.dumps(name).encode()) > 1 for name in names)
        hook = functools.partial(unique_names, names, place) if has_twice else None
        fields = json.loads(decode_utf8(line, place), object_pairs_hook=hook)
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at")  # "Invalid control character at"
        raise UserError(f"{place}: not JSON: {reason} at column {error.colno}") from error
    except RecursionError as error:
        raise UserError(f"{place}: not JSON: nested too deeply") from error
    except ValueError as error:
        reason = "not JSON that can be read: a number has too many digits"
        raise UserError(f"{place}: {reason}") from error

    if not isinstance(fields, dict):
        raise UserError(f"{place}: must be a JSON object, got {type(fields).__name__}")
    return fields


def unique_names(names: tuple[str, ...], place: str, pairs: list[tuple[str, Any]]) -> dict:
    """Return a JSON object as a dict. Raises UserError if one of `names` stands in it twice."""
    found = [name for name, _ in pairs]
    for name in names:
        if found.count(name) > 1:
            raise UserError(f"{place}: the key {name!r} stands twice in one object")
    return dict(pairs)
