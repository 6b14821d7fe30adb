"""The time from the start of a process to its first training step, in parts. Imports no jax."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

IMPORT, SET_UP, COMPILE, FIRST_STEP = "import", "set_up", "compile", "first_step"
START_UP_PARTS = (IMPORT, SET_UP, COMPILE, FIRST_STEP)


class StartUp:
    """Stopwatch of the start of a process.

    What is measured as no part (a store that is prepared, another process that is waited for) is
    left out.
    """

    def __init__(self) -> None:
        """Start with what the process has done so far, which is importing."""
        self.seconds: dict[str, float] = dict.fromkeys(START_UP_PARTS, 0.0)
        self.seconds[IMPORT] = process_age()

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time of the block to a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - started

    def total(self) -> float:
        """Return the seconds to the end of the first step."""
        return sum(self.seconds.values())


def process_age() -> float:
    """Return the seconds since this process was started; 0 where the system doesn't say (macOS)."""
    try:
        # The 22nd field, in clock ticks since boot; the second may hold spaces and parentheses.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(float(Path("/proc/uptime").read_text().split()[0]) - started, 0.0)
    except (OSError, ValueError, IndexError):
        return 0.0
