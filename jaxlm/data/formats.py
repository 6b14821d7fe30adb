"""Tell plain text and JSON lines from the other formats in which people keep text."""

import json
import re
from pathlib import Path

from jaxlm.config import UserError

JSON_LINES = (".jsonl", ".ndjson")
TABLES = {".csv": "CSV", ".tsv": "TSV"}

UNPACK = "unpack it first"
FIRST_CHARACTER = re.compile(rb"\S")
ARRAY_OF_OBJECTS = re.compile(rb"\[\s*\{")
CONVERT = "convert it to JSON lines first"
# The first bytes of a file -> what it is, and what to do.
BINARY = (
    (b"\x1f\x8b", "gzip", UNPACK),
    (b"\x28\xb5\x2f\xfd", "Zstandard", UNPACK),
    (b"\xfd7zXZ\x00", "xz", UNPACK),
    (b"BZh", "bzip2", UNPACK),
    (b"\x04\x22\x4d\x18", "LZ4", UNPACK),
    (b"PK\x03\x04", "zip", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip", UNPACK),
    (b"PAR1", "Parquet", CONVERT),
    (b"ARROW1", "Arrow", CONVERT),
    (b"\x93NUMPY", "NumPy", CONVERT),
    (b"SQLite format 3", "SQLite", CONVERT),
    (b"%PDF-", "PDF", "extract its text first"),
)


def is_json_lines(path: Path) -> bool:
    """Return whether a file is JSON lines by its name."""
    return path.suffix.lower() in JSON_LINES


def describe_binary(head: bytes) -> str:
    """Return what a file that is not UTF-8 is, by its first bytes, or ''."""
    for magic, name, remedy in BINARY:
        if head.startswith(magic):
            return f"is a {name} file, not UTF-8 text: {remedy}"
    return ""


def check_json_lines(path: Path, head: bytes) -> None:
    """Raise UserError if a file of JSON lines begins like a file of another format."""
    binary = describe_binary(head)
    if binary:
        raise UserError(f"{path}: {binary}")


def check_plain_text(path: Path, data: bytes, read_lines: str, read_text: str) -> None:
    """Raise UserError if a file that would be read as one text looks like JSON, CSV or TSV.

    `read_lines` and `read_text` are the settings that read it as JSON lines, and as it is.
    """
    suffix = path.suffix.lower()
    if suffix in TABLES:
        reason = f"is a {TABLES[suffix]} file: {CONVERT}"
        raise UserError(f"{path}: {reason}, or set {read_text} to read it as plain text")

    # A text of 100 MB is not copied for its first bytes.
    match = FIRST_CHARACTER.search(data)
    start = match.start() if match else len(data)
    if data[start : start + 1] == b"{" and is_json_object(first_line(data, start)):
        raise UserError(
            f"{path}:1: is a JSON object, but the file would be read as plain text: set "
            f"{read_lines} to read JSON lines, or {read_text} to keep it"
        )

    if suffix == ".json" and ARRAY_OF_OBJECTS.match(data, start):
        reason = f"is a JSON array, not JSON lines: {CONVERT} (one object per line)"
        raise UserError(f"{path}: {reason}, or set {read_text} to read it as plain text")


def first_line(data: bytes, start: int) -> bytes:
    """Return the line of `data` that begins at `start`."""
    end = data.find(b"\n", start)
    return data[start : end if end >= 0 else len(data)]


def is_json_object(line: bytes) -> bool:
    """Return whether a line is a whole JSON object with a key."""
    line = line.strip()
    if not (line.startswith(b"{") and line.endswith(b"}")):
        return False
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and bool(values)
