"""The life of a command: arguments, exit codes, the lock of its run directory."""

import argparse
import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from jaxlm.config import UserError
from jaxlm.config.fields import suggestion
from jaxlm.files import write_output
from jaxlm.runtime.distributed import is_initialized
from jaxlm.runtime.output import print_error

LOCK = ".lock"  # file of a run directory
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED, BROKEN_PIPE = 128 + signal.SIGINT, 128 + signal.SIGPIPE  # exit codes, as in shells


class Parser(argparse.ArgumentParser):
    """The parser of a command's arguments.

    --help keeps the examples as they are written; a mistake is a UserError of one line.
    """

    def __init__(self, prog: str, description: str, epilog: str):
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        arguments = sys.argv[1:] if args is None else list(args)
        for argument in arguments:
            # argparse makes an empty list of the value.
            if argument.startswith("--") and argument.endswith("=--"):
                self.error(f"argument {argument.removesuffix('=--')}: '--' is no value")
        return super().parse_known_args(arguments, namespace)

    def error(self, message: str):
        hint = self._suggest_option(message) or suggest_choice(message)
        if not hint and message.startswith("unrecognized") and "=" in message:
            hint = "; config values are written without dashes: key=value"
        raise UserError(f"{message}{hint} (see {self.prog} --help)")

    def _suggest_option(self, message: str) -> str:
        """Return ' (did you mean X?)' where the first unknown argument is like an option."""
        match = re.match(r"unrecognized arguments: (--?[^\s=]+)", message)
        return suggestion(match[1], option_names(self)) if match else ""


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """Return the options of a parser and of its subcommands."""
    names = list(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                names += option_names(subparser)
    return names


def suggest_choice(message: str) -> str:
    """Return ' (did you mean X?)' for argparse's message of a wrong choice, or ''."""
    match = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
    if match is None:
        return ""
    return suggestion(match[1], [choice.strip("' ") for choice in match[2].split(",")])


def command(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Call the `main` of a command with the arguments and return its exit code.

    A UserError becomes one line on stderr and its exit code; a closed pipe and Ctrl-C stay quiet;
    anything else is our mistake and keeps its traceback (1). `run(main)` also ends the process.
    """
    try:
        code = main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except UserError as error:
        # File names and arguments may hold bytes that are not UTF-8.
        message = str(error).encode(errors="backslashreplace").decode()
        print_error(f"error: {' '.join(message.split())}")
        code = error.exit_code
    except BrokenPipeError:
        # Otherwise the interpreter's last flush would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = BROKEN_PIPE
    except KeyboardInterrupt:
        print_error("interrupted")
        code = INTERRUPTED
    except Exception as error:
        problem = describe_full_disk(error)
        print_error(f"error: {problem}" if problem else traceback.format_exc())
        code = UserError.exit_code if problem else 1

    return code


def call_command(
    argv: Sequence[str], *, program: str, commands: dict[str, str], text: str, find: Callable
) -> int:
    """Call the command that `argv` names first with its other arguments, or list them all.

    `commands` are those of `program` and what each is for, `text` the help with a place for them.
    `find` returns the `main` of a name.
    """
    width = max(map(len, commands))
    lines = [f"  {program}{name:<{width}}  {use}" for name, use in commands.items()]
    text = text.format(commands="\n".join(lines))
    if argv and argv[0] in ("-h", "--help", "help"):
        print(text)
        return 0
    if not argv:
        print(text, file=sys.stderr)
        return UserError.exit_code

    name = argv[0]
    if name not in commands:
        hint = suggestion(name, commands) or f" (there are: {', '.join(commands)})"
        raise UserError(f"there is no command {name!r}{hint}; see {program.rstrip(' .')} --help")
    return find(name)(argv[1:])


def describe_full_disk(error: BaseException | None) -> str:
    """Return one line on an error that a full disk or a quota has caused, or ''.

    Libraries in other languages tell it in the text of an exception of their own.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            file = f"{error.filename}: " if error.filename else "can't write: "
            return f"{file}{os.strerror(error.errno)}"
        for number in DISK_ERRORS:
            if os.strerror(number) in str(error):
                return f"can't write: {os.strerror(number)}"
        error = error.__cause__ or error.__context__
    return ""


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Call the `main` of a command with this process's arguments and end with its exit code.

    After an error it waits neither for the threads of libraries (Orbax leaves some waiting for ever
    when a save failed) nor for the other processes of its run.
    """
    code = command(main)

    threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    must_wait = is_initialized() or not all(thread.daemon for thread in threads)
    if code and must_wait:
        for child in multiprocessing.active_children():
            child.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    sys.exit(code)


def check_output_file(option: str, path: str | None) -> None:
    """Raise UserError for a file that can't be written later; `option` (--json) names it."""
    if path is None:
        return
    target = Path(path)
    try:
        if path in ("", "-") or target.is_dir():  # "-" means stdout where a command has that
            raise UserError(f"{option}: {path!r} is no file name: name a file to write")
        if not target.parent.is_dir():
            raise UserError(f"{option}: {target.parent}: no such folder")
        writable = target if target.exists() else target.parent
    except OSError as error:  # a name that is too long
        raise UserError(f"{option}: {path}: {error.strerror}") from error
    if not os.access(writable, os.W_OK):
        raise UserError(f"{option}: {path}: Permission denied")


def write_json(path: str, document: dict[str, Any]) -> None:
    """Write what `--json` asks for to `path`. Raises UserError where that is not possible."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        # A file name that is not UTF-8 stays readable JSON: \\udcff.
        write_output(Path(path), text.encode(errors="backslashreplace").decode())
    except OSError as error:
        raise UserError(f"--json: {path}: {error.strerror}") from error


def add_config_arguments(parser: argparse.ArgumentParser, data_use: str, example: str) -> None:
    """Add --config, --data and the edits; `data_use` begins the help of --data."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="a Python file with `config = Config(...)`, or a run's config.json",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help=f"{data_use} this file, folder or glob instead of the config's sources",
    )
    parser.add_argument(
        "edits", nargs="*", metavar="key=value", help=f"changes to the config, such as {example}"
    )


def add_keep_argument(parser: argparse.ArgumentParser) -> None:
    """Add --keep. It runs a user's code, so it is an argument and never a part of a config."""
    parser.add_argument(
        "--keep",
        metavar="FILE.py:FUNCTION",
        help="keep the documents for whose text this function of yours returns True",
    )


def memory_advice(config_file: str, edits: Sequence[str]) -> str:
    """Return what makes the steps of a config smaller, and the command that says by how much."""
    command = ["python", "-m", "jaxlm.plan", "memory", "--config", config_file, *edits]
    return (
        "lower training.batch_size or data.sequence_length, or raise training.microbatches; "
        "parallel.zero=3 on several devices and parallel.remat=full need less, too; "
        f"`{shlex.join(command)}` says what each change saves"
    )


@contextlib.contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Raise UserError with the advice where the memory of the host or of a device is too small."""
    try:
        yield
    except MemoryError as error:
        raise UserError(f"the memory is too small: {advice}") from error
    except RuntimeError as error:  # as jax's is
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise UserError(f"the memory of the device is too small: {advice}") from error


@contextlib.contextmanager
def lock_run_directory(run_directory: Path) -> Iterator[None]:
    """Make the run directory and hold its lock while the block runs.

    Two trainers would overwrite each other's checkpoints. A directory that was made here and in
    which nothing was written is removed again. Raises UserError if another process holds the lock
    or the directory can't be written.
    """
    made = [path for path in (run_directory, *run_directory.parents) if not path.exists()]
    try:
        file = open_lock(run_directory)
    except FileExistsError as error:
        raise UserError(f"run_directory: {run_directory} is a file, not a folder") from error
    except OSError as error:
        reason = f"can't write to {run_directory}: {error.strerror}"
        raise UserError(f"run_directory: {reason}") from error

    with file:
        # The pid is only for the message: on a full disk the lock holds without it.
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()

        try:
            yield
        finally:
            remove_unused(run_directory, made)


def open_lock(run_directory: Path) -> TextIO:
    """Return the open lock file of a run directory, which is made, with its lock held."""
    path = run_directory / LOCK
    while True:
        run_directory.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            pid = file.read().strip() or "unknown"
            file.close()
            problem = f"another process (pid {pid}) trains in {run_directory}"
            raise UserError(f"{problem}: stop it or choose another run_directory") from error
        except OSError as error:  # some file systems of clusters have no locks
            problem = f"can't lock {run_directory} ({error.strerror})"
            print(f"warning: {problem}; start one trainer only", file=sys.stderr)
            return file

        # A process that ended in the meantime may have removed the file that was locked.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()


def remove_unused(run_directory: Path, made: Sequence[Path]) -> None:
    """Remove what a mistake leaves of a run: its lock, no checkpoints, and the folders of `made`.

    A directory with anything else is left as it is.
    """
    lock, checkpoints = run_directory / LOCK, run_directory / "checkpoints"
    with contextlib.suppress(OSError):
        if set(run_directory.iterdir()) - {lock, checkpoints}:
            return
        if checkpoints.exists():
            checkpoints.rmdir()  # fails unless it is empty
        lock.unlink()
        for path in made:
            path.rmdir()
