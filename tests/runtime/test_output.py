"""Output of the processes of a run: process 0 prints to the terminal, the others to files."""

import pytest
from support.programs import run_python

from jaxlm.config import UserError
from jaxlm.runtime.output import redirect_output

PROGRAM = """
import os, pathlib, sys
from jaxlm.runtime.output import print_error, redirect_output
redirect_output(pathlib.Path({directory!r}), {process})
print("python")
os.write(1, b"native\\n")
print_error("error: a mistake\\n")
"""


def redirected(tmp_path, process):
    """Return stdout, stderr and the lines of the log of a process after its first."""
    done = run_python(PROGRAM.format(directory=str(tmp_path), process=process))
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "logs" / f"process-{process}.log").read_text().splitlines()
    assert lines[0].startswith("--- ") and "pid" in lines[0]
    return done.stdout, done.stderr, lines[1:]


def test_process_0_prints_to_the_terminal(tmp_path):
    assert redirected(tmp_path, 0) == ("python\n", "error: a mistake\n", ["native"])


def test_the_others_print_to_files_and_errors_to_the_terminal_too(tmp_path):
    out, err, lines = redirected(tmp_path, 1)
    assert (out, err) == ("", "process 1: error: a mistake\n")
    assert sorted(lines) == ["error: a mistake", "native", "python"]

    # A second start appends.
    assert len(redirected(tmp_path, 1)[2]) == 7


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "logs").touch()
    with pytest.raises(UserError, match=r"^run_directory: can't write .*logs/process-1\.log: "):
        redirect_output(tmp_path, 1)
