"""A command's life: arguments, exit codes, the lock of its run directory."""

import argparse
import contextlib
import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from jaxlm.config import UserError
from jaxlm.runtime.distributed import is_initialized
from jaxlm.runtime.output import complain

INTERRUPTED, BROKEN_PIPE = 128 + signal.SIGINT, 128 + signal.SIGPIPE  # exit codes, as shells count


class Parser(argparse.ArgumentParser):
    """The arguments of a command, with its examples kept as written in --help; a mistake is a UserError in one line."""

    def __init__(self, prog: str, description: str, epilog: str):
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str):
        hint = (
            "; settings are written without dashes: key=value"
            if message.startswith("unrecognized") and "=" in message
            else ""
        )
        raise UserError(f"{message}{hint} (see {self.prog} --help)")


def command(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Runs a command's `main` on the arguments and returns its exit code; in a process of its own, `run(main)`.

    A UserError becomes one line on stderr and its exit code; a closed pipe and Ctrl-C stay quiet; anything else is our
    mistake and keeps its traceback (1).
    """
    try:
        code = main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        complain(f"error: {' '.join(str(error).split())}")
        code = error.exit_code
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # else the interpreter's last flush complains
        code = BROKEN_PIPE
    except KeyboardInterrupt:
        complain("interrupted")
        code = INTERRUPTED
    except Exception:
        complain(traceback.format_exc())
        code = 1
    return code


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a command's `main` on this process's arguments and ends the process with its exit code.

    After an error it doesn't wait for the threads of libraries (Orbax leaves some waiting for ever when a save failed), nor for
    the other processes of its run.
    """
    code = command(main)
    threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if code and (is_initialized() or not all(thread.daemon for thread in threads)):
        for child in multiprocessing.active_children():
            child.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextlib.contextmanager
def lock(run_directory: Path) -> Iterator[None]:
    """Makes the run directory and holds its lock: two trainers would overwrite each other's checkpoints.

    Raises UserError if another process holds it or the directory can't be written.
    """
    try:
        run_directory.mkdir(parents=True, exist_ok=True)
        file = (run_directory / ".lock").open("a+")
    except FileExistsError as error:
        raise UserError(f"run_directory: {run_directory} is a file, not a folder") from error
    except OSError as error:
        raise UserError(
            f"run_directory: can't write to {run_directory}: {error.strerror}"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            reason = f"another process (pid {holder}) trains in {run_directory}: stop it or choose another run_directory"
            raise UserError(reason) from error
        except OSError as error:  # some cluster file systems have no locks
            print(
                f"warning: can't lock {run_directory} ({error.strerror}); start one trainer only",
                file=sys.stderr,
            )
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield
