"""Train the runs of a ladder, one after the other, each as a process of `python -m jaxlm.train`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jaxlm import runtime
from jaxlm.config import DivergedError, UserError
from jaxlm.directories import CONFIG_FILE
from jaxlm.plan.observations import FINAL_LOSS, read_final_loss
from jaxlm.plan.sweep import LadderRun, is_finished
from jaxlm.progress import Progress, format_duration

LOG_FILE = "train.log"  # of a run: what its processes printed
POLL_SECONDS = 0.5


def train_ladder(out: Path, runs: Sequence[LadderRun], arguments: Sequence[str] = ()) -> int:
    """Train what is not finished, in the order of the ladder, and return the exit code.

    A run that was stopped goes on from its checkpoint; one that diverges is left as it is, and the
    others are still trained. `arguments` are added to each command. Raises UserError with the last
    line of a run that fails otherwise.
    """
    todo = [run for run in runs if not is_finished(out / run.name)]
    if len(todo) < len(runs):
        print(f"{len(runs) - len(todo)} of {len(runs)} runs are finished", flush=True)
    total = sum(run.flops for run in todo)
    progress = Progress(1000)
    done, diverged = 0, []

    with runtime.StopSignal() as stop:
        for run in todo:
            start = time.monotonic()
            place = f"run {runs.index(run) + 1} of {len(runs)}, {run.name}"
            code = train_run(out / run.name, run, arguments, stop, progress, place, done, total)
            if code == DivergedError.exit_code:
                diverged.append(run.name)
                progress.print(f"{place}: diverged: {last_line(out / run.name / LOG_FILE)}")
            elif code == runtime.STOPPED or stop.reached():
                progress.close()
                print(f"{place}: stopped; the same command goes on", flush=True)
                return runtime.STOPPED
            elif code:
                progress.close()
                raise UserError(f"{place}: {last_line(out / run.name / LOG_FILE)}")
            else:
                loss = read_loss(out / run.name)
                seconds = format_duration(time.monotonic() - start)
                progress.print(f"{place}: {FINAL_LOSS} {loss:.4f} in {seconds}")
            done += run.flops

    progress.close()
    if diverged:
        print(f"diverged: {', '.join(diverged)}; a fit leaves them out", flush=True)
    return DivergedError.exit_code if diverged else 0


def train_run(
    folder: Path,
    run: LadderRun,
    arguments: Sequence[str],
    stop: runtime.StopSignal,
    progress: Progress,
    place: str,
    done: int,
    total: int,
) -> int:
    """Train one run and return the exit code of its process.

    `done` and `total` are FLOPs of the ladder. A stop signal is passed on, once, and waited for:
    the process has a session of its own, so that Ctrl-C reaches it in no other way.
    """
    command = [
        *(sys.executable, "-m", "jaxlm.train", "--config", str(folder / CONFIG_FILE)),
        *(f"run_directory={folder}", *arguments),
    ]
    package = str(Path(__file__).parent.parent.parent)
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    with (folder / LOG_FILE).open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": paths},
            start_new_session=True,
        )

        passed_on = False
        while True:
            try:
                return child.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            except KeyboardInterrupt:  # a second Ctrl-C does not wait for the save
                child.kill()
                raise
            if stop.reached() and not passed_on:
                child.send_signal(signal.SIGTERM)
                passed_on = True
            step = read_step(folder / "metrics.jsonl")
            if not step:
                continue  # the time of a start says nothing of the time left
            share = (done + run.flops * step / run.config.training.steps) / total
            progress.update(
                round(1000 * share), f"{place}: step {step} of {run.config.training.steps}"
            )


def read_step(path: Path) -> int:
    """Return the step of the last whole row of metrics.jsonl; 0 where there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            for line in reversed(file.read().splitlines()):
                try:
                    return int(json.loads(line)["step"])
                except (ValueError, LookupError, TypeError):
                    continue
    except OSError:
        pass
    return 0


def read_loss(folder: Path) -> float:
    """Return the final loss of a run that has ended without an error."""
    from jaxlm.config import load

    loss, problem = read_final_loss(folder, load(folder / CONFIG_FILE))
    if loss is None:
        raise UserError(f"{folder}: {problem}")
    return loss


def last_line(path: Path) -> str:
    """Return the last line that a process has printed, without what marks it as an error."""
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return (lines or ["it ended without a message"])[-1].removeprefix("error: ")
