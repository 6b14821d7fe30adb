"""SLURM jobs for tests, on a machine that is a node of a cluster (.ci/slurm makes one)."""

import functools
import shutil
import socket
import subprocess
import time

import pytest

from support.stand_in import SLURM, StandIn

LIMIT = 90  # seconds in which a job here has ended
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def slurm(*command: str, check: bool = True) -> str:
    """Run a command of SLURM and return its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


@functools.cache
def why_no_cluster() -> str:
    """Return why this machine can't run SLURM jobs, or ''."""
    if shutil.which("sbatch") is None:
        return "SLURM is not installed"

    ready = [
        f"{name} {state}"
        for name in (socket.gethostname(), socket.gethostname().split(".")[0])
        for state in ("idle", "mixed")
    ]
    nodes = slurm("sinfo", "--noheader", "--Node", "--format=%n %T", check=False).splitlines()
    if not any(" ".join(line.split()) in ready for line in nodes):
        return "this machine is no node of a SLURM cluster that takes jobs (.ci/slurm makes one)"
    return ""


def require_cluster() -> None:
    """Skip the test unless this machine is a node of a SLURM cluster that takes jobs."""
    reason = why_no_cluster()
    if reason:
        pytest.skip(reason)


class Job:
    """A job of launch/slurm.sh with two tasks of the stand-in."""

    def __init__(
        self, stand_in: StandIn, *options: str, arguments: tuple[str, ...] = ("--config", "x")
    ):
        self.log = stand_in.folder / "job.log"
        sbatch = ["sbatch", "--parsable", "--ntasks=2", f"--output={self.log}", *options]
        done = subprocess.run(
            [*sbatch, SLURM, *arguments],
            env=stand_in.environment,
            cwd=stand_in.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        self.number = done.stdout.strip()

    def field(self, name: str) -> str:
        """Return a field of `scontrol show job`."""
        for word in slurm("scontrol", "show", "job", self.number).split():
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
        raise KeyError(name)

    def wait_for_end(self, limit: float = LIMIT) -> tuple[str, int]:
        """Return the state in which the job ends, and the exit code of the script."""
        deadline = time.monotonic() + limit
        while (state := self.field("JobState")) not in ENDED:
            assert time.monotonic() < deadline, f"{state}: {self.log.read_text()}"
            time.sleep(0.2)
        return state, int(self.field("ExitCode").partition(":")[0])

    def end(self) -> None:
        """End the job if it still runs, whatever its tasks do."""
        if self.field("JobState") in ENDED:
            return
        slurm("scontrol", "update", f"JobId={self.number}", "Requeue=0", check=False)
        slurm("scancel", "--full", "--signal=KILL", self.number, check=False)
        slurm("scancel", self.number, check=False)
