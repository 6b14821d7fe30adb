"""A stand-in for Python under the launch scripts. It records its start and obeys the test."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
LOCAL, SLURM, KUBERNETES = LAUNCH / "local.sh", LAUNCH / "slurm.sh", LAUNCH / "kubernetes.yaml"

LIMIT = 60  # seconds: more than any script here takes
POLL_SECONDS = 0.02

# Arguments that a shell could split or expand
AWKWARD = (
    "--config",
    "a folder/b.py",
    "--data",
    "texts/*.txt",
    "x=\"$HOME\" 'y'\\n",
    "",
    "a=`b`",
    "--flag",
)

# Each process writes its arguments and environment into a file of its own, then runs N.py or else
# all.py of its folder. Files appear at once and complete, so that others can wait for them.
PROGRAM = """
import json, os, pathlib, signal, subprocess, sys, time
key = "runtime.process="
given = [argument.removeprefix(key) for argument in sys.argv if argument.startswith(key)]
process = given[0] if given else os.environ["SLURM_PROCID"]
folder = pathlib.Path(os.environ["STAND_IN"])
signals = []

def write(name, value=""):
    (folder / f"{name}.part{process}").write_text(value)
    (folder / f"{name}.part{process}").rename(folder / name)

def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.02)

def wait_for_signal(number):
    while number not in signals:
        time.sleep(0.02)

def save(after=None):  # as the trainer does at SIGTERM; `after`: once this file exists
    wait_for_signal(signal.SIGTERM)
    write(f"{process}.stopping")
    if after:
        wait_for(after)
    write(f"{process}.saved")
    sys.exit(75)

signal.alarm(300)  # a test that fails leaves nothing for ever
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: signals.append(number))
start = {"pid": os.getpid(), "arguments": sys.argv[1:], "environment": dict(os.environ)}
write(f"{process}.json", json.dumps(start))
plan = folder / f"{process}.py"
exec((plan if plan.exists() else folder / "all.py").read_text())
"""

# Starts a program that gets SIGINT. A shell script can't trap it where its parent ignores it, as in
# tests that run in the background.
HEED_SIGINT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


class StandIn:
    """A program in place of Python, and what its processes have recorded."""

    def __init__(self, folder: Path):
        self.folder = folder / "a folder"
        self.folder.mkdir()
        self.temporary = folder / "temporary"
        self.temporary.mkdir()

        program = self.folder / "program"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "$0.py" "$@"\n')
        program.chmod(0o755)
        program.with_suffix(".py").write_text(PROGRAM)

        # Variables about GPUs must come from the test.
        ours = ("CUDA_VISIBLE_DEVICES", "JAXLM_GRACE_SECONDS")
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in ours},
            "PYTHON": str(program),
            "STAND_IN": str(self.folder),
            "TMPDIR": str(self.temporary),
        }

    def plan(self, every: str = "", **by_process: str) -> None:
        """Set what the processes run: `every` for all, `p1` for process 1."""
        self.write("all.py", textwrap.dedent(every))
        for name, text in by_process.items():
            self.write(f"{name.removeprefix('p')}.py", textwrap.dedent(text))

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        """Start launch/local.sh."""
        return subprocess.Popen(
            [sys.executable, "-c", HEED_SIGINT, LOCAL, *arguments],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Run launch/local.sh and return its exit code and stderr."""
        return self.finish(self.start(*arguments, **environment))

    def finish(self, script: subprocess.Popen) -> tuple[int, str]:
        """Wait for a script and return its exit code and stderr."""
        try:
            _, errors = script.communicate(timeout=LIMIT)
        finally:
            script.kill()
        return script.returncode, errors

    def write(self, name: str, text: str = "") -> None:
        """Write a file that processes may wait for."""
        (self.folder / name).write_text(text)

    def wait_for(self, name: str) -> str:
        """Return the text of a file once a process has written it."""
        deadline = time.monotonic() + LIMIT
        while not (self.folder / name).exists():
            present = sorted(path.name for path in self.folder.iterdir())
            assert time.monotonic() < deadline, f"no {name} among {present}"
            time.sleep(POLL_SECONDS)
        return (self.folder / name).read_text()

    def seen(self, process: int) -> dict:
        """Return what a process has recorded at its start."""
        return json.loads(self.wait_for(f"{process}.json"))

    def saved(self) -> list[int]:
        """Return the processes that have saved."""
        return sorted(int(path.stem) for path in self.folder.glob("*.saved"))

    def running(self) -> list[str]:
        """Return the commands of all processes with this environment that still run."""
        if not Path("/proc/self/environ").exists():
            pytest.skip("there is no /proc to find processes in")

        mark = f"STAND_IN={self.folder}\0".encode()
        commands = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                state = (process / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX" and mark in (process / "environ").read_bytes():
                    commands.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:  # it has ended, or is not ours
                continue
        return commands

    def wait_until_none_runs(self) -> None:
        deadline = time.monotonic() + LIMIT
        while commands := self.running():
            assert time.monotonic() < deadline, commands
            time.sleep(POLL_SECONDS)


def fake_nvidia_smi(folder: Path, count: int) -> str:
    """Return a PATH with an nvidia-smi that lists `count` GPUs, the first split by MIG.

    With 0 it fails, as it does without a driver.
    """
    lines = []
    for number in range(count):
        lines.append(f"GPU {number}: NVIDIA H100 80GB HBM3 (UUID: GPU-{number})")
        if number == 0:
            lines.append("  MIG 1g.10gb Device 0:")
    body = "echo 'NVIDIA-SMI has failed' >&2; exit 9"
    if count:
        body = "\n".join(["cat <<END", *lines, "END"])

    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\n[ "$*" = -L ] || exit 1\n{body}\n')
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"
