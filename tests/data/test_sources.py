import gzip
import json
import os
from pathlib import Path

import pytest

from jaxlm import config
from jaxlm.config import ConfigError, UserError
from jaxlm.data import fingerprints
from jaxlm.data.documents import COMMAND_OPTIONS
from jaxlm.data.fingerprints import fingerprint_source
from jaxlm.data.listing import list_files, stdlib_folder
from jaxlm.data.sources import read_documents


def text_source(path: Path | str, **values) -> config.SourceConfig:
    return config.SourceConfig(name="corpus", path=str(path), **values)


def write_texts(folder: Path, **texts: str) -> Path:
    """Write one file per keyword; `__` in a name stands for a slash, and `.txt` is added."""
    for name, text in texts.items():
        path = folder / (name.replace("__", "/") + ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return folder


def named_texts(source: config.SourceConfig) -> list[tuple[str, str]]:
    return [(document.name, document.text) for document in read_documents(source)]


def test_a_file_is_one_document_with_its_newlines_as_they_are(tmp_path):
    write_texts(tmp_path, novel="Zoë\r\nline two\r")
    assert named_texts(text_source(tmp_path / "novel.txt")) == [("novel.txt", "Zoë\r\nline two\r")]


def test_folder_is_read_recursively_in_order_without_hidden_or_empty_files(tmp_path):
    write_texts(tmp_path, b="two", a__z="one", c="", **{".hidden": "no", ".git__config": "no"})
    assert named_texts(text_source(tmp_path)) == [("a/z.txt", "one"), ("b.txt", "two")]


def test_globs_with_double_stars(tmp_path):
    write_texts(tmp_path, x__one="1", x__y__two="2", three="3")
    assert named_texts(text_source(tmp_path / "**" / "t*.txt")) == [
        ("three.txt", "3"),
        ("x/y/two.txt", "2"),
    ]
    assert named_texts(text_source(tmp_path / "x" / "*.txt")) == [("one.txt", "1")]


def test_missing_path_names_the_key_the_path_and_a_near_miss(tmp_path):
    write_texts(tmp_path, shakespeare="text")
    with pytest.raises(
        ConfigError,
        match=r"^data\.sources\.0\.path: .*shakespear\.txt: no such file "
        r"\(did you mean 'shakespeare\.txt'\?\)$",
    ):
        list_files(text_source(tmp_path / "shakespear.txt"))
    with pytest.raises(ConfigError, match="holds no files"):
        (tmp_path / "empty").mkdir()
        list_files(text_source(tmp_path / "empty"))


def test_text_that_is_not_utf8_names_file_and_byte(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(UserError, match=r"latin\.txt: not UTF-8 at byte 3 \(0xe9\)$"):
        named_texts(text_source(tmp_path))


def test_json_lines_by_ending_and_key(tmp_path):
    lines = [
        json.dumps({"body": "first ☃", "id": 1}),
        "",
        "  ",
        json.dumps({"body": ""}),
        json.dumps({"body": "second"}),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert named_texts(text_source(tmp_path, text_key="body")) == [
        ("a.jsonl:1", "first ☃"),
        ("a.jsonl:5", "second"),
    ]
    (tmp_path / "a.jsonl").rename(tmp_path / "a.log")
    assert named_texts(text_source(tmp_path / "a.log", text_key="body", format="jsonl"))[1] == (
        "a.log:5",
        "second",
    )
    assert len(named_texts(text_source(tmp_path / "a.log", format="text"))) == 1


def test_json_lines_end_at_newlines_alone(tmp_path):
    texts = ["a\u2028b\u2029c\x85d", "e\r\n\x0c\x00\x1cf"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_bytes("\r\n".join(lines).encode())
    assert [text for _, text in named_texts(text_source(tmp_path))] == texts


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "x"', "not JSON: Expecting"),
        (b"[" * 100_000, "not JSON: nested too deeply"),
        (b'["x"]', "must be a JSON object, got list"),
        (b'{"txt": "x"}', r"no key 'text' \(did you mean 'txt'\?\); data\.sources\.0\.text_key"),
        (b'{"content": "x"}', r"no key 'text' \(it has 'content'\)"),
        (b'{"text": "a", "text": "b"}', "the key 'text' stands twice in one object"),
        (b'{"text": ' + b"9" * 5000 + b"}", "not JSON that can be read: a number has too many"),
        (b'{"text": 3}', "'text' must be a string, got int"),
        (b'{"text": "\xff"}', r"not UTF-8 at byte 10 \(0xff\)"),
        (b'{"text": "ab\\ud800"}', "half a surrogate pair at character 2"),
    ],
)
def test_bad_json_line_names_file_and_line(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=rf"a\.jsonl:3: {reason}") as error:
        named_texts(text_source(tmp_path))
    assert "\n" not in str(error.value)


def test_a_long_list_of_keys_is_shortened(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({f"k{number}": 0 for number in range(500)}))
    with pytest.raises(UserError, match=r"'k19' and 480 more\); data") as error:
        named_texts(text_source(tmp_path))
    assert len(str(error.value)) < 500


def test_keys_may_stand_in_objects_inside_and_in_texts(tmp_path):
    line = json.dumps({"text": 'say "text": twice', "meta": {"text": 1, "other": {"text": 2}}})
    (tmp_path / "a.jsonl").write_text(line)
    assert named_texts(text_source(tmp_path)) == [("a.jsonl:1", 'say "text": twice')]


MARK = "\ufeff"


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.txt", "one", ["one"]),
        ("a.jsonl", '{"text": "one"}\n{"text": "two"}\n', ["one", "two"]),
        ("a.txt", f"{MARK}one{MARK}", [f"{MARK}one{MARK}"]),
        ("a.jsonl", json.dumps({"text": f"{MARK}one"}), [f"{MARK}one"]),
        ("a.txt", "", []),
    ],
)
def test_one_leading_byte_order_mark_is_dropped(tmp_path, name, content, texts):
    (tmp_path / name).write_bytes((MARK + content).encode())
    assert [text for _, text in named_texts(text_source(tmp_path))] == texts

    if not content.startswith(MARK):
        marked = fingerprint_source(text_source(tmp_path), tmp_path / "none")
        (tmp_path / name).write_bytes(content.encode())
        assert fingerprint_source(text_source(tmp_path), tmp_path / "none") == marked


@pytest.mark.parametrize("name", ["d.JSONL", "d.NDJSON", "d.Jsonl", "d.ndjson"])
def test_json_lines_are_told_by_their_suffix_in_any_case(tmp_path, name):
    (tmp_path / name).write_text('{"text": "one"}\n{"text": "two"}\n')
    assert named_texts(text_source(tmp_path)) == [(f"{name}:1", "one"), (f"{name}:2", "two")]


LINES = b'{"text": "one"}\n{"text": "two"}\n'
OTHER_FORMATS = [  # name, content, the reason; with format=text the content, if it is text
    ("d.json", b'{"body": "one"}\n', ":1: is a JSON object without the key 'text' (it has 'body')"),
    ("d.txt", b'\n \n{"body": "one"}\n', ":1: is a JSON object without the key 'text'"),
    ("d.json", b'[{"text": "one"}]', ": is a JSON array, not JSON lines: convert it to JSON lines"),
    ("d.json", b'\n[\n {"text": "one"}\n]\n', ": is a JSON array, not JSON lines: convert it"),
    ("d.csv", b"body\none\n", ": no column 'text' (it has 'body')"),
    ("d.zip", b"PK\x03\x04\x80", ": is a zip file, not UTF-8 text: unpack it first"),
    ("d.txt", b"%PDF-1.7\x80", ": is a PDF file, not UTF-8 text: extract its text first"),
    ("d.jsonl", b"PK\x03\x04\x80", ": is a zip file, not UTF-8 text: unpack it first"),
    (
        "d.tar.gz",
        gzip.compress(bytes(257) + b"ustar"),
        ": is a tar archive, not UTF-8 text: unpack",
    ),
]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    OTHER_FORMATS,
    ids=[f"{name} {reason[:20]}" for name, _, reason in OTHER_FORMATS],
)
@pytest.mark.parametrize("in_folder", [False, True])
def test_other_formats_are_named_as_such(tmp_path, name, content, reason, in_folder):
    path = tmp_path / name
    path.write_bytes(content)
    (tmp_path / "a.txt").write_text("plain")
    with pytest.raises(UserError) as error:
        named_texts(text_source(tmp_path if in_folder else path))
    assert str(error.value).startswith(f"{path}{reason}")

    if "UTF-8" not in reason:
        kept = named_texts(text_source(path, format="text"))
        assert kept == [(name, content.decode())]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '{\n  "name": "package"\n}\n'),
        ("a.py", "{}\n"),
        ("a.txt", "{not JSON}\ntext"),
        ("a.json", "[1, 2]"),
        ("a.md", "[{link}](x)"),
        ("PAR1.txt", "PAR1 is a word"),
        ("BZh", "BZhang wrote this"),
        ("a", "  \n"),
    ],
)
def test_text_that_only_begins_like_another_format_is_text(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert named_texts(text_source(tmp_path)) == [(name, content)]


PATHS = [  # what the user names, the reason
    ("x" * 5000, "File name too long"),
    ("~nobody-of-this-name/a.txt", "no such file"),
    ("pipe", "is no regular file"),
    ("/dev/zero", "is no regular file"),
    ("a.txt/b", "no such file"),
    ("[", "no such file"),
]


@pytest.mark.parametrize(("path", "reason"), PATHS, ids=[path[:9] for path, _ in PATHS])
def test_a_path_that_names_no_file_is_refused_in_one_line(tmp_path, monkeypatch, path, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError) as error:
        named_texts(text_source(path))
    assert str(error.value).startswith(f"data.sources.0.path: {path}: {reason}")


@pytest.mark.parametrize("method", ["is_dir", "exists"])
def test_a_folder_that_may_not_be_read_is_refused_in_one_line(tmp_path, monkeypatch, method):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(ConfigError, match=r"^data\.sources\.0\.path: .*: Permission denied$"):
        list_files(text_source("secret/a.txt"))


def test_messages_name_options_where_a_command_takes_the_source(tmp_path):
    (tmp_path / "a.json").write_text('{"body": "one"}\n')
    with pytest.raises(UserError, match=r"set --format text to read the file as plain text"):
        list(read_documents(text_source(tmp_path), COMMAND_OPTIONS))
    (tmp_path / "a.json").rename(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"; --text-key names the key of the text"):
        list(read_documents(text_source(tmp_path), COMMAND_OPTIONS))


def test_pairs_are_read_by_their_keys(tmp_path):
    lines = [
        {"source": "guten Tag", "target": "good day", "id": 1},
        {"source": "", "target": ""},
        {"source": "ja ☃", "target": ""},
    ]
    (tmp_path / "a.txt").write_text("\n".join(map(json.dumps, lines)))
    pairs = list(read_documents(text_source(tmp_path / "a.txt", format="pairs")))
    assert [pair.texts for pair in pairs] == [("guten Tag", "good day"), ("ja ☃", "")]
    assert [pair.name for pair in pairs] == ["a.txt:1", "a.txt:3"]
    turned = read_documents(
        text_source(tmp_path, format="pairs", source_key="target", target_key="source")
    )
    assert next(turned).texts == ("good day", "guten Tag")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"source": "x"', "not JSON: Expecting"),
        ('["x"]', "must be a JSON object, got list"),
        (
            '{"de": "x", "en": "y"}',
            r"no key 'source' \(it has 'de', 'en'\); "
            r"data\.sources\.0\.source_key names the key of the source",
        ),
        (
            '{"source": "x", "targets": "y"}',
            r"no key 'target' \(did you mean 'targets'\?\); "
            r"data\.sources\.0\.target_key names the key of the target",
        ),
        ('{"source": "x", "target": ["y"]}', "'target' must be a string, got list"),
        ('{"source": "x\\udc00", "target": "y"}', "half a surrogate pair at character 1"),
    ],
)
def test_bad_pair_names_file_and_line(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_text('{"source": "a", "target": "b"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=rf"a\.jsonl:3: {reason}") as error:
        list(read_documents(text_source(tmp_path, format="pairs")))
    assert "\n" not in str(error.value)


def test_documents_are_read_one_at_a_time(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\nnot JSON\n')
    assert next(read_documents(text_source(tmp_path))).text == "fine"


def test_standard_library_is_modules_without_test_suites():
    stdlib = config.SourceConfig(name="stdlib", format="python_stdlib")
    names = [path.relative_to(stdlib_folder()) for path in list_files(stdlib)]
    assert {Path("os.py"), Path("json/decoder.py"), Path("unittest/mock.py")} <= set(names)
    assert len(names) > 400
    assert not any(
        {"test", "tests", "site-packages", "idlelib"} & set(name.parts) for name in names
    )
    assert names == sorted(names)
    first = next(read_documents(stdlib))
    assert (first.name, first.text) == (
        "__future__.py",
        (stdlib_folder() / "__future__.py").read_bytes().decode(),
    )


def age(*paths: Path) -> None:
    """Set the time of change a minute back: the hash of a file that is just written is not kept."""
    for path in paths:
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 60 * 10**9))


def test_names_of_files_may_be_other_bytes_than_utf8(tmp_path):
    name = os.fsdecode(b"\xff\xe9.txt")
    try:
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / name).write_text("text")
    except OSError:
        pytest.skip("this file system has no such names")
    for path in (tmp_path / "texts", tmp_path / "texts" / name):
        source = text_source(path)
        assert named_texts(source) == [(name, "text")]
        fingerprint = fingerprint_source(source, tmp_path / "cache.json")
        assert fingerprint_source(source, tmp_path / "cache.json") == fingerprint


def test_fingerprint_follows_names_and_contents_not_the_folder(tmp_path):
    cache = tmp_path / "cache.json"
    one, two = (
        write_texts(tmp_path / "one", a="x", b="y"),
        write_texts(tmp_path / "two", a="x", b="y"),
    )
    assert fingerprint_source(text_source(one), cache) == fingerprint_source(
        text_source(two), cache
    )
    before = fingerprint_source(text_source(one), cache)
    write_texts(one, a="z")
    changed = fingerprint_source(text_source(one), cache)
    (two / "b.txt").rename(two / "c.txt")
    renamed = fingerprint_source(text_source(two), cache)
    assert len({before.hash, changed.hash, renamed.hash}) == 3


def test_fingerprint_does_not_read_unchanged_files_again(tmp_path, monkeypatch):
    cache, folder = tmp_path / "cache.json", write_texts(tmp_path / "one", a="x", b="y")
    age(folder / "a.txt", folder / "b.txt")
    before = fingerprint_source(text_source(folder), cache)
    read_files = []
    read = fingerprints.read_hash
    monkeypatch.setattr(
        fingerprints,
        "read_hash",
        lambda path, counts: read_files.append(path.name) or read(path, counts),
    )
    assert fingerprint_source(text_source(folder), cache) == before
    assert read_files == []
    write_texts(folder, b="Y")
    assert fingerprint_source(text_source(folder), cache) != before
    assert read_files == ["b.txt"]


def test_a_file_that_is_read_otherwise_than_before_has_another_fingerprint(tmp_path):
    """Its store, which an earlier version made of it as plain text, is not used."""
    fingerprints = []
    for folder, name in (("one", "a.jsonl"), ("two", "a.JSONL")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(LINES)
        fingerprints.append(fingerprint_source(text_source(tmp_path / folder), tmp_path / "c.json"))
        as_text = text_source(tmp_path / folder, format="text")
        fingerprints.append(fingerprint_source(as_text, tmp_path / "c.json"))
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[2] != fingerprints[3]

    for name, content in (("a.xml", b"<mediawiki></mediawiki>"), ("a.wet", b"WARC/1.0\r\n")):
        (tmp_path / name).write_bytes(content)
        new, old = (
            fingerprint_source(text_source(tmp_path / name, format=kind), tmp_path / "c.json")
            for kind in ("auto", "text")
        )
        assert new != old
    (tmp_path / "a.xml").write_bytes(b"<html></html>")
    new, old = (
        fingerprint_source(text_source(tmp_path / "a.xml", format=kind), tmp_path / "c.json")
        for kind in ("auto", "text")
    )
    assert new == old


def test_fingerprint_survives_a_damaged_cache(tmp_path):
    cache, folder = tmp_path / "cache.json", write_texts(tmp_path / "one", a="x")
    age(folder / "a.txt")
    before = fingerprint_source(text_source(folder), cache)
    for damage in ("{", "[]", json.dumps({str(folder / "a.txt"): None})):
        cache.write_text(damage)
        assert fingerprint_source(text_source(folder), cache) == before
