"""The time of each part of the steps that a profile has recorded."""

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxlm.benchmark.parts import COMMUNICATION, OTHER, PARTS, Operation, find_operation
from jaxlm.config import UserError

INPUT_WAIT, IDLE = "input_wait", "idle"
STEP, FETCH = "training step", "fetch batch"  # annotations of the host, in the trace

# Of events that overlap on a device, those of the lowest number count: communication as far as
# nothing is computed meanwhile, waiting for a batch as far as the device does nothing at all.
COMPUTES, COMMUNICATES, CONTAINS, WAITS = range(4)

# XLA puts the kernels of a GPU into command buffers (CUDA graphs), and a trace names the buffer in
# place of each kernel's instruction (openxla/xprof#3070). So the steps to record are compiled
# without them.
RECORDING_OPTIONS = {"xla_gpu_enable_command_buffer": ""}
MOST_UNKNOWN = 0.5  # share of the device time that may belong to no instruction of the program


class StepParts(NamedTuple):
    """The time of each part of a recorded step, or why it is unknown."""

    seconds: dict[str, float]  # they add up to the duration of the step. Empty: unknown
    unknown: str = ""  # the reason


class Event(NamedTuple):
    """Something that took time, in nanoseconds since the trace began."""

    start: float
    end: float
    priority: int
    part: str


@contextlib.contextmanager
def record_profile(directory: Path) -> Iterator[None]:
    """Write a trace of the block to `directory`, which TensorBoard and Perfetto open.

    Raises UserError where it can't be written.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # each call of Python would slow the step
    options.host_tracer_level = 1
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--profile: {directory}: {error.strerror}") from error

    jax.profiler.start_trace(directory, profiler_options=options)
    try:
        yield
    finally:
        jax.profiler.stop_trace()


def newest_trace(directory: Path) -> Path:
    """Return the newest trace below `directory`."""
    return max(directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)


def read_parts(trace: Path, program: str, operations: dict[str, Operation]) -> StepParts:
    """Return the seconds of each part of a recorded step, the mean over steps and devices.

    `program` is the name of the step's HLO module, and `operations` its instructions. The parts are
    unknown where the trace has no events of devices, or most of their time belongs to no
    instruction of the program.
    """
    devices: dict[Any, list[Event]] = {}
    durations: Counter[str] = Counter()  # of the devices' events by instruction
    steps: list[Event] = []
    fetches: list[Event] = []

    def add_event(device: Any, event: Any, name: str) -> None:
        durations[name] += event.duration_ns
        devices.setdefault(device, []).append(device_event(event, operations, name))

    for plane, line, event, stats in read_events(trace):
        is_gpu = plane.startswith("/device:")
        if event.name == STEP:
            steps.append(make_event(event, WAITS, IDLE))
        elif event.name == FETCH:
            fetches.append(make_event(event, WAITS, INPUT_WAIT))
        elif is_gpu and line.startswith("Stream"):
            add_event(plane, event, stats.get("hlo_op", ""))
        elif not is_gpu and stats.get("hlo_module") == program and "hlo_op" in stats:
            add_event(stats.get("device_ordinal", 0), event, stats["hlo_op"])

    if not devices or not steps:
        return StepParts({}, "the trace has no events of the devices")
    if reason := unknown_time(durations, operations):
        return StepParts({}, reason)
    start = min(event.start for event in steps)
    end = max(event.end for events in (steps, *devices.values()) for event in events)
    total: Counter[str] = Counter()
    for events in devices.values():
        total.update(sum_parts([*events, *fetches], start, end))
    share = 1e-9 / len(devices) / len(steps)
    return StepParts({part: share * total[part] for part in (*PARTS, INPUT_WAIT, IDLE)})


def unknown_time(durations: Counter[str], operations: dict[str, Operation]) -> str:
    """Return why most of the devices' time can't be told by part, "" where it can.

    `durations` are those of the devices' events, by the name of their instruction ("": none).
    """
    names = [name for name in durations if find_operation(operations, name) is None]
    unknown = Counter({name: durations[name] for name in names})
    if unknown.total() <= MOST_UNKNOWN * durations.total():
        return ""
    name = unknown.most_common(1)[0][0]
    where = f"most of it to {name}" if name else "most of it names none"
    share = unknown.total() / durations.total()
    return f"{share:.0%} of the device time belongs to no instruction of the program ({where})"


def read_events(trace: Path) -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    """Yield the events of a trace that took time: (plane, line, event, its statistics)."""
    with warnings.catch_warnings():
        # A type of jaxlib 0.12 warns when it is first made, and the process would end if warnings
        # were errors.
        warnings.simplefilter("ignore", DeprecationWarning)
        profile = jax.profiler.ProfileData.from_file(str(trace))
        for plane in profile.planes:
            for line in plane.lines:
                for event in line.events:
                    if event.duration_ns:
                        yield plane.name, line.name, event, dict(event.stats)


def make_event(event: Any, priority: int, part: str) -> Event:
    """Return an event of a trace as one of ours."""
    return Event(event.start_ns, event.start_ns + event.duration_ns, priority, part)


def device_event(event: Any, operations: dict[str, Operation], name: str) -> Event:
    """Return an event of a device with the part of its instruction, which is called `name`.

    Kernels without an instruction of the program (copies of a batch) are `other`.
    """
    operation = find_operation(operations, name) or Operation(OTHER)
    if operation.is_container:
        return make_event(event, CONTAINS, operation.part)
    priority = COMMUNICATES if operation.part == COMMUNICATION else COMPUTES
    return make_event(event, priority, operation.part)


def sum_parts(events: Sequence[Event], start: float, end: float) -> dict[str, float]:
    """Return the nanoseconds of each part between `start` and `end`, which they add up to.

    Events of one priority that overlap share the time equally.
    """
    changes = []
    for event in events:
        if event.end > start and event.start < end and event.end > event.start:
            changes.append((max(event.start, start), 1, event.priority, event.part))
            changes.append((min(event.end, end), -1, event.priority, event.part))
    changes.sort()

    active: list[Counter[str]] = [Counter() for _ in (COMPUTES, COMMUNICATES, CONTAINS, WAITS)]
    total: Counter[str] = Counter()
    before = start
    for time, change, priority, part in [*changes, (end, 0, WAITS, IDLE)]:
        if time > before:
            running = next((+parts for parts in active if +parts), Counter({IDLE: 1}))
            for name, count in running.items():
                total[name] += (time - before) * count / running.total()
            before = time
        active[priority][part] += change
    return dict(total)
