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
    """Return a port of loopback on which nobody listens now."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which commands run on CPUs, with jaxlm importable."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHON": sys.executable,
        **more,
    }


def command(*edits: str, directory: str) -> list[str]:
    """Return arguments of jaxlm.train; the recipe is in the working directory."""
    return [
        "--config",
        "tiny.py",
        f"run_directory={directory}",
        f"runtime.heartbeat_timeout_seconds={HEARTBEAT}",
        *edits,
    ]


def run(*arguments: str) -> subprocess.CompletedProcess:
    """Run a command to its end."""
    return subprocess.run(
        arguments, env=environment(), capture_output=True, text=True, timeout=LIMIT
    )


def start(*arguments: str, folder: Path | None = None) -> subprocess.Popen:
    """Start Python in a session of its own."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Return (exit code, stdout, stderr) of each, once all have ended with all they started."""
    ends = []
    for process in processes:
        out, err = process.communicate(timeout=LIMIT)
        ends.append((process.returncode, out, err))
    for process in processes:
        assert not is_alive(process.pid)
    return ends


class Peers:
    """Processes of one run; `extra` has more arguments for single ones, by number."""

    def __init__(
        self,
        *edits: str,
        directory: str,
        count: int = 2,
        devices: int = 4,
        extra: dict[int, tuple[str, ...]] | None = None,
    ):
        self.directory = Path(directory)
        shared = [
            *command(*edits, directory=directory),
            f"runtime.devices={devices}",
            f"runtime.coordinator=127.0.0.1:{free_port()}",
            f"runtime.processes={count}",
        ]
        self.processes = []
        for number in range(count):
            own = [f"runtime.process={number}", *(extra or {}).get(number, ())]
            self.processes.append(start("-m", "jaxlm.train", *shared, *own))

    def wait_for_step(self, step: int) -> None:
        """Wait until process 0 has written the row of `step`."""
        path, deadline = self.directory / "metrics.jsonl", time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            if path.exists() and f'{{"step": {step},' in path.read_text():
                return
            assert all(process.poll() is None for process in self.processes), self.finish()
            time.sleep(0.05)

        for process in self.processes:
            process.kill()
        raise TimeoutError(self.finish())

    def send(self, number: int, name: str) -> None:
        """Send a signal to one of the processes."""
        self.processes[number].send_signal(getattr(signal, name))

    def finish(self) -> list[tuple[int, str, str]]:
        """Return (exit code, stdout, stderr) of each, once all have ended."""
        return finish(self.processes)

    def codes(self) -> list[int]:
        """Return the exit code of each, once all have ended."""
        return [code for code, *_ in self.finish()]


def is_alive(group: int) -> bool:
    """Return whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def local(
    *edits: str, directory: str, count: int = 2, devices: int = 4
) -> subprocess.CompletedProcess:
    """Run under launch/local.sh."""
    script = str(ROOT / "launch/local.sh")
    arguments = [*command(*edits, directory=directory), "--devices", str(devices)]
    return run("bash", script, str(count), *arguments)


def losses(directory: str) -> dict[int, float]:
    """Return the training loss of each step."""
    return dict(tiny_run.rows(directory)["train/loss"])


def random_steps(count: int, low: int, high: int) -> list[tuple[int, int]]:
    """Return (process, step) for `count` interruptions, of the processes in turn.

    They are the same in each run of the tests.
    """
    draw = random.Random(4)
    return [(number % 2, draw.randint(low, high)) for number in range(count)]


def saved_steps(directory: str) -> list[int]:
    """Return the steps of the checkpoints, in order."""
    names = [path.name for path in (Path(directory) / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def listening_addresses(pids: list[int]) -> list[str]:
    """Return the addresses on which processes listen, as the hexadecimal digits of the kernel."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = str(link.readlink())
            if target.startswith("socket:["):
                inodes.add(target.removeprefix("socket:[").removesuffix("]"))

    addresses = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, address, _, state, *_, inode = line.split()[:10]
            if state == "0A" and inode in inodes:  # 0A: listening
                addresses.append(address.partition(":")[0])
    return addresses


def log(directory: str, process: int) -> str:
    """Return the log of a process."""
    return (Path(directory) / "logs" / f"process-{process}.log").read_text()
