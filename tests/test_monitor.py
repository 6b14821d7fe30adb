"""metrics.jsonl, TensorBoard's files and the progress line, read back by readers of others."""

import io
import json
import math
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import tqdm.std
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxlm import monitor, progress
from jaxlm.monitor import Monitor, later_name


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    return now


def rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def tensorboard(directory):
    reader = EventAccumulator(str(directory / "tensorboard"))
    reader.Reload()
    return reader


def screen(text):
    """The lines that a terminal shows at the end: each return to its start overwrites it."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def test_rows_carry_the_step_first_and_all_digits(tmp_path):
    with Monitor(tmp_path, 10, 0, tensorboard=False, out=io.StringIO()) as run:
        run.scalars(
            1,
            {
                "train/loss": 1 / 3,
                "train/tokens": 2**60 + 1,
                "train/grad_norm": np.float32(0.1).item(),
            },
        )
        line = (tmp_path / "metrics.jsonl").read_text()  # before close: each row is flushed
    assert line == (
        f'{{"step": 1, "train/loss": {1 / 3!r}, "train/tokens": {2**60 + 1}, '
        f'"train/grad_norm": {float(np.float32(0.1))!r}}}\n'
    )


def test_values_that_json_lacks_become_null(tmp_path):
    with Monitor(tmp_path, 10, 0, tensorboard=False, out=io.StringIO()) as run:
        run.scalars(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.0})
    assert rows(tmp_path) == [{"step": 1, "a": None, "b": None, "c": None, "d": 0.0}]


def test_rows_after_the_restored_step_and_a_partial_line_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 10, "x": 1}\nnot json\n{"step": 20, "x": 2}\n'
        '{"step": 30, "x": 3}\n{"step": 20, "x"'
    )
    with Monitor(tmp_path, 100, 20, tensorboard=False, out=io.StringIO()) as run:
        assert path.read_text() == '{"step": 10, "x": 1}\n{"step": 20, "x": 2}\n'
        run.scalars(30, {"x": 4.0})
    assert rows(tmp_path) == [{"step": 10, "x": 1}, {"step": 20, "x": 2}, {"step": 30, "x": 4.0}]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_complete_row_without_its_newline_is_cut_too(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "x": 1}\n{"step": 2, "x": 2}')
    with Monitor(tmp_path, 100, 5, tensorboard=False, out=io.StringIO()) as run:
        run.scalars(6, {"x": 6.0})
    assert [row["step"] for row in rows(tmp_path)] == [1, 6]


def test_tensorboard_reads_scalars_and_text(tmp_path):
    with Monitor(tmp_path, 10, 0, tensorboard=True, out=io.StringIO()) as run:
        run.scalars(1, {"train/loss": 2.5, "train/mfu": 0.41})
        run.scalars(2, {"train/loss": 2.25})
        run.text(2, "samples", "once upon a **time** ä")
    reader = tensorboard(tmp_path)
    assert [(event.step, event.value) for event in reader.Scalars("train/loss")] == [
        (1, 2.5),
        (2, 2.25),
    ]
    assert reader.Tags()["scalars"] == ["train/loss", "train/mfu"]
    assert (
        reader.Tensors("samples")[0].tensor_proto.string_val[0].decode() == "once upon a **time** ä"
    )
    assert "samples" in reader.PluginTagToContent("text")


def test_tensorboard_forgets_the_steps_that_are_run_again(tmp_path):
    for first_step, last_step, value in ((0, 5, 1.0), (3, 4, 2.0)):
        with Monitor(tmp_path, 10, first_step, tensorboard=True, out=io.StringIO()) as run:
            for step in range(first_step + 1, last_step + 1):
                run.scalars(step, {"x": value, "once" if first_step == 0 else "twice": value})
    reader = tensorboard(tmp_path)
    assert [(event.step, event.value) for event in reader.Scalars("x")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 2.0),
    ]
    assert [event.step for event in reader.Scalars("once")] == [
        1,
        2,
        3,
    ]  # also where the new process has no such tag


def test_tensorflow_stays_out_where_it_is_installed(tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(
        "raise SystemExit('tensorflow was imported')"
    )
    program = """
import pathlib, sys
from jaxlm.monitor import Monitor, later_name
run = Monitor(pathlib.Path(sys.argv[1]), 9, 0, True)
run.scalars(1, {"x": 1.0})
run.text(1, "y", "z")
run.close()
assert "jax" not in sys.modules
"""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("blocked", ["metrics.jsonl", "tensorboard"])
def test_a_place_that_cannot_be_written_costs_one_warning(tmp_path, blocked):
    if blocked == "tensorboard":
        (tmp_path / blocked).write_text("a file where a folder should be")
    else:
        (tmp_path / blocked).mkdir()
    out = io.StringIO()
    with Monitor(tmp_path, 10, 0, tensorboard=True, out=out) as run:
        for step in (1, 2):
            run.scalars(step, {"x": 1.0})
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().startswith(f"warning: can't write {tmp_path / blocked} (")
    if blocked == "tensorboard":
        assert len(rows(tmp_path)) == 2
    else:
        assert len(tensorboard(tmp_path).Scalars("x")) == 2


def test_a_disk_that_fills_up_costs_one_warning_per_record(tmp_path):
    out = io.StringIO()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = Monitor(tmp_path, 10, 0, tensorboard=True, out=out)
    try:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (140, limits[1])
        )  # bytes a file: six rows and a part, or three events
        for step in range(1, 10):
            run.scalars(step, {"x": 1.0})
            run.text(step, "y", "z")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for step in range(10, 12):  # space again: rows after a partial one would be lost
        run.scalars(step, {"x": 1.0})
    run.close()
    warnings = out.getvalue().splitlines()
    assert len(warnings) == 2
    assert all(warning.startswith("warning: can't write") for warning in warnings)
    assert (tmp_path / "metrics.jsonl").stat().st_size == 140
    with Monitor(tmp_path, 10, 100, tensorboard=True, out=out) as run:
        run.scalars(101, {"x": 1.0})
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6, 101]
    assert [event.step for event in tensorboard(tmp_path).Scalars("x")] == [1, 101]


def test_plain_output_is_one_line_a_call(tmp_path, clock):
    out = io.StringIO()
    with Monitor(tmp_path, 1000, 100, tensorboard=False, out=out) as run:
        clock[0] += 60  # compilation
        run.progress(110, {"train/loss": 3.5})
        clock[0] += 2
        values = {
            "train/loss": 3.2141,
            "train/learning_rate": 2.9e-3,
            "train/tokens_per_second": 41234.0,
            "train/mfu": 0.41,
            "x": 1.0,
        }
        run.progress(120, values)
        run.line("saved")
    assert out.getvalue() == (
        # 880 steps are left, at 5 a second: the 60 seconds before the first call don't count.
        "step 110/1000 11% loss 3.500\n"
        "step 120/1000 12% loss 3.214 lr 2.9e-03 41.2k tok/s mfu 41.0% eta 2:56\n"
        "saved\n"
    )


def test_a_terminal_shows_one_line_that_messages_leave_whole(tmp_path, clock):
    out = Terminal()
    run = Monitor(tmp_path, 10, 0, tensorboard=False, out=out)
    run.progress(1, {"train/loss": 3.0})
    clock[0] += 1
    run.progress(2, {"train/loss": 2.0})
    assert screen(out.getvalue()) == ["[####----------------] step 2/10 20% loss 2.000 eta 0:08"]
    run.line("checkpoint saved")
    assert screen(out.getvalue()) == [
        "checkpoint saved",
        "[####----------------] step 2/10 20% loss 2.000 eta 0:08",
    ]
    run.close()
    run.close()
    assert screen(out.getvalue()) == [
        "checkpoint saved",
        "[####----------------] step 2/10 20% loss 2.000 eta 0:08",
        "",
    ]


def test_a_terminal_is_redrawn_a_few_times_a_second_and_at_the_end(tmp_path, clock):
    out = Terminal()
    with Monitor(tmp_path, 1000, 0, tensorboard=False, out=out) as run:
        for step in range(1, 1001):
            clock[0] += 0.01
            run.progress(step, {})
    assert 45 <= out.getvalue().count("\r") <= 52  # 10 seconds
    assert "step 1000/1000 100%" in screen(out.getvalue())[-2]


def test_a_stopped_run_leaves_its_newest_step_on_screen(tmp_path, clock):
    out = Terminal()
    with Monitor(tmp_path, 1000, 0, tensorboard=False, out=out) as run:
        run.progress(1, {})
        run.progress(2, {})  # too soon to be drawn
    assert "step 2/1000" in screen(out.getvalue())[0]


def test_a_narrow_terminal_gets_a_line_that_does_not_wrap(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((30, 10)))
    monkeypatch.setattr(Terminal, "fileno", lambda _: 1)
    out = Terminal()
    Monitor(tmp_path, 1000, 0, tensorboard=False, out=out).progress(1, {"train/loss": 3.0})
    assert screen(out.getvalue())[0] == "[--------------------] step 1"


def test_quantities_and_durations():
    assert [monitor.format_quantity(value) for value in (0, 999, 1000, 41234, 2.5e6)] == [
        "0",
        "999",
        "1.0k",
        "41.2k",
        "2.5M",
    ]
    assert [progress.format_duration(value) for value in (0, 9.6, 192, 7384, 360000)] == [
        "0:00",
        "0:10",
        "3:12",
        "2:03:04",
        "100:00:00",
    ]


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["events.out.tfevents.1700000000.000000.host.1"],
        ["events.out.tfevents.9999999998.000000.host.1"],  # of a clock that was ahead
        ["events.out.tfevents.9999999999.999999.host.1"],
        ["events.out.tfevents.ahead", "events.out.tfevents.1.host"],
        ["zzz.txt"],
    ],
)
def test_a_new_event_file_sorts_after_the_others(names):
    events = [name for name in names if name.startswith("events")]
    for _ in range(3):
        name = later_name([*names, *events])
        assert "tfevents" in name and all(name > other for other in events)
        events.append(name)
