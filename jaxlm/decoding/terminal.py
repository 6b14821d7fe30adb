"""Read the lines that a user types or pipes."""

import contextlib
import sys
from collections.abc import Iterator

from jaxlm.config import UserError

PROMPT = "> "
MOST_LINE_BYTES = 1 << 24  # of what is piped


def read_lines() -> Iterator[str]:
    """Yield the lines of stdin until its end; a terminal shows a prompt before each.

    On a terminal Ctrl-C ends them too, and a line that is no text is refused there and then. Raises
    UserError for one that is piped.
    """
    if not sys.stdin.isatty():
        yield from read_piped_lines()
        return

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives `input` a history, and keys that edit)
    while True:
        try:
            line = input(PROMPT)
        except (EOFError, KeyboardInterrupt):
            print(flush=True)
            return
        except UnicodeDecodeError:
            line = "\udcff"
        if is_text(line):
            yield line
        else:
            print("error: the line holds bytes that are not UTF-8", file=sys.stderr, flush=True)


def read_piped_lines() -> Iterator[str]:
    """Yield the lines of stdin that a program or a file writes; UserError names a wrong one."""
    number = 0
    while content := sys.stdin.buffer.readline(MOST_LINE_BYTES + 1):
        number += 1
        if len(content) > MOST_LINE_BYTES:
            raise UserError(f"stdin:{number}: is longer than {MOST_LINE_BYTES >> 20} MiB")
        try:
            line = content.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"stdin:{number}: not UTF-8 (byte {error.start})") from error
        yield line.removeprefix("\ufeff") if number == 1 else line


def is_text(line: str) -> bool:
    """Return whether UTF-8 can spell a line."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True
