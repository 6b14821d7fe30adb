"""What a run records and shows: metrics.jsonl, TensorBoard, one live line on the terminal. The only module that knows TensorBoard.

The tags are those of TensorBoard: train/loss, train/learning_rate, train/grad_norm, train/param_norm, train/tokens_per_second,
train/mfu, train/tokens, eval/loss, eval/perplexity, eval/bits_per_byte.
"""
# pyright: reportAttributeAccessIssue=false
# (the protocol buffers' classes are made at run time)

import json
import math
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TextIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

REDRAW_SECONDS = 0.2
BAR_WIDTH = 20
CLEAR_LINE = "\r\x1b[K"
SHOWN: dict[str, Callable[[float], str]] = {  # parts of the progress line, in order
    "train/loss": lambda value: f"loss {value:.3f}",
    "eval/loss": lambda value: f"eval {value:.3f}",
    "train/learning_rate": lambda value: f"lr {value:.1e}",
    "train/tokens_per_second": lambda value: f"{quantity(value)} tok/s",
    "train/mfu": lambda value: f"mfu {value:.1%}",
}


class Sink(Protocol):
    """A place where a run is recorded. Every method may raise OSError."""

    path: Path

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def text(self, step: int, tag: str, text: str) -> None: ...
    def close(self) -> None: ...


class Monitor:
    """Records and shows the steps after `first_step`; what an earlier process recorded of those is removed.

    A record that can't be written (full disk, no permission) costs one warning and is given up; the run goes on.
    `out` is where progress is shown: sys.stdout unless given.
    """

    def __init__(
        self,
        run_directory: Path,
        total_steps: int,
        first_step: int,
        tensorboard: bool,
        out: TextIO | None = None,
    ):
        self._out = out or sys.stdout
        self._live = self._out.isatty() and os.environ.get("TERM") != "dumb"
        self._total_steps = total_steps
        self._timed_from: tuple[int, float] | None = (
            None  # (step, seconds): after compilation, so that the ETA leaves it out
        )
        self._shown, self._drawn_at = "", -math.inf
        self._sinks: list[Sink] = []
        self._open(Rows, run_directory / "metrics.jsonl", first_step)
        if tensorboard:
            self._open(Events, run_directory / "tensorboard", first_step)

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One row of metrics.jsonl, and a point per tag in TensorBoard."""
        self._record(lambda sink: sink.scalars(step, values))

    def text(self, step: int, tag: str, text: str) -> None:
        """A text (markdown) in TensorBoard."""
        self._record(lambda sink: sink.text(step, tag, text))

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        """Shows where the run is: rewritten in place on a terminal, else one line per call."""
        now = time.monotonic()
        self._timed_from = self._timed_from or (step, now)
        parts = [show(values[tag]) for tag, show in SHOWN.items() if tag in values]
        text = " ".join(
            [
                f"step {step}/{self._total_steps} {step / self._total_steps:.0%}",
                *parts,
                *self._eta(step, now),
            ]
        )
        if not self._live:
            print(text, file=self._out, flush=True)
            return
        self._shown = f"{bar(step / self._total_steps)} {text}"
        if now - self._drawn_at >= REDRAW_SECONDS or step >= self._total_steps:
            self._drawn_at = now
            self._draw()

    def line(self, text: str) -> None:
        """Prints a message of its own, above the live line."""
        print(f"{CLEAR_LINE}{text}" if self._shown else text, file=self._out, flush=True)
        self._draw()

    def close(self) -> None:
        """Ends the live line and closes the files. May be called again."""
        self._draw("\n")
        self._shown = ""
        self._record(lambda sink: sink.close())
        self._sinks.clear()

    def _open(self, kind: Callable[[Path, int], Sink], path: Path, first_step: int) -> None:
        try:
            self._sinks.append(kind(path, first_step))
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
        self.line(
            f"warning: can't write {path} ({error.strerror or error}): the run goes on without it"
        )

    def _draw(self, end: str = "") -> None:
        if self._shown:
            width = shutil.get_terminal_size().columns - 1
            print(f"{CLEAR_LINE}{self._shown[:width]}", end=end, file=self._out, flush=True)

    def _eta(self, step: int, now: float) -> list[str]:
        first_step, start = self._timed_from or (step, now)
        if step <= first_step:
            return []
        return [f"eta {duration((now - start) / (step - first_step) * (self._total_steps - step))}"]


class NullMonitor:
    """What the other processes of a run have in a Monitor's place: messages go to their logs, nothing is recorded."""

    def __enter__(self) -> "NullMonitor":
        return self

    def __exit__(self, *_) -> None: ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def text(self, step: int, tag: str, text: str) -> None: ...

    def progress(self, step: int, values: Mapping[str, float]) -> None: ...

    def line(self, text: str) -> None:
        print(text, flush=True)


class Rows:
    """metrics.jsonl: one object a line, `step` first, floats with all their digits, null for what is not finite."""

    def __init__(self, path: Path, first_step: int):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            cut(path, first_step)
        # Unbuffered: a row is with the system when the call returns, and a failed one is not tried again.
        self._file = path.open("ab", buffering=0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, **{tag: json_number(value) for tag, value in values.items()}}
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        if self._file.write(line) < len(line):
            raise OSError("the disk took half a row")

    def text(self, step: int, tag: str, text: str) -> None:
        """Texts are for TensorBoard alone."""

    def close(self) -> None:
        self._file.close()


def cut(path: Path, last_step: int) -> None:
    """Removes rows after `last_step` and damaged ones, such as the partial last line of a killed process."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with path.open("rb") as old, partial.open("wb") as new:
        new.writelines(sound_rows(old, last_step))
        new.flush()
        os.fsync(new.fileno())
    partial.replace(path)


def sound_rows(lines: Iterator[bytes], last_step: int) -> Iterator[bytes]:
    for line in lines:
        try:
            step = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError):
            continue
        if line.endswith(b"\n") and isinstance(step, int) and step <= last_step:
            yield line


def json_number(value: float) -> float | None:
    """A Python number; None (null) for NaN and infinities, which JSON lacks."""
    if isinstance(value, int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None


class Events:
    """An event file in TensorBoard's folder. Written without TensorBoard's EventFileWriter, which loads TensorFlow where it finds it."""

    def __init__(self, directory: Path, first_step: int):
        directory.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        self.path = (
            directory
            / f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        )
        self._writer = RecordWriter(self.path.open("xb", buffering=0))
        self._write(Event(file_version="brain.Event:2"))
        # Tells TensorBoard to forget what earlier files hold from this step on.
        self._write(Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        points = [
            Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()
        ]
        self._write(Event(step=step, summary=Summary(value=points)))

    def text(self, step: int, tag: str, text: str) -> None:
        tensor = TensorProto(
            dtype=DT_STRING, string_val=[text.encode()], tensor_shape=TensorShapeProto()
        )
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        self._write(
            Event(
                step=step,
                summary=Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=metadata)]),
            )
        )

    def close(self) -> None:
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())


def bar(share: float) -> str:
    done = min(BAR_WIDTH, int(share * BAR_WIDTH))
    return f"[{'#' * done}{'-' * (BAR_WIDTH - done)}]"


def quantity(value: float) -> str:
    """41234 -> '41.2k'."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """192 -> '3:12', 7384 -> '2:03:04'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
