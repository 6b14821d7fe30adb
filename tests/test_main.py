"""python -m jaxlm names the commands, and the nearest one to a misspelt name."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm import runtime
from jaxlm.__main__ import COMMANDS, main


def test_the_commands_are_those_of_the_package():
    package = Path(importlib.import_module("jaxlm").__path__[0])
    commands = {
        path.stem
        for path in package.glob("*.py")
        if "runtime.run(main)" in path.read_text() and path.stem != "__main__"
    }
    assert set(COMMANDS) == commands


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--help"], 0), (["-h"], 0)])
def test_the_commands_are_named(capsys, arguments, code):
    assert runtime.command(main, arguments) == code
    captured = capsys.readouterr()
    text = captured.err if code else captured.out
    assert all(f"python -m jaxlm.{name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_misspelt_command_names_the_nearest(capsys, name):
    assert runtime.command(main, [name[1:]]) == 2
    assert f"(did you mean {name!r}?); see python -m jaxlm --help" in capsys.readouterr().err


def test_an_unknown_command_lists_those_that_there_are(capsys):
    assert runtime.command(main, ["xyzzy"]) == 2
    assert "prepare, train, generate, evaluate, convert, bench, harness" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_can_be_given_as_an_argument(capsys, name):
    with pytest.raises(SystemExit) if name != "harness" else pytest.MonkeyPatch.context():
        runtime.command(main, [name, "--help"])
    assert f"python -m jaxlm.{name}" in capsys.readouterr().out


# Mistakes that are found before the work begins.
MISTAKES = (
    "prepare --config configs/quickstart.py model.layer=3",
    "train --config configs/quickstart.py model.heads=3",
    "bench --config configs/quickstart.py model.layer=3",
    "bench --config configs/quickstart.py --data no/such.txt",
    "train --config configs/quickstart.py --data no/such.txt run_directory=no/such",
    "convert export no/such out",
    "convert import no/such out",
)


def test_help_and_mistakes_come_without_jax():
    """Importing jax takes a second or more, in which a user waits for a line."""
    program = f"""
import importlib, sys
from jaxlm import runtime
for name in {list(COMMANDS)}:
    try:
        code = runtime.command(importlib.import_module("jaxlm." + name).main, ["--help"])
    except SystemExit as end:
        code = end.code
    assert code == 0, name
    assert "jax" not in sys.modules, name
for line in {MISTAKES}:
    name, *arguments = line.split()
    main = importlib.import_module("jaxlm." + name).main
    assert runtime.command(main, arguments) == 2, line
    assert "jax" not in sys.modules, line
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(MISTAKES)
