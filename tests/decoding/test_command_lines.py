"""Hostile values for every option of the commands that use a model, up to the loading of it."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxlm import evaluate, generate, runtime
from jaxlm.config import UserError

VALUES = (
    *("", " ", "-1", "0", "1", "2.5", "1e39", "1e-40", "nan", "inf", "-inf", "9" * 30, "9" * 5000),
    *("x", "True", "[", "=", "a=", "=b", "--", "-", "/", ".", "none/x", "/dev/null", "~nobody/x"),
    *("/dev/zero", "/proc/self/mem"),
    *("a" * 5000, "\udcff", "\u2028", "\N{SNOWMAN}", "bad", "empty", "deep.jsonl", "half.jsonl"),
)
REST = {
    "generate": ["model", "--prompt", "a"],
    "evaluate": ["model", "--data", "t.txt"],
}
COMMANDS = {
    "generate": (generate.main, generate.build_generate_parser),
    "evaluate": (evaluate.main, evaluate.build_evaluate_parser),
}


def takes_value(action):
    return bool(action.option_strings) and action.nargs != 0


OPTIONS = [
    (command, action.option_strings[0])
    for command, (_, build_parser) in COMMANDS.items()
    for action in build_parser()._actions
    if takes_value(action)
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with files that are no prompts and no model that could be loaded."""
    (tmp_path / "bad").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    (tmp_path / "half.jsonl").write_text('{"prompt": "\\ud800"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "configure", lambda *_: None)
    stdin = SimpleNamespace(buffer=io.BytesIO(b"from stdin\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    return tmp_path


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=map(" ".join, OPTIONS))
def test_an_option_ends_in_one_line_whatever_its_value(command, option, folder, capsys):
    main, _ = COMMANDS[command]
    for value in VALUES:
        arguments = [*REST[command], f"{option}={value}"]
        if option in ("--length-penalty", "--early-stopping"):
            arguments += ["--beams", "2"]
        # There is no model: each call ends with a mistake, if only with this one.
        assert runtime.command(main, arguments) == 2, arguments
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1 and lines[0].startswith("error: "), (arguments, error)
    assert {path.name for path in folder.iterdir()} == {"bad", "empty", "deep.jsonl", "half.jsonl"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_is_none_ends_in_one_line(command, folder, capsys):
    main, _ = COMMANDS[command]
    for value in VALUES:
        if value.startswith("-") and value != "-":
            continue  # an option
        assert runtime.command(main, [value, *REST[command][1:]]) in (2, 3), value
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, (value, error)


def test_what_is_written_is_whole_or_as_it_was(folder, monkeypatch, capsys):
    """A disk that is full while the results are written."""

    def fail(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxlm.files.sync", fail)
    (folder / "old.json").write_text("old")
    for name in ("new.json", "old.json"):
        with pytest.raises(UserError, match=r"--json: .*No space"):
            runtime.write_json(name, {"results": []})
    assert (folder / "old.json").read_text() == "old" and not (folder / "new.json").exists()


def test_a_device_is_written_to_and_stays_one(folder):
    runtime.write_json("/dev/null", {"model": "\udcff"})
    assert Path("/dev/null").is_char_device()
    runtime.write_json("o.json", {"model": "\udcff"})
    assert "\\udcff" in (folder / "o.json").read_text()
