"""Formats in which people keep text, told by their content and read as streams."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from pathlib import Path

import pytest
from support.hostile_files import GOOD, HOSTILE, LONG, zstandard_compress

from jaxlm import config
from jaxlm.config import UserError
from jaxlm.data.documents import FilePart
from jaxlm.data.listing import list_files
from jaxlm.data.readers import streams, tables, wikipedia
from jaxlm.data.reading_notes import ReadingNotes
from jaxlm.data.sources import read_documents

LINES = b'{"text": "one"}\n{"text": "two \xe2\x98\x83"}\n'
GZIPPED = gzip.compress(LINES, mtime=0)  # in parameters, which each worker must find alike


def read(path: Path, **fields) -> list[tuple[str, str]]:
    source = config.SourceConfig(name="corpus", path=str(path), **fields)
    return [(document.name, document.text) for document in read_documents(source)]


def texts(path: Path, **fields) -> list[str]:
    return [text for _, text in read(path, **fields)]


def read_skipping(path: Path, **fields) -> tuple[list[str], list[str]]:
    """Return the texts, and the lines about what was skipped."""
    notes = ReadingNotes(skips=True)
    source = config.SourceConfig(name="corpus", path=str(path), **fields)
    found = [document.text for document in read_documents(source, notes=notes)]
    return found, list(notes.lines("corpus"))


COMPRESSORS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard_compress,
}


# --- compression ---


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_compressed_files_are_read_as_their_content(tmp_path, suffix):
    compress = COMPRESSORS[suffix]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(LINES))
    (tmp_path / f"b.txt{suffix}").write_bytes(compress(b"\xef\xbb\xbfplain\r\n"))
    assert read(tmp_path) == [
        (f"a.jsonl{suffix}:1", "one"),
        (f"a.jsonl{suffix}:2", "two ☃"),
        (f"b.txt{suffix}", "plain\r\n"),
    ]


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_files_of_several_compressed_parts_are_read_to_their_end(tmp_path, suffix):
    compress = COMPRESSORS[suffix]
    parts = [compress(b'{"text": "%d"}\n' % number) for number in range(300)]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(b"".join(parts))
    assert texts(tmp_path) == [str(number) for number in range(300)]


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_compressed_file_that_was_cut_is_refused_or_skipped_from_there(tmp_path, suffix):
    lines = b"".join(b'{"text": "%d %d"}\n' % (n, n * 7919 % 10007) for n in range(20_000))
    packed = COMPRESSORS[suffix](lines)
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.jsonl").write_bytes(LINES)
    with pytest.raises(UserError, match=rf"a\.jsonl{suffix}: damaged \w+: \w+"):
        read(tmp_path)

    found, lines_about = read_skipping(tmp_path)
    assert found[-2:] == ["one", "two ☃"]
    # Zstandard and bzip2 give nothing of a block that is not whole.
    assert found[0] == "0 0" or suffix in (".zst", ".bz2")
    assert len(lines_about) == 1 and "skipped 1 that can't be read" in lines_about[0]


def test_damaged_bytes_name_the_file(tmp_path):
    packed = bytearray(gzip.compress(LINES))
    packed[-5] ^= 1  # in the checksum
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: damaged gzip: CRC check failed"):
        read(tmp_path)


def test_what_expands_without_end_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "LONGEST_RECORD", 1 << 20)
    bomb = gzip.compress(bytes(8 << 20))
    (tmp_path / "a.txt").write_bytes(bomb)
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(b'{"text": "' + b"x" * (8 << 20) + b'"}\n'))
    with pytest.raises(UserError, match=r"a\.txt: one text of more than 1 MiB after decompression"):
        read(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"b\.jsonl:1: longer than 1 MiB"):
        read(tmp_path / "b.jsonl")

    with (tmp_path / "b.jsonl").open("ab") as file:
        file.write(gzip.compress(LINES))
    assert read_skipping(tmp_path / "b.jsonl")[0] == ["one", "two ☃"]


def test_a_library_that_is_missing_is_named_with_its_installation(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd rest")
    for read_so in (read, read_skipping):  # it is no fault of the file, which would be left out
        with pytest.raises(UserError, match=r'a\.jsonl\.zst: .* pip install "jaxlm\[data\]"'):
            read_so(tmp_path)


# --- what a file is ---


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("a.json", LINES, "a.json: JSON lines, by content"),
        ("a.txt", b"\n \n" + LINES, "a.txt: JSON lines, by content"),
        ("a", GZIPPED, "a: JSON lines, compressed by gzip, by content"),
        ("a.jsonl", GZIPPED, "a.jsonl: compressed by gzip, by content"),
        ("a.jsonl.gz", LINES, "a.jsonl.gz: not compressed, by content"),
        ("a.JSONL", LINES, None),
        ("a.jsonl.gz", GZIPPED, None),
    ],
)
def test_the_content_counts_more_than_the_name_and_it_is_said(tmp_path, name, content, note):
    (tmp_path / name).write_bytes(content)
    found, lines = read_skipping(tmp_path)
    assert found == ["one", "two ☃"]
    assert lines == ([f"source corpus: {note}"] if note else [])


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_json_lines_are_told_by_content_however_long_the_first_is(tmp_path, compress):
    long = "x" * 2 * streams.BUFFER
    (tmp_path / "a.json").write_bytes(compress(b'{"text": "%s"}\n' % long.encode() + LINES))
    assert texts(tmp_path) == [long, "one", "two ☃"]


def test_records_that_cannot_be_read_are_skipped_and_counted(tmp_path):
    bad = [b"not JSON", b'{"text": null}', b'{"text": 3}', b'{"body": ""}', b'{"text": "\xff"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*bad, LINES]))
    (tmp_path / "b.txt").write_bytes(b"\xff")
    found, lines = read_skipping(tmp_path)
    assert found == ["one", "two ☃"]
    assert lines == [
        "source corpus: skipped 6 that can't be read (data.on_error=skip), the first: "
        f"{tmp_path}/a.jsonl:1: not JSON: Expecting value at column 1"
    ]


def test_the_first_documents_of_a_source(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": ""}\n' + LINES * 3)
    assert texts(tmp_path, documents=4) == ["one", "two ☃", "one", "two ☃"]


def test_several_keys_are_joined(tmp_path):
    lines = [
        {"title": "Zoë", "body": "text", "id": 1},
        {"title": None, "body": "text"},
        {"title": "", "body": "text"},
        {"body": "text"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines[:3])))
    keys = {"text_keys": ("title", "body"), "text_join": "\n"}
    assert texts(tmp_path, **keys) == ["Zoë\ntext", "text", "text"]
    (tmp_path / "a.jsonl").write_text(json.dumps(lines[3]))
    with pytest.raises(UserError, match=r"no key 'title'.*; data\.sources\.0\.text_keys names"):
        read(tmp_path, **keys)


# --- tables ---


def write_table(path: Path, rows: list, **options) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, **options).writerows(rows)


def test_csv_and_tsv_are_read_by_their_columns(tmp_path):
    rows = [["id", "text"], [1, 'a "quoted", and\nbroken text'], [2, ""], [3, "tab\there ☃"]]
    write_table(tmp_path / "a.csv", rows)
    write_table(tmp_path / "b.tsv", rows, delimiter="\t")
    first = 'a "quoted", and\nbroken text'
    assert read(tmp_path) == [
        ("a.csv:3", first),
        ("a.csv:5", "tab\there ☃"),
        ("b.tsv:3", first),
        ("b.tsv:5", "tab\there ☃"),
    ]


@pytest.mark.parametrize(
    ("content", "reason", "kept"),
    [
        (b"text,n\none,1\ntwo\nthree,3\n", ":3: has 1 fields, the first line 2", ["one", "three"]),
        (b"text\none\nt\xffo\nthree\n", ": not UTF-8 at byte 1", ["one", "three"]),
        (b'text\none\n"open\ntwo\n', ":4: unexpected end of data", ["one"]),
        (b"text,text\none,two\n", ": has two columns 'text'", []),
        (b"", ": no column 'text' (it has none)", []),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path, content, reason, kept):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/a.csv{reason}")
    found, lines = read_skipping(tmp_path)
    assert found == kept and "skipped 1 " in lines[0]


def test_parquet_and_arrow_are_read_by_their_columns(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [f"row {number} ☃" for number in range(1000)]
    table = arrow.table({"n": range(1000), "text": rows, "other": rows})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    with arrow.ipc.new_stream(str(tmp_path / "b.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=400)
    with arrow.ipc.new_file(str(tmp_path / "c"), table.schema) as writer:
        writer.write_table(table)

    for name in ("a.parquet", "b.arrow", "c"):
        assert read(tmp_path / name) == [(f"{name}:{n + 1}", row) for n, row in enumerate(rows)]
    with pytest.raises(UserError, match=r"a\.parquet: no column 'txt' \(did you mean 'text'\?\)"):
        read(tmp_path / "a.parquet", text_key="txt")
    with pytest.raises(UserError, match=r"a\.parquet:1: 'n' must be a string, got int"):
        read(tmp_path / "a.parquet", text_key="n")

    for name in ("a.parquet", "b.arrow", "c"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError, match=rf"{name}: damaged (Parquet|Arrow file): \w"):
            read(tmp_path / name)


def test_a_dataset_that_hugging_face_saved_is_its_tables(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"text": [f"row {number}" for number in range(20)]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "one", num_shards=2)
    assert texts(tmp_path / "one") == rows["text"]
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)})
    splits.save_to_disk(tmp_path / "two")
    assert texts(tmp_path / "two" / "train") == rows["text"]
    with pytest.raises(UserError, match=r"two: holds the splits train: name one of them"):
        list_files(config.SourceConfig(name="corpus", path=str(tmp_path / "two")))


# --- the web ---


def warc_record(kind: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://example.org/\r\n"
        f"WARC-Date: 2026-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:{kind}>\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def response(content_type: str, body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n\r\n"
    return warc_record("response", "application/http; msgtype=response", head.encode() + body)


PAGE = (
    """<html><head><title>T</title><script>var x</script></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/a">Archive</a></li></ul></nav>
<article><h1>Coffee</h1>"""
    + "<p>Café au lait is a drink that many people have.</p>" * 9
    + """
</article><footer>All rights reserved</footer></body></html>"""
)


def test_web_archives_give_the_text_of_their_pages(tmp_path):
    pytest.importorskip("warcio")
    pytest.importorskip("trafilatura")
    records = [
        warc_record("warcinfo", "application/warc-fields", b"software: test\r\n"),
        warc_record("conversion", "text/plain", "Zoë's page".encode()),
        response("text/html; charset=iso-8859-1", PAGE.encode("latin-1")),
        response("text/html", PAGE.encode()),
        response("text/html", PAGE.encode(), status="404 Not Found"),
        response("image/png", b"\x89PNG\r\n"),
        response("text/plain; charset=utf-8", "plain ☃".encode()),
    ]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(map(gzip.compress, records)))
    (tmp_path / "b.wet").write_bytes(records[1])
    found = read(tmp_path)
    assert [name for name, _ in found] == [*(f"a.warc.gz:{n}" for n in (2, 3, 4, 7)), "b.wet:1"]
    assert found[0][1] == found[4][1] == "Zoë's page" and found[3][1] == "plain ☃"
    for _, text in found[1:3]:
        assert "Café au lait is a drink that many people have." in text
        assert not any(word in text for word in ("Home", "var x", "rights"))


def test_a_page_that_was_cut_is_no_page(tmp_path):
    pytest.importorskip("warcio")
    record = warc_record("conversion", "text/plain", b"one")
    (tmp_path / "a.wet").write_bytes(record + record[:-6])
    with pytest.raises(UserError, match=r"a\.wet:2: the file ends inside a page"):
        read(tmp_path)
    assert read_skipping(tmp_path)[0] == ["one"]


def test_pages_that_are_not_whole_or_without_text_are_told(tmp_path):
    pytest.importorskip("warcio")
    pytest.importorskip("trafilatura")
    whole = response("text/html", PAGE.encode())
    broken_off = response("text/plain\r\nContent-Length: 99", b"some")
    records = [
        whole,
        whole.replace(b"WARC-Type", b"WARC-Truncated: length\r\nWARC-Type"),
        broken_off,
        response("text/html", b"<html><body></body></html>"),
        whole[:-300],
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    notes = ReadingNotes(skips=True)
    source = config.SourceConfig(name="web", path=str(tmp_path))
    found = [document.text[:4] for document in read_documents(source, notes=notes)]
    assert found == ["Coff", "Coff", "some"]
    assert notes.empty_count == 1 and notes.fault_count == 1
    lines = list(notes.lines("web"))
    assert lines[0].startswith("source web: 2 pages were cut short when they were crawled")
    assert "a.warc:5: the file ends inside a page" in lines[1]


def test_a_web_archive_that_was_cut_keeps_what_came_before(tmp_path):
    pytest.importorskip("warcio")
    pytest.importorskip("trafilatura")
    record = gzip.compress(warc_record("conversion", "text/plain", b"one"))
    (tmp_path / "a.warc.wet.gz").write_bytes(record + record[: len(record) // 2])
    with pytest.raises(UserError, match=r"a\.warc\.wet\.gz: damaged gzip"):
        read(tmp_path)
    found, lines = read_skipping(tmp_path)
    assert found == ["one"] and "skipped 1 " in lines[0]
    assert lines[0].endswith("; what follows in the file is left out")


ARTICLE = """{{Infobox|name=x}}'''Zoë''' ({{lang|el|zoi}}) is a [[given name|name]].<ref>Note</ref>
[[File:Zoe.jpg|thumb|A [[picture]]]]

== History ==
It is [[Greek language|Greek]] &amp; old.

{| class="wikitable"
! a !! b
|}
* one
[[Category:Names]]
"""


WIKI_TEXT = "Zoë\n\nZoë is a name.\n\nHistory\nIt is Greek & old.\n\none"


def dump(pages: list[tuple[str, str, str, str]]) -> bytes:
    """Return a MediaWiki dump of (title, namespace, further elements, markup)."""
    from xml.sax.saxutils import escape

    body = "".join(
        f"<page><title>{escape(title)}</title><ns>{ns}</ns><id>1</id>{more}"
        f"<revision><id>2</id><text>{escape(markup)}</text></revision></page>\n"
        for title, ns, more, markup in pages
    )
    return (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo><namespaces>'
        '<namespace key="6">Datei</namespace></namespaces></siteinfo>\n' + body + "</mediawiki>"
    ).encode()


def test_wikipedia_dumps_give_articles_without_markup(tmp_path):
    pytest.importorskip("mwparserfromhell")
    pages = [
        ("Zoë", "0", "", ARTICLE),
        ("Talk:Zoë", "1", "", "talk"),
        ("Zoe", "0", '<redirect title="Zoë" />', "#REDIRECT [[Zoë]]"),
        ("Two", "0", "", "second [[Datei:X.png|mini|Bild]]text"),
    ]
    (tmp_path / "wiki.xml.bz2").write_bytes(bz2.compress(dump(pages)))
    found = read(tmp_path, text_keys=("title", "text"))
    assert [name for name, _ in found] == ["wiki.xml.bz2:1", "wiki.xml.bz2:4"]
    assert found[1][1] == "Two\n\nsecond text"
    assert found[0][1] == WIKI_TEXT


def test_a_dump_that_is_not_xml_names_the_line(tmp_path):
    pytest.importorskip("mwparserfromhell")
    (tmp_path / "wiki.xml").write_bytes(dump([("A", "0", "", "text")])[:-12] + b"<open></closed>")
    with pytest.raises(UserError, match=r"wiki\.xml:3: not XML: mismatched tag"):
        read(tmp_path)
    assert read_skipping(tmp_path)[0] == ["text"]


def test_long_lines_are_numbered_on(monkeypatch):
    monkeypatch.setattr(streams, "LONGEST_RECORD", 4)
    lines = streams.read_lines(io.BytesIO(b"ab\nabcdefghi\nabc\nabcdef"), FilePart(Path("a")))
    assert list(lines) == [(1, b"ab\n"), (2, None), (3, b"abc\n"), (4, None)]


def test_pairs_may_stand_in_a_table(tmp_path):
    write_table(tmp_path / "a.tsv", [["de", "en"], ["guten Tag", "good day"]], delimiter="\t")
    keys = {"format": "pairs", "source_key": "de", "target_key": "en"}
    source = config.SourceConfig(name="corpus", path=str(tmp_path / "a.tsv"), **keys)
    assert [document.texts for document in read_documents(source)] == [("guten Tag", "good day")]


# --- hostile inputs ---


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line_or_skipped_and_counted(tmp_path, name, monkeypatch):
    file, content, reason, kept = HOSTILE[name]
    for module in (streams, tables, wikipedia):
        monkeypatch.setattr(module, "LONGEST_RECORD", LONG)
    (tmp_path / file).write_bytes(content() if callable(content) else content)
    (tmp_path / "z.jsonl").write_bytes(GOOD)
    kept = ["good"] * kept if isinstance(kept, int) else kept

    found, lines = read_skipping(tmp_path)
    skipped = [line for line in lines if "skipped 1 that can't be read" in line]
    if reason is None:
        assert not skipped and texts(tmp_path) == found
    else:
        with pytest.raises(UserError) as error:
            read(tmp_path)
        assert reason in str(error.value) and "\n" not in str(error.value)
        assert len(skipped) == 1 and str(error.value) in skipped[0]
    if kept is not None:
        assert found == [*kept, "good"]


def test_links_and_other_things_in_a_folder_are_told(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "back").symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    found, lines = read_skipping(tmp_path)
    assert found == ["good", "good"]
    assert lines == [f"source corpus: left out {tmp_path}/below/back and 1 more: no regular file"]


def test_a_folder_that_can_not_be_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "secret").mkdir()
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"^data\.sources\.0\.path: .*: Permission denied$"):
        read(tmp_path)


def test_entities_of_a_dump_do_not_expand_without_end(tmp_path):
    pytest.importorskip("mwparserfromhell")
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(12))
    head = f'<!DOCTYPE mediawiki [<!ENTITY e0 "x">{entities}]>'
    (tmp_path / "a.xml").write_text(head + "<mediawiki><page><text>&e12;</text></page></mediawiki>")
    with pytest.raises(UserError, match=r"a\.xml:1: not XML: limit on input amplification"):
        read(tmp_path / "a.xml", format="wikipedia")


def test_each_line_belongs_to_one_part_wherever_a_file_is_cut():
    data = b"a\nbcd\n\nefg\nh"
    lines = list(streams.read_lines(io.BytesIO(data), FilePart(Path("a"))))
    for cut in range(1, len(data)):
        first_line = 2 + data[:cut].count(b"\n")
        parts = (FilePart(Path("a"), stop=cut), FilePart(Path("a"), cut, first_line=first_line))
        read = [line for part in parts for line in streams.read_lines(io.BytesIO(data), part)]
        assert read == lines
