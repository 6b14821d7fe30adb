"""Records of a run (metrics.jsonl, TensorBoard), and its progress on the terminal.

The tags are those of TensorBoard: train/loss, train/learning_rate, train/grad_norm,
train/param_norm, train/tokens_per_second, train/mfu, train/tokens, eval/loss, eval/perplexity,
eval/bits_per_byte; in float16 train/loss_scale and train/skipped_steps. This is the only module
that knows TensorBoard.
"""
# pyright: reportAttributeAccessIssue=false
# (the classes of the protocol buffers are made at run time)

import json
import math
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TextIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

from jaxlm.files import atomic_writer
from jaxlm.progress import Progress

EVENTS = "events.out.tfevents."  # event files are called EVENTS + seconds + place
FORMATS: dict[str, Callable[[float], str]] = {  # parts of the progress line, in order
    "train/loss": lambda value: f"loss {value:.3f}",
    "eval/loss": lambda value: f"eval {value:.3f}",
    "train/learning_rate": lambda value: f"lr {value:.1e}",
    "train/loss_scale": lambda value: f"scale {value:g}",
    "train/skipped_steps": lambda value: f"skipped {value}" if value else "",
    "train/tokens_per_second": lambda value: f"{format_quantity(value)} tok/s",
    "train/mfu": lambda value: f"mfu {value:.1%}",
}


class Sink(Protocol):
    """A place where a run is recorded. Every method may raise OSError."""

    path: Path

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def text(self, step: int, tag: str, text: str) -> None: ...
    def close(self) -> None: ...


class Monitor:
    """Record and show the steps after `first_step`.

    What an earlier process recorded of those steps is removed. A record that can't be written (full
    disk, no permission) costs one warning and is given up; the run continues.
    """

    def __init__(
        self,
        run_directory: Path,
        total_steps: int,
        first_step: int,
        tensorboard: bool,
        out: TextIO | None = None,
    ):
        """`out` is where progress is shown: sys.stdout unless given."""
        self._total_steps = total_steps
        self._progress = Progress(total_steps, out=out or sys.stdout, line_seconds=0)

        self._sinks: list[Sink] = []
        self._open(MetricsFile, run_directory / "metrics.jsonl", first_step)
        if tensorboard:
            self._open(EventFile, run_directory / "tensorboard", first_step)

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one row to metrics.jsonl, and a point per tag to TensorBoard."""
        self._record(lambda sink: sink.scalars(step, values))

    def text(self, step: int, tag: str, text: str) -> None:
        """Add a text (markdown) to TensorBoard."""
        self._record(lambda sink: sink.text(step, tag, text))

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        """Show where the run is: rewritten in place on a terminal, else one line per call."""
        parts = [f"step {step}/{self._total_steps} {step / self._total_steps:.0%}"]
        parts += [text(values[tag]) for tag, text in FORMATS.items() if tag in values]
        self._progress.update(step, " ".join(filter(None, parts)))

    def line(self, text: str) -> None:
        """Print a message of its own, above the progress line."""
        self._progress.print(text)

    def close(self) -> None:
        """End the progress line and close the files. May be called again."""
        self._progress.close()
        self._record(lambda sink: sink.close())
        self._sinks.clear()

    def _open(self, sink: Callable[[Path, int], Sink], path: Path, first_step: int) -> None:
        try:
            self._sinks.append(sink(path, first_step))
        except OSError as error:
            self._warn(path, error)

    def _record(self, write: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                write(sink)
            except OSError as error:
                self._sinks.remove(sink)
                self._warn(sink.path, error)

    def _warn(self, path: Path, error: OSError) -> None:
        reason = error.strerror or error
        self.line(f"warning: can't write {path} ({reason}): the run continues without it")


class NullMonitor:
    """The monitor of processes other than 0: messages go to their logs, nothing is recorded."""

    def __enter__(self) -> "NullMonitor":
        return self

    def __exit__(self, *_) -> None: ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def text(self, step: int, tag: str, text: str) -> None: ...

    def progress(self, step: int, values: Mapping[str, float]) -> None: ...

    def line(self, text: str) -> None:
        """Print a message."""
        print(text, flush=True)


class MetricsFile:
    """metrics.jsonl: one object a line, `step` first.

    Floats have all their digits; what is not finite is null.
    """

    def __init__(self, path: Path, first_step: int):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            remove_rows_after(path, first_step)

        # Unbuffered: a row is with the system when the call returns, and a failed one is not
        # written again later.
        self._file = path.open("ab", buffering=0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write a row."""
        row = {"step": step, **{tag: json_number(value) for tag, value in values.items()}}
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        if self._file.write(line) < len(line):
            raise OSError("the disk took half a row")

    def text(self, step: int, tag: str, text: str) -> None:
        """Write nothing: texts are for TensorBoard alone."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def remove_rows_after(path: Path, last_step: int) -> None:
    """Remove rows after `last_step` and damaged ones, such as the half row of a killed process."""
    with path.open("rb") as rows, atomic_writer(path) as file:
        file.writelines(row for row in rows if is_row_up_to(row, last_step))


def is_row_up_to(row: bytes, last_step: int) -> bool:
    """Return whether a line of metrics.jsonl is whole, and of a step up to `last_step`."""
    try:
        step = json.loads(row)["step"]
    except (ValueError, TypeError, KeyError):
        return False
    return row.endswith(b"\n") and isinstance(step, int) and step <= last_step


def json_number(value: float) -> float | None:
    """Return a Python number; None (null) for NaN and infinities, which JSON lacks."""
    if isinstance(value, int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None


class EventFile:
    """An event file in TensorBoard's folder.

    TensorBoard's own EventFileWriter is not used: it loads TensorFlow where that is installed.
    """

    def __init__(self, directory: Path, first_step: int):
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / later_name([path.name for path in directory.iterdir()])
        self._writer = RecordWriter(self.path.open("xb", buffering=0))
        self._write(Event(file_version="brain.Event:2"))

        # Tells TensorBoard to forget what earlier files hold from this step on.
        self._write(Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write a point per tag."""
        points = [
            Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()
        ]
        self._write(Event(step=step, summary=Summary(value=points)))

    def text(self, step: int, tag: str, text: str) -> None:
        """Write a text."""
        tensor = TensorProto(
            dtype=DT_STRING, string_val=[text.encode()], tensor_shape=TensorShapeProto()
        )
        plugin = SummaryMetadata.PluginData(plugin_name="text")
        value = Summary.Value(tag=tag, tensor=tensor, metadata=SummaryMetadata(plugin_data=plugin))
        self._write(Event(step=step, summary=Summary(value=[value])))

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())


def later_name(names: Sequence[str]) -> str:
    """Return the name of a new event file, which sorts after the others among `names`.

    TensorBoard reads the files of a folder in the order of their names, and the clock may have been
    ahead when an earlier one was made.
    """
    place = f"{socket.gethostname()}.{os.getpid()}"
    last = max((name for name in names if name.startswith(EVENTS)), default="")
    stamp = re.match(r"\d{1,12}", last.removeprefix(EVENTS))
    seconds = max(time.time(), float(stamp[0]) + 1 if stamp else 0.0)

    name = f"{EVENTS}{seconds:017.6f}.{place}"
    return name if name > last else f"{last}.{place}"


def format_quantity(value: float) -> str:
    """Return 41234 as '41.2k'."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"
