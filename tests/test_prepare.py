"""python -m jaxlm.prepare: a store and its report, without jax."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.stores import write_corpus

from jaxlm import prepare, runtime

CONFIG = """
from jaxlm.config import Config, DataConfig, ModelConfig, SourceConfig, TokenizerConfig

config = Config(
    model=ModelConfig(vocabulary_size=300, layers=1, width=16, heads=2, context_length=32),
    tokenizer=TokenizerConfig(kind="bytes"),
    data=DataConfig(
        sources=(SourceConfig(name="web", path="web"), SourceConfig(name="notes", path="n.jsonl")),
        sequence_length=32,
        on_error="skip",
    ),
)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_corpus(tmp_path / "web")
    lines = [json.dumps({"text": f"note {number:02}"}) for number in range(30)]
    (tmp_path / "n.jsonl").write_text("\n".join([*lines, "not JSON", "[]"]))
    (tmp_path / "tiny.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_report_counts_what_each_source_has(folder, capsys):
    for _ in range(2):  # the second finds the store
        assert runtime.command(prepare.main, ["--config", "tiny.py", "--json", "r.json"]) == 0
        report = json.loads((folder / "r.json").read_text())
        text_bytes = sum(path.stat().st_size for path in (folder / "web").iterdir())
        assert report["sources"] == {
            "web": {
                "documents": 40,
                "kept": 40,
                "bytes": text_bytes,
                "tokens": text_bytes + 40,
                "dropped": {},
            },
            "notes": {
                "documents": 32,
                "kept": 30,
                "bytes": 30 * 7,
                "tokens": 30 * 8,
                "dropped": {"unreadable": 2},
            },
        }
        tokens = report["training"]["tokens"] + report["validation"]["tokens"]
        assert tokens == text_bytes + 40 + 30 * 8

        output = capsys.readouterr().out.splitlines()
        assert output[-4].split() == [
            *("source", "documents", "kept", "bytes", "tokens", "bytes/token")
        ]
        assert output[-2].split() == ["notes", "32", "30", "210", "240", "0.88"]


def test_the_report_is_written_to_the_store_or_a_folder(folder, capsys):
    arguments = ["--config", "tiny.py", "--json", "r.json"]
    assert runtime.command(prepare.main, arguments) == 0
    page = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("report: "))
    assert page.parent.parent == Path("stores") and "notes" in page.read_text()
    assert (page.parent / "report.json").read_bytes() == (folder / "r.json").read_bytes()

    assert runtime.command(prepare.main, [*arguments, "--report", "pages"]) == 0
    names = {path.name for path in (folder / "pages").iterdir()}
    assert names == {"report.md", "report.html", "report.json"}


def test_mistakes_end_in_one_line(folder, capsys):
    for arguments, reason in (
        (["--config", "tiny.py", "data.on_error=fail"], "n.jsonl:31: not JSON"),
        (["--config", "tiny.py", "--json", "missing/r.json"], "--json: missing: no such folder"),
        (["--config", "tiny.py", "--report", "missing/x"], "--report: missing: no such folder"),
        (["--config", "tiny.py", "--report", "n.jsonl"], "--report: 'n.jsonl' is no folder"),
        (["--config", "tiny.py", "--data", "nothere"], "data.sources.0.path: nothere: no such"),
        (["--config", "other.py"], "other.py"),
    ):
        assert runtime.command(prepare.main, arguments) == 2
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1


def test_jax_is_not_loaded(folder):
    code = (
        "import sys; from jaxlm import prepare; prepare.main(['--config', 'tiny.py']); "
        "print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
