"""Output of the processes of a run: process 0 prints to the terminal, the others to files."""

import os
import socket
import sys
import time
from pathlib import Path

from jaxlm.config import UserError

# Number of this process, and its stderr before that became a file
_terminal: tuple[int, int] | None = None


def redirect_output(run_directory: Path, process: int) -> None:
    """Append what this process prints from now on to logs/process-N.log of the run.

    Process 0 still prints to the terminal; only what native libraries print on its stdout is
    redirected (gloo prints a line for every device). Raises UserError if the file can't be written.
    """
    global _terminal
    path = run_directory / "logs" / f"process-{process}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"run_directory: can't write {path}: {error.strerror}") from error

    sys.stdout.flush()
    sys.stderr.flush()
    if process == 0:
        # Python's stdout moves to a copy of the terminal before descriptor 1 becomes the file.
        terminal = os.dup(1)
        encoding, errors = sys.stdout.encoding, sys.stdout.errors
        sys.stdout = os.fdopen(terminal, "w", buffering=1, encoding=encoding, errors=errors)
    else:
        _terminal = process, os.dup(2)
        os.dup2(log, 2)
    os.dup2(log, 1)
    os.close(log)

    now = time.strftime("%Y-%m-%d %H:%M:%S")
    os.write(1, f"--- {now}, {socket.gethostname()}, pid {os.getpid()} ---\n".encode())


def print_error(text: str) -> None:
    """Print an error on stderr, and also on the terminal if stderr has become a file."""
    print(text.rstrip(), file=sys.stderr, flush=True)
    if _terminal is not None:
        process, stream = _terminal
        os.write(stream, f"process {process}: {text.rstrip()}\n".encode(errors="replace"))
