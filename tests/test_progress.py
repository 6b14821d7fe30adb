"""Progress: plain lines without a terminal, a bar with one."""

import io

import pytest

from jaxlm import progress
from jaxlm.progress import Progress, format_duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_plain_and_rare_without_a_terminal(clock, capsys):
    bar = Progress(100)
    for seconds, done in ((1, 1), (11, 20), (12, 30)):
        clock[0] = seconds
        bar.update(done, f"books {done}/100")
    bar.close()

    # 19 units in 10 s: 80 more take 42 s.
    assert capsys.readouterr().err == "books 20/100 eta 0:42\n"


def test_every_update_is_a_line_if_asked_for(clock):
    out = io.StringIO()
    bar = Progress(2, out=out, line_seconds=0)
    bar.update(1, "step 1/2")
    bar.print("validation")
    bar.update(2, "step 2/2")

    assert out.getvalue() == "step 1/2\nvalidation\nstep 2/2 eta 0:00\n"


def test_a_terminal_has_one_line_that_is_rewritten(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    out = Terminal()
    bar = Progress(2, out=out, line_seconds=0)
    bar.update(1, "step 1/2")
    bar.print("validation")
    bar.update(2, "step 2/2")
    bar.close()

    assert "[##########" in out.getvalue() and "validation\n" in out.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(192, "3:12"), (7384, "2:03:04"), (0.4, "0:00")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text
