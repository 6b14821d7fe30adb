"""A cooldown from a checkpoint: a copy of a run, whose learning rate falls from that step on.

The run itself stays at its peak and can go on. Imports no jax.
"""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from jaxlm.config import Config, ConfigError, NoCheckpointError, UserError, load
from jaxlm.directories import CONFIG_FILE, is_run

# What a run writes anew, and its lock.
LEFT_OUT = (".lock", "README.md", "loss.svg", "checkpoints", "logs")


def plan_cooldown(config: Config, step: int, edits: Sequence[str]) -> tuple[Config, Path]:
    """Return the config of a cooldown from `step`, and the directory of the run that it copies.

    `config` is that of the run with the `edits` of the command. Without training.steps among them
    the cooldown is optimizer.decay_share of all steps. Raises UserError where there is no such run,
    NoCheckpointError where it has no such checkpoint, ConfigError where its rate at `step` is not
    the peak or no step is left.
    """
    run = Path(config.run_directory or "runs/run")
    if not is_run(run):
        raise UserError(f"{run}: --cooldown {step}: there is no run in this directory")
    check_peak(load(str(run / CONFIG_FILE)), step)

    target = run.with_name(f"{run.name}-cooldown-{step}")
    if not is_run(target):
        check_checkpoint(run, step)

    optimizer, steps = config.optimizer, config.training.steps
    if not any(edit.startswith("training.steps=") for edit in edits):
        share = optimizer.decay_share
        if not 0 < share < 1:
            reason = f"--cooldown {step} needs a share between 0 and 1, got {share:g}"
            raise ConfigError("optimizer.decay_share", f"{reason}; or set training.steps")
        steps = max(step + 1, round(step / (1 - share)))
    if steps <= step:
        raise ConfigError("training.steps", f"{steps} leaves no step for --cooldown {step}")

    optimizer = dataclasses.replace(
        optimizer, schedule="wsd", decay_share=(steps - step) / steps, decay_steps=None
    )
    training = dataclasses.replace(config.training, steps=steps)
    config = dataclasses.replace(
        config, run_directory=str(target), optimizer=optimizer, training=training
    )
    return config, run


def check_peak(config: Config, step: int) -> None:
    """Raise ConfigError unless the learning rate of a run is at its peak after `step` steps."""
    optimizer, schedule, steps = config.optimizer, config.optimizer.schedule, config.training.steps
    if schedule not in ("constant", "wsd"):
        reason = f"--cooldown {step} needs a run whose rate stays at its peak until then, by 'wsd' "
        raise ConfigError("optimizer.schedule", f"{reason}or 'constant'; this one has {schedule!r}")

    if step < optimizer.warmup_steps:
        reason = f"--cooldown {step} is within the warmup of {optimizer.warmup_steps} steps"
        raise ConfigError("optimizer.warmup_steps", reason)
    start = optimizer.cooldown_start(steps)
    if schedule == "wsd" and step > start:
        reason = f"--cooldown {step} is within the run's own decay, which starts at step {start}"
        raise ConfigError("optimizer.decay_share", reason)


def check_checkpoint(run: Path, step: int) -> None:
    """Raise NoCheckpointError unless a run has a checkpoint of `step`."""
    folder = run / "checkpoints"
    if (folder / str(step)).is_dir():
        return
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    there = ", ".join(map(str, steps)) or "none"
    raise NoCheckpointError(f"{folder}: no checkpoint of step {step} (there are: {there})")


def copy_run(run: Path, step: int, target: Path) -> None:
    """Copy a run up to `step` into the run directory `target`, unless that holds a run already.

    The checkpoint comes last, by a rename, so that a copy that is cut off is made anew. Raises
    UserError if `target` can't be written.
    """
    if is_run(target):
        return

    unfinished = target / f".checkpoints.{os.getpid()}"
    try:
        for path in run.iterdir():
            if path.name in LEFT_OUT or path.is_symlink():
                continue
            if path.is_dir():
                shutil.copytree(path, target / path.name, dirs_exist_ok=True)
            else:
                shutil.copy2(path, target)
        shutil.copytree(run / "checkpoints" / str(step), unfinished / str(step))
        unfinished.rename(target / "checkpoints")
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError(f"{target}: can't copy {run}: {error.strerror or error}") from error
