"""Tell the formats in which people keep text by the content of a file and by its name."""

import json
import re

from jaxlm.config import UserError
from jaxlm.config.fields import list_names
from jaxlm.data.documents import SourceKeys
from jaxlm.data.remote_files import SourceFile

JSON_LINES = (".jsonl", ".ndjson")
BY_SUFFIX = {
    **dict.fromkeys(JSON_LINES, "jsonl"),
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".warc": "warc",
    ".wet": "warc",
    ".xml": "wikipedia",
}
COMPRESSED = (".gz", ".zst", ".zstd", ".xz", ".bz2")

FIRST_CHARACTER = re.compile(rb"\S")
ARRAY_OF_OBJECTS = re.compile(rb"\[\s*\{")
CONVERT = "convert it to JSON lines first"
UNPACK = "unpack it first"
# The first bytes of a file that is not read -> what it is, and what to do.
BINARY = (
    (b"\x04\x22\x4d\x18", "LZ4", UNPACK),
    (b"PK\x03\x04", "zip", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip", UNPACK),
    (b"\x93NUMPY", "NumPy", CONVERT),
    (b"SQLite format 3", "SQLite", CONVERT),
    (b"%PDF-", "PDF", "extract its text first"),
)
# Formats that are read, of which a text has no bytes.
MARKED = (
    (re.compile(rb"PAR1[\0-\x1f]"), "parquet"),
    (re.compile(rb"ARROW1\0\0"), "arrow"),
    (re.compile(rb"\xff\xff\xff\xff"), "arrow"),  # the stream of a dataset saved by Hugging Face's
    (re.compile(rb"WARC/[01]\."), "warc"),
    (re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?<mediawiki\b"), "wikipedia"),
)
NAMED = ("jsonl", "csv", "tsv")  # which any text may be: the name decides
TAR = slice(257, 262), b"ustar"


def is_json_lines(path: SourceFile) -> bool:
    """Return whether a file is JSON lines by its name."""
    return path.suffix.lower() in JSON_LINES


def suffix_of(path: SourceFile) -> str:
    """Return the suffix of a name, in lower case, without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def format_by_name(path: SourceFile) -> str:
    """Return the format that the name of a file says."""
    return BY_SUFFIX.get(suffix_of(path), "text")


def describe_binary(head: bytes) -> str:
    """Return what a file that is not UTF-8 is, by its first bytes, or ''."""
    for magic, name, remedy in BINARY:
        if head.startswith(magic):
            return f"is a {name} file, not UTF-8 text: {remedy}"
    if head[TAR[0]] == TAR[1]:
        return f"is a tar archive, not UTF-8 text: {UNPACK}"
    return ""


def find_format(path: SourceFile, head: bytes) -> str | None:
    """Return the format of a file, the key of a reader; None for one that seems to be plain text.

    `head` are the first bytes of its content, decompressed. They count more than the name. Raises
    UserError for a file that is neither text nor readable.
    """
    binary = describe_binary(head)
    if binary:
        raise UserError(f"{path}: {binary}")
    mark = find_mark(head)
    if mark is None and format_by_name(path) in NAMED:
        return format_by_name(path)
    return mark


def find_mark(head: bytes) -> str | None:
    """Return the format whose files begin like that, of which a text has no bytes."""
    return next((name for magic, name in MARKED if magic.match(head)), None)


def find_json(path: SourceFile, head: bytes, text_key: str, keys: SourceKeys) -> str:
    """Return "jsonl" or "text" for a file that seems to be plain text.

    Objects with `text_key` on lines of their own are JSON lines whatever the file is called. Raises
    UserError where they lack it.
    """
    read_text = f"or set {keys.setting('format', 'text')} to read the file as plain text"
    match = FIRST_CHARACTER.search(head)
    start = match.start() if match else len(head)
    fields = parse_object(first_line(head, start)) if head[start : start + 1] == b"{" else None
    if fields and text_key in fields:
        return "jsonl"
    if fields:
        raise UserError(
            f"{path}:1: is a JSON object without the key {text_key!r} (it has "
            f"{list_names(list(fields))}): {keys.field('text_key')} names the key of the text, "
            f"{read_text}"
        )

    if suffix_of(path) == ".json" and ARRAY_OF_OBJECTS.match(head, start):
        reason = f"is a JSON array, not JSON lines: {CONVERT} (one object per line)"
        raise UserError(f"{path}: {reason}, {read_text}")
    return "text"


def find_table(head: bytes) -> str:
    """Return "jsonl", "tsv" or "csv" for records in a file whose name doesn't say it."""
    match = FIRST_CHARACTER.search(head)
    line = first_line(head, match.start() if match else len(head))
    if line.startswith(b"{"):
        return "jsonl"
    return "tsv" if b"\t" in line else "csv" if b"," in line else "jsonl"


def check_json_lines(path: SourceFile, head: bytes) -> None:
    """Raise UserError if a file of JSON lines begins like a file of another format."""
    binary = describe_binary(head)
    if binary:
        raise UserError(f"{path}: {binary}")
    name = find_mark(head)
    if name is not None:
        raise UserError(f"{path}: is a {name.capitalize()} file, not JSON lines")


def first_line(data: bytes, start: int) -> bytes:
    """Return the line of `data` that begins at `start`."""
    end = data.find(b"\n", start)
    return data[start : end if end >= 0 else len(data)]


def parse_object(line: bytes) -> dict | None:
    """Return a line as a JSON object with keys; None if it is none."""
    line = line.strip()
    if not (line.startswith(b"{") and line.endswith(b"}")):
        return None
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) and fields else None
