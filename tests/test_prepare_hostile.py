"""python -m jaxlm.prepare on hostile files: one line and exit code 2, or a loss that is counted."""

import json
import os
import subprocess
import sys
import tracemalloc

import pytest
from support.hostile_files import GOOD, HOSTILE, LONG

from jaxlm import prepare, runtime
from jaxlm.data import preparation
from jaxlm.data.building import manifest, units, workers
from jaxlm.data.readers import streams, tables, wikipedia

CONFIG = """
from jaxlm.config import (
    Config, DataConfig, ModelConfig, SourceConfig, TokenizerConfig, ValidationConfig
)

config = Config(
    model=ModelConfig(vocabulary_size=300, layers=1, width=16, heads=2, context_length=32),
    tokenizer=TokenizerConfig(kind="bytes"),
    data=DataConfig(
        sources=(SourceConfig(name="web", path="web"),),
        sequence_length=4,
        validation=ValidationConfig(method="source", path="held-out.txt"),
    ),
)
"""
LARGEST_MEMORY = 200 * LONG  # bytes of Python's objects, far below what the bombs expand to


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Write a config whose only source is the folder web, with one good document."""
    for module in (streams, tables, wikipedia):
        monkeypatch.setattr(module, "LONGEST_RECORD", LONG)
    # xz takes 700 MB to measure the text that is held out.
    monkeypatch.setattr(manifest, "COMPRESSED_BYTES", -1)
    monkeypatch.setattr(workers, "LINE_SECONDS", 1e9)  # no progress, however slow the machine is
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "z.jsonl").write_bytes(GOOD)
    (tmp_path / "held-out.txt").write_text("held out")
    (tmp_path / "tiny.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(mode: str, *more: str) -> list[str]:
    return ["--config", "tiny.py", f"data.on_error={mode}", "--report", f"report-{mode}", *more]


def write_case(folder, name: str) -> tuple[str | None, int]:
    """Write the file of a case; return what its error says, and how many texts are kept."""
    file, content, reason, kept = HOSTILE[name]
    (folder / "web" / file).write_bytes(content() if callable(content) else content)
    return reason, kept if isinstance(kept, int) else len(kept)


def check_counts(folder, mode: str, kept: int, unreadable: int, reason: str = "") -> None:
    """Check that the report says what was kept and lost, the text that is held out aside."""
    report = json.loads((folder / f"report-{mode}" / "report.json").read_text())
    source = report["sources"]["web"]
    dropped = dict(source["dropped"])
    empty = dropped.pop("empty", 0)
    assert dropped == ({"unreadable": unreadable} if unreadable else {})
    assert source["kept"] == kept + 1
    assert source["documents"] == kept + 1 + unreadable + empty
    if unreadable:
        assert reason in source["samples"]["unreadable"][0]["text"]


def run_in_process(capfd, mode: str) -> tuple[int, str, str]:
    """Return the exit code and what is printed. Python's objects may take LARGEST_MEMORY."""
    tracemalloc.start()
    code = runtime.command(prepare.main, arguments(mode))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < LARGEST_MEMORY
    printed = capfd.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_one_line_or_are_counted_in_the_report(folder, capfd, name):
    reason, kept = write_case(folder, name)
    code, _, error = run_in_process(capfd, "fail")
    if reason is None:
        assert code == 0 and not error
        check_counts(folder, "fail", kept, 0)
    else:
        assert code == 2 and reason in error
        assert error.startswith("error: web/") and error.count("\n") == 1
        assert not list((folder / "stores").glob("*/*"))  # nothing that looks like a store

    code, output, error = run_in_process(capfd, "skip")
    assert code == 0 and not error
    check_counts(folder, "skip", kept, 0 if reason is None else 1, reason or "")
    assert ("source web: skipped 1 that can't be read" in output) == (reason is not None)


@pytest.mark.parametrize("mode", ["fail", "skip"])
def test_files_that_change_while_they_are_read_are_no_store(folder, capfd, monkeypatch, mode):
    path, build = folder / "web" / "a.jsonl", preparation.build_store
    changes = {
        "web: files changed while they were read": lambda: path.write_bytes(GOOD),
        "web": path.unlink,
    }
    for reason, change in changes.items():
        path.write_bytes(GOOD * 3)

        def build_after_a_change(*arguments, change=change):
            change()
            return build(*arguments)

        monkeypatch.setattr(preparation, "build_store", build_after_a_change)
        code, _, error = run_in_process(capfd, mode)
        assert code == 2 and reason in error and error.count("\n") == 1
        assert not list((folder / "stores").glob("*/*"))


def test_what_is_no_file_is_told(folder, capfd):
    (folder / "web" / "a.jsonl").mkdir()
    (folder / "web" / "a.jsonl" / "loop").symlink_to(folder / "web")
    (folder / "web" / "b.jsonl").symlink_to("nowhere")
    os.mkfifo(folder / "web" / "c.jsonl")
    for mode in ("fail", "skip"):
        code, output, error = run_in_process(capfd, mode)
        assert code == 0 and not error
        expected = "source web: left out web/a.jsonl/loop and 2 more: no regular file"
        assert expected in output.splitlines()
        check_counts(folder, mode, 0, 0)


def test_worker_processes_tell_of_hostile_files_as_well(folder, capfd, monkeypatch):
    """Each file is a unit of its own, so that two processes share them."""
    monkeypatch.setattr(units, "UNIT_BYTES", 1)
    monkeypatch.setattr(workers, "FEWEST_BYTES", 0)
    names = ("truncated gzip", "wrong type", "broken UTF-8", "truncated dump")
    reasons = {HOSTILE[name][0]: HOSTILE[name][0] for name in names}
    for name in names:
        write_case(folder, name)

    assert runtime.command(prepare.main, arguments("fail", "--workers", "2")) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and any(str(reason) in error for reason in reasons)
    assert runtime.command(prepare.main, arguments("skip", "--workers", "2")) == 0
    assert not capfd.readouterr().err
    check_counts(folder, "skip", 2, len(names))


@pytest.mark.parametrize(("mode", "code"), [("fail", 2), ("skip", 0)])
def test_a_name_that_is_not_utf8_is_told_in_ascii(folder, mode, code):
    """In a process of its own, whose output refuses such names."""
    path, reason = os.fsencode(folder / "web") + b"/\xff.jsonl", "\\udcff.jsonl:2: not JSON"
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(GOOD + b"no JSON\n")
    done = subprocess.run(
        [sys.executable, "-m", "jaxlm.prepare", *arguments(mode)],
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    if mode == "skip":
        assert reason in done.stdout
        check_counts(folder, "skip", 1, 1)
    else:
        assert done.stderr.splitlines()[-1].startswith("error: web/") and reason in done.stderr
