"""Runs of several processes on this machine, by the command."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from support import tiny_run

ROOT = Path(__file__).parents[2]
HEARTBEAT = 10  # seconds
LIMIT = 180  # seconds: more than any run here takes


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHON": sys.executable,
        **more,
    }


def command(*edits: str, directory: str) -> list[str]:
    """Arguments of jaxlm.train; the recipe lies in the working directory."""
    return [
        "--config",
        "tiny.py",
        f"run_directory={directory}",
        f"runtime.heartbeat_timeout_seconds={HEARTBEAT}",
        *edits,
    ]


class Peers:
    """Processes of one run, each in a session of its own; `told` adds arguments to single ones."""

    def __init__(
        self,
        *edits: str,
        directory: str,
        count: int = 2,
        devices: int = 4,
        told: dict[int, tuple[str, ...]] | None = None,
    ):
        self.directory = Path(directory)
        arguments = [*command(*edits, directory=directory), f"runtime.devices={devices}"]
        arguments += [f"runtime.coordinator=127.0.0.1:{free_port()}", f"runtime.processes={count}"]
        self.processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "jaxlm.train",
                    *arguments,
                    f"runtime.process={number}",
                    *(told or {}).get(number, ()),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(),
                start_new_session=True,
            )
            for number in range(count)
        ]

    def wait_for_step(self, step: int) -> None:
        """Until process 0 has written the row of `step`."""
        path, deadline = self.directory / "metrics.jsonl", time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            if path.exists() and f'{{"step": {step},' in path.read_text():
                return
            assert all(process.poll() is None for process in self.processes), self.finish()
            time.sleep(0.05)
        raise TimeoutError(self.finish(kill=True))

    def send(self, number: int, name: str) -> None:
        self.processes[number].send_signal(getattr(signal, name))

    def finish(self, kill: bool = False) -> list[tuple[int, str, str]]:
        """(exit code, stdout, stderr) of each, once all have ended; nothing that they started is left."""
        found = []
        for process in self.processes:
            if kill:
                process.kill()
            out, err = process.communicate(timeout=LIMIT)
            found.append((process.returncode, out, err))
        for process in self.processes:
            assert not alive(process.pid)
        return found

    def codes(self) -> list[int]:
        return [code for code, *_ in self.finish()]


def alive(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def local(
    *edits: str, directory: str, count: int = 2, devices: int = 4
) -> subprocess.CompletedProcess:
    """The run under launch/local.sh."""
    arguments = [
        "bash",
        str(ROOT / "launch/local.sh"),
        str(count),
        *command(*edits, directory=directory),
        "--devices",
        str(devices),
    ]
    return subprocess.run(
        arguments, env=environment(), capture_output=True, text=True, timeout=LIMIT
    )


def losses(directory: str) -> dict[int, float]:
    """step -> training loss."""
    return dict(tiny_run.rows(directory)["train/loss"])


def random_steps(count: int, low: int, high: int) -> list[tuple[int, int]]:
    """(process, step) for `count` interruptions, both processes in turn, the same each time."""
    draw = random.Random(4)
    return [(number % 2, draw.randint(low, high)) for number in range(count)]


def saved_steps(directory: str) -> list[int]:
    return sorted(
        int(path.name)
        for path in (Path(directory) / "checkpoints").iterdir()
        if path.name.isdigit()
    )


def listening(pids: list[int]) -> list[str]:
    """The addresses, as the kernel's hexadecimal, on which processes listen."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = str(link.readlink())
            inodes |= (
                {target.removeprefix("socket:[").removesuffix("]")}
                if target.startswith("socket:[")
                else set()
            )
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes]


def log(directory: str, process: int) -> str:
    return (Path(directory) / "logs" / f"process-{process}.log").read_text()
