"""Measure in which precision, and on how many emulated devices, this CPU trains fastest.

Which it is depends on the processor, the number of cores and the version of jax. Importing this
imports no jax.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm import hardware
from jaxlm.config import Config, ConfigError
from jaxlm.files import write_atomically
from jaxlm.runtime.platform import private_directory, runs_on_cpu, user_cache

SECONDS = 120  # of one process, at most
LEAST_GAIN = 0.03  # of the time of a step, for which a later choice is preferred to an earlier one


class CpuChoice(NamedTuple):
    """How a CPU trains."""

    compute: str  # precision.compute
    devices: int

    def describe(self) -> str:
        """Return 'bfloat16 on 2 devices'."""
        plural = "" if self.devices == 1 else "s"
        return f"{self.compute} on {self.devices} device{plural}"


def settle_cpu(config: Config, report: Callable[[str], None] = print) -> Config:
    """Return the config with what is fastest on this CPU, if it asks for that and runs on one.

    A number of devices that the config has stays as it is. The first time that takes half a minute;
    the result is kept in the user's cache folder. One of several processes, or a run on a GPU,
    keeps what the config says, and so does one in float16: none of the formats that are measured
    trains as it does.
    """
    if not config.runtime.measure_cpu:
        return config
    config = replace(config, runtime=replace(config.runtime, measure_cpu=False))
    if config.runtime.processes not in (None, 1) or not runs_on_cpu(config.runtime):
        return config
    if config.precision.compute == "float16":
        return config

    seconds = read_measurement()
    if seconds is None:
        report("measuring in which precision this CPU trains fastest: once, about half a minute")
        seconds = {choice: measure(choice) for choice in candidates()}
        if None not in seconds.values():  # a machine may be too busy for once
            write_measurement(seconds)

    devices = config.runtime.devices
    ways = {way: time for way, time in seconds.items() if devices in (None, way.devices)}
    choice = choose(ways) or choose(seconds)
    if choice is None:
        report("warning: the CPU could not be measured; runtime.measure_cpu has no effect")
        return config
    choice = choice._replace(devices=devices or choice.devices)
    count = len(ways or seconds)
    report(f"CPU: {choice.describe()}, the fastest of {count} ways to train here")
    return replace(
        config,
        precision=replace(config.precision, compute=choice.compute),  # type: ignore[arg-type]
        runtime=replace(config.runtime, devices=choice.devices),
    )


def candidates() -> list[CpuChoice]:
    """Return the ways to train that are measured, the plainest first."""
    counts = range(1, hardware.cpu_devices() + 1)
    dtypes = ("float32", "bfloat16") if hardware.cpu_has_bfloat16() else ("float32",)
    return [CpuChoice(dtype, count) for dtype in dtypes for count in counts]


def choose(seconds: dict[CpuChoice, float | None]) -> CpuChoice | None:
    """Return the fastest way; None if none was measured.

    A later one is preferred only where it is faster by more than chance.
    """
    best, best_seconds = None, 0.0
    for choice, measured in seconds.items():
        if measured is not None and (best is None or measured < (1 - LEAST_GAIN) * best_seconds):
            best, best_seconds = choice, measured
    return best


def measure(choice: CpuChoice) -> float | None:
    """Return the seconds of a step in a process of its own; None if that failed."""
    package = str(Path(__file__).parent.parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "jaxlm.benchmark.cpu_step", json.dumps(choice)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=os.environ | {"PYTHONPATH": path},
        )
        return float(done.stdout.split()[-1]) if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None


def measurement_path() -> Path:
    """Return the file of the measurement for this CPU and this version of jax."""
    name = f"cpu-{hardware.cpu_identity()}-jax-{version('jax')}.json"
    return (user_cache() / name).expanduser()


def read_measurement() -> dict[CpuChoice, float | None] | None:
    """Return the seconds of a step by choice, as measured before; None if there is none."""
    try:
        entries: Any = json.loads(measurement_path().read_text())
        return {CpuChoice(**entry["choice"]): entry["seconds"] for entry in entries}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_measurement(seconds: dict[CpuChoice, float | None]) -> None:
    """Keep a measurement, if the user's cache folder allows it."""
    entries = [{"choice": c._asdict(), "seconds": s} for c, s in seconds.items()]
    path = measurement_path()
    with contextlib.suppress(OSError, ConfigError):
        private_directory(str(path.parent))
        write_atomically(path, json.dumps(entries, indent=1))
