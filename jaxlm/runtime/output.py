"""Where a process of a run writes: process 0 to the terminal, the others to files."""

import os
import socket
import sys
import time
from pathlib import Path

from jaxlm.config import UserError

_terminal: tuple[int, int] | None = (
    None  # this process's number, and what its stderr was before it became a file
)


def to_log(run_directory: Path, process: int) -> None:
    """From here on what this process prints goes to logs/process-N.log of the run, after what earlier starts wrote there.

    Of process 0 only what native libraries print on stdout, of which gloo prints a line for every device.
    Raises UserError if the file can't be written.
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
        sys.stdout = os.fdopen(
            os.dup(1), "w", buffering=1, encoding=sys.stdout.encoding, errors=sys.stdout.errors
        )
    else:
        _terminal = process, os.dup(2)
        os.dup2(log, 2)
    os.dup2(log, 1)
    os.close(log)
    os.write(
        1,
        f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}, {socket.gethostname()}, pid {os.getpid()} ---\n".encode(),
    )


def complain(text: str) -> None:
    """Writes an error to stderr, and where that has become a file also to what it was before, where whoever started the process looks."""
    print(text.rstrip(), file=sys.stderr, flush=True)
    if _terminal is not None:
        number, stream = _terminal
        os.write(stream, f"process {number}: {text.rstrip()}\n".encode(errors="replace"))
