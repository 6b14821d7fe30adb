"""Where a long evaluation is: one line, rewritten on a terminal, else a line now and then. On stderr: stdout has the results."""

import os
import sys
import time
from typing import TextIO

from jaxlm.types import Batch, Batches

TERMINAL_SECONDS, FILE_SECONDS = 0.2, 10.0  # between two lines at least
BAR_WIDTH = 20


class Progress:
    """Of `total` steps of `what`. Work that is done before the first line is due shows none."""

    def __init__(self, what: str, total: int, out: TextIO | None = None):
        self.what, self.total, self.out = what, total, out or sys.stderr
        self.live = self.out.isatty() and os.environ.get("TERM") != "dumb"
        self.started = self.drawn = time.monotonic()

    def __call__(self, done: int) -> None:
        """So many are done."""
        now = time.monotonic()
        if now - self.drawn < (TERMINAL_SECONDS if self.live else FILE_SECONDS):
            return
        self.drawn = now
        left = (now - self.started) / done * (self.total - done) if done else 0.0
        text = f"{self.what} {done:,}/{self.total:,} {done / self.total:.0%}" + (
            f" eta {duration(left)}" if done else ""
        )
        if self.live:
            full = BAR_WIDTH * done // self.total
            print(
                f"\r\x1b[K[{'#' * full}{'-' * (BAR_WIDTH - full)}] {text}",
                end="",
                file=self.out,
                flush=True,
            )
        else:
            print(text, file=self.out, flush=True)

    def close(self) -> None:
        """Removes the line from a terminal."""
        if self.live:
            print("\r\x1b[K", end="", file=self.out, flush=True)


class Watched:
    """Batches that tell how many have been asked for."""

    def __init__(self, batches: Batches, progress: Progress):
        self.batches, self.progress = batches, progress

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        self.progress(index)
        return self.batches[index]


def duration(seconds: float) -> str:
    """192 -> '3:12', 7384 -> '2:03:04'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
