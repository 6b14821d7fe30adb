"""Sources at URLs: the file systems of fsspec that are in memory, on the disk, or fail."""

import gzip
import io
import os
import shutil
import sys
from pathlib import Path

import pytest

fsspec = pytest.importorskip("fsspec")

from jaxlm import config
from jaxlm.config import UserError
from jaxlm.config.edits import name_source
from jaxlm.config.moved import find_path
from jaxlm.config.urls import hide_credentials
from jaxlm.data.fingerprints import fingerprint_source
from jaxlm.data.listing import list_files
from jaxlm.data.reading_notes import ReadingNotes
from jaxlm.data.sources import read_documents

LINES = b"".join(b'{"text": "line %d"}\n' % number for number in range(2000))


def source_of(path, **fields) -> config.SourceConfig:
    return config.SourceConfig(name="corpus", path=str(path), **fields)


def read(path, **fields) -> list[tuple[str, str]]:
    return [
        (document.name, document.text) for document in read_documents(source_of(path, **fields))
    ]


@pytest.fixture
def memory():
    """An empty file system in memory; keys are written by `pipe`."""
    file_system = fsspec.filesystem("memory")
    file_system.store.clear()
    file_system.pseudo_dirs[:] = [""]
    yield file_system
    file_system.store.clear()


class FailingFile(io.BytesIO):
    """A file whose connection is lost at half of it: by an error, or by an early end."""

    def __init__(self, data: bytes, failure: str):
        half = len(data) // 2
        super().__init__(data[:half] if failure == "end" else data)
        self.size, self.failure, self.half = len(data), failure, half

    def read(self, size=-1):
        if self.failure == "error" and self.tell() + max(size, 0) > self.half:
            raise RuntimeError(
                "lost https://user:secret@host/a.jsonl?X-Signature=secret\nand a second line"
            )
        return super().read(size)


class FailingFileSystem(fsspec.AbstractFileSystem):
    """A file system whose files are those of `contents`, and fail by `failure`."""

    protocol = "failing"
    contents: dict[str, bytes] = {}  # noqa: RUF012
    failure = "error"

    def info(self, path, **_):
        name = self._strip_protocol(path)
        if name in self.contents:
            return {"name": name, "size": len(self.contents[name]), "type": "file", "ETag": "v1"}
        if any(key.startswith(f"{name}/") for key in self.contents):
            return {"name": name, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **_):
        del detail
        return [self.info(key) for key in self.contents if key.startswith(path)]

    def _open(self, path, mode="rb", **_):
        del mode
        return FailingFile(self.contents[path], self.failure)


@pytest.fixture
def failing(monkeypatch):
    fsspec.register_implementation("failing", FailingFileSystem, clobber=True)

    def set_contents(contents, failure="error"):
        monkeypatch.setattr(FailingFileSystem, "contents", contents)
        monkeypatch.setattr(FailingFileSystem, "failure", failure)

    return set_contents


# --- reading ---


def test_a_folder_is_read_as_its_copy_on_the_disk(tmp_path, memory):
    (tmp_path / "b-2").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "b-2" / "two.csv").write_bytes(b"text,other\nrow,1\n")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfplain \xe2\x98\x83")
    (tmp_path / ".hidden").write_bytes(b"hidden")
    memory.put(str(tmp_path), "/data", recursive=True)
    assert memory.exists("/data/.hidden")

    expected = read(tmp_path)
    assert len(expected) == 2002
    assert read("memory://data") == read("memory://data/") == expected
    assert read(f"file://{tmp_path}") == expected
    assert read("memory://data/*/*.gz") == [row for row in expected if "one" in row[0]]
    assert read("memory://data/a.txt") == [("a.txt", "plain ☃")]


def test_tables_are_read_by_seeking(tmp_path, memory):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    table = arrow.table({"text": [f"row {number}" for number in range(1000)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    with ipc.new_file(str(tmp_path / "b.arrow"), table.schema) as writer:
        writer.write_table(table)
    with ipc.new_stream(str(tmp_path / "c.arrow"), table.schema) as writer:
        writer.write_table(table)
    memory.put(str(tmp_path), "/tables", recursive=True)
    rows = read("memory://tables")
    assert rows == read(tmp_path) and len(rows) == 3000


def test_a_key_with_two_slashes_is_not_changed(memory):
    memory.store["/a//b.txt"] = type(memory.open("/x", "wb"))(memory, "/a//b.txt", b"text")
    source = source_of("memory://a//b.txt")
    assert [str(file) for file in list_files(source)] == ["memory://a//b.txt"]
    assert find_path(source.path, Path("/run")) == "memory://a//b.txt"


# --- what fails ---


@pytest.mark.parametrize(("failure", "reason"), [("error", "failed at byte"), ("end", "ended at")])
def test_a_connection_that_is_lost_is_one_line_or_counted(failing, failure, reason):
    packed = gzip.compress(LINES)
    failing({"bucket/a.jsonl": LINES * 20, "bucket/b.jsonl.gz": packed}, failure)
    for name in ("a.jsonl", "b.jsonl.gz"):
        with pytest.raises(UserError, match=f"^failing://bucket/{name}: {reason}.*") as caught:
            list(read_documents(source_of(f"failing://bucket/{name}", format="jsonl")))
        assert "secret" not in str(caught.value) and "\n" not in str(caught.value)

    notes = ReadingNotes(skips=True)
    kept = list(read_documents(source_of("failing://bucket", format="jsonl"), notes=notes))
    assert notes.fault_count == 2 and notes.first_fault.startswith("failing://bucket/a.jsonl: ")
    assert 0 < len(kept) < 42_000


def test_a_connection_that_is_lost_does_not_make_a_damaged_table(tmp_path, failing):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table({"text": ["a" * 1000] * 100}), tmp_path / "a.parquet")
    failing({"bucket/a.parquet": (tmp_path / "a.parquet").read_bytes()})
    with pytest.raises(UserError, match=r"^failing://bucket/a.parquet: failed at byte"):
        read("failing://bucket/a.parquet", format="parquet")


def test_what_a_url_lacks_is_named_with_its_key(memory, monkeypatch):
    memory.pipe("/folder/.hidden", b"")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for url, reason in {
        "memory://none.txt": "no such file",
        "memory://none/*.txt": "no such file",
        "memory://folder": "holds no files",
        "nowhere://a": "there is no file system for nowhere://",
        "s3://bucket/a": "s3:// needs s3fs: pip install s3fs",
    }.items():
        with pytest.raises(UserError) as caught:
            list_files(source_of(url))
        assert str(caught.value) == f"data.sources.0.path: {url}: {reason}"


def test_only_sources_may_be_urls():
    for section in ({"store": "s3://bucket/stores"},):
        with pytest.raises(UserError, match=r"data.store: must be a local path, got s3://"):
            config.DataConfig(sources=(source_of("s3://bucket/a"),), **section)


# --- credentials ---


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pa@ss@host/a.txt?X-Signature=x%2Fy", "https://host/a.txt"),
        ("url='https://token@host/a?b=c', 403", "url='https://host/a', 403"),
        ("sftp://user:pass@host/a-?.txt", "sftp://host/a-?.txt"),
        ("abfs://box@account.dfs/a", "abfs://box@account.dfs/a"),
        ("hf://datasets/a/b@main/c.parquet", "hf://datasets/a/b@main/c.parquet"),
        ("s3://bucket/what?/a@b.txt", "s3://bucket/what?/a@b.txt"),
    ],
)
def test_credentials_are_hidden_and_nothing_else(text, shown):
    assert hide_credentials(text) == shown


def test_a_signed_address_names_neither_sources_nor_documents_by_its_signature(failing, tmp_path):
    url = "https://user:secret@host/a.jsonl?signature=secret/x.y"
    assert name_source(url) == "a"
    failing({"user:secret@host/a.jsonl": LINES}, failure="none")
    source = source_of("failing://user:secret@host/a.jsonl")
    assert [str(file) for file in list_files(source)] == ["failing://host/a.jsonl"]
    assert next(iter(read_documents(source))).name == "a.jsonl:1"


# --- fingerprints ---


def test_a_file_without_a_mark_of_its_version_is_known_by_its_content(tmp_path, memory):
    folder, cache = tmp_path / "c", tmp_path / "cache.json"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbftext")
    memory.put(str(folder), "/c", recursive=True)
    local = fingerprint_source(source_of(folder), cache)
    assert fingerprint_source(source_of("memory://c"), cache) == local

    memory.pipe("/c/a.txt", b"other")
    assert fingerprint_source(source_of("memory://c"), cache) != local


def test_the_mark_of_a_version_stands_for_the_content_which_is_not_read(failing, monkeypatch):
    failing({"bucket/a.jsonl": LINES})
    source, cache = source_of("failing://bucket/a.jsonl"), Path("/nowhere/cache.json")
    before = fingerprint_source(source, cache)
    described = FailingFileSystem.info
    monkeypatch.setattr(
        FailingFileSystem, "info", lambda self, path, **_: described(self, path) | {"ETag": "v2"}
    )
    assert fingerprint_source(source, cache) != before


def test_a_file_that_changed_at_another_time_has_another_fingerprint(tmp_path):
    marks = set()
    for seconds in (1_000_000, 2_000_000):
        folder = tmp_path / str(seconds)
        folder.mkdir()
        (folder / "a.txt").write_text("text")
        os.utime(folder / "a.txt", (seconds, seconds))
        mark = fingerprint_source(source_of(f"file://{folder}"), tmp_path / "cache.json")
        marks.add(mark.hash)
        shutil.rmtree(folder)
    assert len(marks) == 2
