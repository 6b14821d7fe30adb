"""Texts that a user hands to a command: a file or standard input, lines of JSON. Imports no jax."""

import json
import sys
from pathlib import Path
from typing import Any

from jaxlm.config import UserError

STDIN = "-"
HALF_A_PAIR = "holds half a surrogate pair, which is no character"


def read_input(name: str, option: str, most_bytes: int) -> str:
    """Return the text of a file, or of standard input for -, without a byte order mark.

    `option` is the one that named it. UserError where it can't be read, is no UTF-8, or has more
    than `most_bytes`: standard input may have no end.
    """
    source = "stdin" if name == STDIN else name
    try:
        if name == STDIN:
            content = sys.stdin.buffer.read(most_bytes + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(most_bytes + 1)
    except OSError as error:
        raise UserError(f"{option}: {name}: {error.strerror}") from error
    if len(content) > most_bytes:
        raise UserError(f"{source}: holds more than {most_bytes:,} bytes; cut it into parts")

    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source}: not UTF-8 (byte {error.start}); texts and JSON lines are read uncompressed"
        ) from error


def parse_json_line(line: str, place: str) -> Any:
    """Return the value of a line of JSON; `place` is its file:line. UserError where it is none."""
    try:
        return json.loads(line)
    except RecursionError as error:
        raise UserError(f"{place}: not JSON: nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{place}: not JSON: {error}") from error


def check_spelling(text: str, place: str, problem: str = HALF_A_PAIR) -> None:
    """Raise UserError for a text that UTF-8 can't spell."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: {problem} (character {error.start + 1:,})") from error
