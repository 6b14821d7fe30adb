"""The life of a command: exit codes and the lock of the run directory."""

import errno
import io
import os
import sys
import threading

import pytest
from support.programs import run_command, start_python

from jaxlm import runtime
from jaxlm.config import DivergedError, UserError

ENDS = [  # body of a command, exit code, stdout, stderr
    ("return 75 if argv == ['x'] else 0", 75, "", ""),
    (
        "raise config.UserError('a.txt:3: no text\\n  here')",
        2,
        "",
        "error: a.txt:3: no text here\n",
    ),
    ("raise config.ConfigError('model.heads', 'is odd')", 2, "", "error: model.heads: is odd\n"),
    ("raise config.NoCheckpointError('none')", 3, "", "error: none\n"),
    ("raise config.DivergedError('nan')", 4, "", "error: nan\n"),
    ("raise config.LostError('gone')", 5, "", "error: gone\n"),
    ("raise KeyboardInterrupt", 130, "", "interrupted\n"),
    # It would hang without the forced exit.
    (
        "print('before')\nthreading.Thread(target=threading.Event().wait).start()\n"
        "raise config.UserError('full disk')",
        2,
        "before\n",
        "error: full disk\n",
    ),
]


@pytest.mark.parametrize(("body", "code", "out", "err"), ENDS, ids=[body for body, *_ in ENDS])
def test_how_a_command_ends(body, code, out, err):
    done = run_command(body)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_a_message_may_name_a_file_whose_name_is_not_utf8(monkeypatch):
    written = io.BytesIO()
    stderr = io.TextIOWrapper(written, encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stderr", stderr)

    def fail(argv):
        raise UserError("\udcff.txt: no text")

    assert runtime.command(fail, []) == 2
    assert written.getvalue() == b"error: \\udcff.txt: no text\n"


def test_our_own_mistakes_keep_their_traceback():
    done = run_command("return {}['layers']")
    assert done.returncode == 1
    assert "KeyError: 'layers'" in done.stderr and "Traceback" in done.stderr


def test_a_closed_pipe_is_quiet():
    process = start_python(
        """
        from jaxlm import runtime

        def main(argv):
            for _ in range(100000):
                print("a line")
            return 0

        runtime.run(main)
        """
    )
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141


def test_an_error_of_a_command_leaves_the_process_of_its_caller_alone():
    thread_ends, mistake = threading.Event(), DivergedError("training: the loss is nan")
    thread = threading.Thread(target=thread_ends.wait)
    thread.start()

    def main(argv):
        raise mistake

    assert runtime.command(main, []) == 4
    thread_ends.set()
    thread.join()


def test_a_wrong_argument_names_the_help():
    parser = runtime.Parser(prog="python -m jaxlm.x", description="", epilog="")
    with pytest.raises(UserError) as caught:
        parser.parse_args(["--model.layers=3"])
    hint = "config values are written without dashes: key=value"
    expected = f"unrecognized arguments: --model.layers=3; {hint} (see python -m jaxlm.x --help)"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        (["import", "--confg", "x.py"], "(did you mean '--config'?)"),
        (["import", "--confg=x.py"], "(did you mean '--config'?)"),
        (["exprot"], "(did you mean 'export'?)"),
        (["export", "--detype", "x"], "(did you mean '--dtype'?)"),
        (["export", "--dtype", "flaot32"], "(did you mean 'float32'?)"),
        (["unlike"], "choose from 'import', 'export') (see"),
    ],
)
def test_a_misspelt_argument_names_the_nearest(argument, hint):
    parser = runtime.Parser(prog="python -m jaxlm.x", description="", epilog="")
    parser.add_argument("--config")
    commands = parser.add_subparsers(required=True)
    commands.add_parser("import", description="", epilog="")
    exporting = commands.add_parser("export", description="", epilog="")
    exporting.add_argument("--dtype", choices=("float32", "bfloat16"))
    with pytest.raises(UserError) as caught:
        parser.parse_args(argument)
    assert hint in str(caught.value)


def library_error() -> Exception:
    """Return what a library in another language raises."""
    return Exception(f"{os.strerror(errno.ENOSPC)} (os error {errno.ENOSPC})")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "", "a/b.json"), "error: a/b.json: No space left on device"),
        (OSError(errno.EDQUOT, ""), "error: can't write: Disk quota exceeded"),
        (OSError(errno.EFBIG, "", "c"), "error: c: File too large"),
        (library_error(), "error: can't write: No space left on device"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_one_line_wherever(capsys, error, line, wrapped):
    def main(argv):
        try:
            raise error
        except Exception as inner:
            if wrapped:
                raise RuntimeError("a library failed") from inner
            raise

    assert runtime.command(main, []) == 2
    assert capsys.readouterr().err == f"{line}\n"


# The lock


@pytest.mark.parametrize("existing", ["", "runs", "runs/a"])
def test_a_mistake_leaves_no_run_directory(tmp_path, existing):
    (tmp_path / existing).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError), runtime.lock_run_directory(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "a" / "checkpoints").mkdir()
        raise UserError("a path is misspelt")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["config.json", "checkpoints/8/state", "notes/mine.txt"])
def test_a_directory_that_holds_something_stays(tmp_path, name):
    with runtime.lock_run_directory(tmp_path / "a"):
        path = tmp_path / "a" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert path.exists() and (tmp_path / "a" / ".lock").exists()


def test_a_second_process_is_told_who_trains(tmp_path):
    directory = tmp_path / "runs" / "a"
    holder = start_python(
        f"""
        import pathlib, sys
        from jaxlm.runtime import lock_run_directory

        with lock_run_directory(pathlib.Path({str(directory)!r})):
            print("locked", flush=True)
            sys.stdin.read()
        """
    )
    assert holder.stdout and holder.stdout.readline() == "locked\n"
    message = rf"^another process \(pid {holder.pid}\) trains in {directory}"
    with pytest.raises(UserError, match=message), runtime.lock_run_directory(directory):
        pass

    holder.kill()  # the lock of a killed process is free
    holder.communicate()
    with runtime.lock_run_directory(directory):
        assert (directory / ".lock").read_text() == str(os.getpid())
    assert not (directory / ".lock").exists()  # nothing was written, so nothing is left


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "run_directory: .*/file is a file, not a folder"),
        ("file/run", "run_directory: can't write to .*/file/run: Not a directory"),
    ],
)
def test_a_run_directory_that_cannot_be_made_is_named(tmp_path, name, message):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message), runtime.lock_run_directory(tmp_path / name):
        pass
