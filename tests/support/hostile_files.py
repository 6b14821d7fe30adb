"""Files that a reader may meet and can't read, or not wholly: what it says, and what it keeps."""

import bz2
import gzip
import io
import lzma

import pytest


def zstandard_compress(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


def parquet_bytes(columns: dict) -> bytes:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    parquet.write_table(arrow.table(columns), buffer)
    return buffer.getvalue()


def arrow_bytes(columns: dict) -> bytes:
    arrow, ipc = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.ipc")
    table, buffer = arrow.table(columns), io.BytesIO()
    with ipc.new_file(buffer, table.schema) as file:
        file.write_table(table)
    return buffer.getvalue()


def warc_record(text: bytes, length: int | None = None) -> bytes:
    """Return a page of a WET file; `length` is what it says of its size."""
    pytest.importorskip("warcio")
    head = f"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: {length or len(text)}\r\n\r\n"
    return head.encode() + text + b"\r\n\r\n"


def dump(markup: bytes, end: bytes = b"</mediawiki>") -> bytes:
    """Return a MediaWiki dump of one page."""
    pytest.importorskip("mwparserfromhell")
    return b"<mediawiki><page><ns>0</ns><text>" + markup + b"</text></page>" + end


def damaged_row() -> bytes:
    """Return a Parquet file of three rows, of which the second is not UTF-8."""
    data = parquet_bytes({"text": ["good", "b\xe9d", "good"]})
    return data.replace("\xe9".encode(), b"\xff\xff")


GOOD = b'{"text": "good"}\n'
LONG = 1 << 16  # as many bytes as a record of these tests may have
DEEP = b'{"text": ' * 5_000
# name: (file, content or a function of nothing, what the error says, texts that are kept)
HOSTILE = {
    "broken UTF-8": ("a.txt", b"caf\xe9", "a.txt: not UTF-8 at byte 3", []),
    "broken UTF-8 in JSON": ("a.jsonl", b'{"text": "\xe9"}\n' + GOOD, "a.jsonl:1: not UTF-8", 1),
    "UTF-16": ("a.txt", "text".encode("utf-16"), "a.txt: is UTF-16 text", []),
    "NUL in a text": ("a.txt", b"a\0b", None, ["a\0b"]),
    "NUL in JSON": ("a.jsonl", b'{"text": "a\0b"}\n' + GOOD, "a.jsonl:1: not JSON", 1),
    "NUL in CSV": ("a.csv", b"text\na\0b\n", None, ["a\0b"]),
    "byte order mark": ("a.jsonl", b"\xef\xbb\xbf" + GOOD, None, 1),
    "carriage returns": ("a.jsonl", GOOD.replace(b"\n", b"\r\n") * 2, None, 2),
    "carriage returns in CSV": ("a.csv", b"text\r\ngood\r\n", None, 1),
    "carriage returns alone": ("a.jsonl", b'{"text": "a"}\r' * 2, "a.jsonl:1: not JSON", []),
    "huge line": ("a.jsonl", b'{"text": "' + b"x" * LONG + b'"}\n' + GOOD, "a.jsonl:1: longer", 1),
    "huge CSV field": ("a.csv", b"text\n" + b"x" * LONG + b"\ngood\n", "a.csv:2: longer than", 1),
    "empty file": ("a.txt", b"", None, []),
    "empty JSON lines": ("a.jsonl", b"", None, []),
    "blank lines": ("a.jsonl", b"\n \n\t\n", None, []),
    "empty CSV": ("a.csv", b"", "a.csv: no column 'text'", []),
    "truncated gzip": ("a.jsonl.gz", lambda: gzip.compress(GOOD)[:-9], "a.jsonl.gz: damaged g", 1),
    "truncated bzip2": ("a.jsonl.bz2", lambda: bz2.compress(GOOD)[:-9], "bz2: damaged bzip2", 1),
    "truncated xz": ("a.jsonl.xz", lambda: lzma.compress(GOOD)[:-9], "xz: damaged xz", 1),
    "truncated Zstandard": (
        "a.zst",
        lambda: zstandard_compress(GOOD)[:-3],
        "a.zst: damaged Zstandard",
        [],
    ),
    "rubbish after gzip": ("a.jsonl.gz", lambda: gzip.compress(GOOD) + b"x", "damaged gzip", 1),
    "gzip of gzip": ("a.gz", lambda: gzip.compress(gzip.compress(GOOD)), "a.gz: not UTF-8", []),
    "truncated Parquet": (
        "a.parquet",
        lambda: parquet_bytes({"text": ["good"]})[:-9],
        "a.parquet: damaged Parquet",
        [],
    ),
    "Parquet of nulls": ("a", lambda: parquet_bytes({"text": ["good", None]}), "a:2: 'text'", 1),
    "Parquet of lists": ("a", lambda: parquet_bytes({"text": [["a"]]}), "a:1: 'text' must", []),
    "Parquet without rows": ("a.parquet", lambda: parquet_bytes({"text": []}), None, []),
    "missing field": ("a.jsonl", b'{"body": 1}\n' + GOOD, "a.jsonl:1: no key 'text'", 1),
    "null text": ("a.jsonl", b'{"text": null}\n' + GOOD, "a.jsonl:1: 'text' must", 1),
    "wrong type": ("a.jsonl", b'{"text": {"text": ""}}\n' + GOOD, "a.jsonl:1: 'text' must", 1),
    "a list": ("a.jsonl", b"[1]\n" + GOOD, "a.jsonl:1: must be a JSON object", 1),
    "duplicate keys": ("a.jsonl", b'{"text": "", "text": "a"}\n' + GOOD, "a.jsonl:1: the key", 1),
    "not a number": ("a.jsonl", b'{"text": NaN}\n' + GOOD, "a.jsonl:1: 'text' must be", 1),
    "half a surrogate": ("a.jsonl", b'{"text": "\\udc00"}\n' + GOOD, "a.jsonl:1: half a", 1),
    "deep nesting": ("a.jsonl", DEEP + b"\n" + GOOD, "a.jsonl:1: not JSON", 1),
    "half a line": ("a.jsonl", GOOD + GOOD[:9], "a.jsonl:2: not JSON", 1),
    "bomb": ("a.txt.gz", lambda: gzip.compress(bytes(1000 * LONG)), "a.txt.gz: one text of", []),
    "bomb in a line": ("a.jsonl.gz", lambda: gzip.compress(bytes(9 * LONG)), "gz:1: longer", []),
    "open quote": ("a.csv", b'text\ngood\n"open\n', "a.csv:3: unexpected end of data", 1),
    "open quote in a long file": (
        "a.csv",
        b'text\ngood\n"' + b"no row\n" * LONG,
        ": a field is longer than 0 MiB, perhaps for want of a closing quote",
        1,
    ),
    "ragged row": ("a.csv", b"text,n\na,1,2\ngood,1\n", "a.csv:2: has 3 fields", 1),
    "nothing in gzip": ("a.jsonl.gz", lambda: gzip.compress(b""), None, []),
    "empty Parquet": ("a.parquet", b"", "a.parquet: is empty, which no Parq", []),
    "empty gzip": ("a.jsonl.gz", b"", "a.jsonl.gz: is empty, which", []),
    "Parquet without the column": (
        "a.parquet",
        lambda: parquet_bytes({"body": ["a"]}),
        "a.parquet: no column 'text'",
        [],
    ),
    "truncated Arrow": (
        "a.arrow",
        lambda: arrow_bytes({"text": ["a"] * 99})[:-99],
        "damaged Ar",
        [],
    ),
    "truncated dump": ("a.xml", b"<mediawiki><page><ns>0</ns>", "a.xml:1: not XML", []),
    "rubbish after bzip2": (
        "a.jsonl.bz2",
        lambda: bz2.compress(GOOD) + b"rubbish",
        "bz2: damaged bzip2",
        1,
    ),
    "rubbish after xz": ("a.jsonl.xz", lambda: lzma.compress(GOOD) + b"x", "xz: damaged xz", 1),
    "zeros after gzip": ("a.jsonl.gz", lambda: gzip.compress(GOOD) + bytes(9), None, 1),
    "zeros after xz": ("a.jsonl.xz", lambda: lzma.compress(GOOD) + bytes(8), None, 1),
    "two gzip members": ("a.jsonl.gz", lambda: gzip.compress(GOOD) * 2, None, 2),
    "bits of gzip": (
        "a.jsonl.gz",
        lambda: gzip.compress(GOOD)[:-8] + bytes(8),
        "a.jsonl.gz: damaged gzip: CRC",
        1,
    ),
    "infinite number": ("a.jsonl", b'{"text": 1e999}\n' + GOOD, "a.jsonl:1: 'text' must be", 1),
    "endless number": (
        "a.jsonl",
        b'{"text": "", "n": ' + b"1" * 5000 + b"}\n" + GOOD,
        "a.jsonl:1: not JSON that can be read: a number has too many digits",
        1,
    ),
    "deep list": (
        "a.jsonl",
        b'{"n": ' + b"[" * 20_000 + b"]" * 20_000 + b"}\n" + GOOD,
        "a.jsonl:1: not JSON: nested",
        1,
    ),
    "UTF-16 CSV": ("a.csv", "text\ngood\n".encode("utf-16"), "a.csv: is UTF-16 text", []),
    "Parquet in gzip": (
        "a.parquet.gz",
        lambda: gzip.compress(parquet_bytes({"text": ["good"]})),
        "gz: is Parquet in gzip: unpack it",
        [],
    ),
    "broken UTF-8 in Parquet": ("a.parquet", damaged_row, "a.parquet:2: not UTF-8 at byte 1", 2),
    "page longer than it says": (
        "a.warc",
        lambda: warc_record(b"good") + warc_record(b"bad and long", 3) + warc_record(b"good"),
        "a.warc:2: is longer than its Content-Length",
        2,
    ),
    "page shorter than it says": (
        "a.warc",
        lambda: warc_record(b"good") + warc_record(b"bad", 999),
        "a.warc:2: the file ends inside a page",
        1,
    ),
    "no WARC record": (
        "a.warc",
        lambda: warc_record(b"good") + b"WARC/1.0\r\nrubbish\r\n\r\n",
        "a.warc:2: is a record without WARC-Type",
        1,
    ),
    "endless WARC header": (
        "a.warc.gz",
        lambda: gzip.compress(warc_record(b"good") + b"WARC/1.0\r\nX: " + bytes(100 * LONG)),
        "a.warc.gz: damaged WARC after record 1: a header of more than 4 MiB",
        1,
    ),
    "rubbish between WARC records": (
        "a.warc.gz",
        lambda: gzip.compress(warc_record(b"good")) + b"rubbish",
        "a.warc.gz: damaged gzip",
        1,
    ),
    "truncated dump in bzip2": (
        "a.xml.bz2",
        lambda: bz2.compress(dump(b"good"))[:-4],
        "a.xml.bz2: damaged bzip2",
        1,
    ),
    "bomb in a dump": (
        "a.xml.gz",
        lambda: gzip.compress(
            dump(b"good", end=b"") + dump(bytes(1000 * LONG).replace(b"\0", b"x"))
        ),
        "a.xml.gz: one page of more than",
        1,
    ),
    "unknown entity": ("a.xml", lambda: dump(b"&e;"), "a.xml:1: not XML: undefined entity", []),
    "unknown encoding": (
        "a.xml",
        lambda: b'<?xml version="1.0" encoding="no"?>' + dump(b""),
        "a.xml: not XML: unknown encoding",
        [],
    ),
    "another format": ("a.jsonl", b"%PDF-1.7\n\xff", "a.jsonl: is a PDF file", []),
}
