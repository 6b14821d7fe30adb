"""Progress of long work: a bar with the time left on a terminal, plain lines elsewhere."""

import math
import os
import sys
import time
from typing import TextIO

from tqdm import tqdm

BAR_FORMAT = "[{bar:20}] {desc}"
REDRAW_SECONDS = 0.2
LINE_SECONDS = 10.0


class Progress:
    """Show how far `total` units of work have come.

    On a terminal one line is rewritten; elsewhere a line is printed at most every `line_seconds`.
    Work that ends before the first line is due prints none. The time left is extrapolated from
    the first update on, so that what comes before it (compilation) does not count.
    """

    def __init__(
        self, total: int, *, out: TextIO | None = None, line_seconds: float = LINE_SECONDS
    ):
        """`out` is sys.stderr unless given: stdout has the results."""
        self.total = total
        self.out = out or sys.stderr
        self.line_seconds = line_seconds
        self.first_update: tuple[int, float] | None = None  # (units done, seconds)
        self.last_line = -math.inf if line_seconds == 0 else time.monotonic()

        self.is_terminal = self.out.isatty() and os.environ.get("TERM") != "dumb"
        self.bar: tqdm | None = None  # from the first update on

    def update(self, done: int, text: str) -> None:
        """Show `text` and the time left; `done` units are finished."""
        now = time.monotonic()
        self.first_update = self.first_update or (done, now)
        text = " ".join([text, *self.time_left(done, now)])

        if self.bar is not None:
            self.bar.set_description_str(text, refresh=False)
            self.bar.update(done - self.bar.n)
        elif self.is_terminal:
            self.bar = tqdm(
                desc=text,
                total=self.total,
                initial=done,
                file=self.out,
                bar_format=BAR_FORMAT,
                mininterval=REDRAW_SECONDS,
                miniters=1,
                leave=self.line_seconds == 0,
                ascii="-#",
                dynamic_ncols=True,
            )
        elif now - self.last_line >= self.line_seconds:
            self.last_line = now
            print(text, file=self.out, flush=True)

    def print(self, message: str) -> None:
        """Print a message of its own, above the bar."""
        if self.bar is not None:
            self.bar.write(message, file=self.out)
        else:
            print(message, file=self.out, flush=True)

    def close(self) -> None:
        """End the bar. May be called again."""
        if self.bar is not None:
            self.bar.close()

    def time_left(self, done: int, now: float) -> list[str]:
        """Return ["eta 3:12"], or nothing before the second update."""
        first_done, first_seconds = self.first_update or (done, now)
        if done <= first_done:
            return []

        seconds = (now - first_seconds) / (done - first_done) * (self.total - done)
        return [f"eta {format_duration(seconds)}"]


def format_duration(seconds: float) -> str:
    """Return 192 as '3:12' and 7384 as '2:03:04'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
