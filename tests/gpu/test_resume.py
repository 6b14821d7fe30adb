"""Deterministic mode on the GPU: the same bits each time, whether a run is interrupted or not.

All runs are processes of their own, since XLA flags set the mode before jax starts. Those that do
not wait for each other run side by side.
"""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parent.parent.parent
HALF, STEPS = 6, 12
TIMED = ("train/tokens_per_second", "train/mfu")
SECONDS = 180  # of a run: jax, the data and the compilation take most of it

# What a GPU does in another order each time unless told otherwise: cuDNN's backward pass, the
# scatter of the embedding's gradient, and the choice among algorithms by timing. Dropout draws its
# masks by step. The rate's decay is set, since by default it depends on training.steps, which the
# first half has fewer of.
RECIPE = f"""
from jaxlm.config import *

config = Config(
    model=ModelConfig(
        vocabulary_size=257, layers=2, width=128, heads=2, context_length=128, dropout=0.1
    ),
    tokenizer=TokenizerConfig(kind="bytes"),
    data=DataConfig(
        sources=(SourceConfig(name="text", path="text.txt"),),
        sequence_length=128,
        validation=ValidationConfig(method="tail", share=0.1),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=4, decay_steps={STEPS}),
    training=TrainingConfig(steps={STEPS}, batch_size=8),
    evaluation=EvaluationConfig(every_steps=0, samples=0, steps=2),
    checkpoint=CheckpointConfig(every_steps=0),
    logging=LoggingConfig(every_steps=1),
    runtime=RuntimeConfig(devices=1, deterministic=True),
)
"""

FAMILIES = {
    "decoder": (),
    "encoder_decoder": (
        "model.family=encoder_decoder",
        "objective.kind=span",
        "model.positions=relative",
        "tokenizer.sentinels=20",
        "model.vocabulary_size=280",
        "data.sequence_length=320",
    ),
}


class Run(NamedTuple):
    """A training command that is running, or has ended."""

    directory: Path
    process: subprocess.Popen
    log: Path

    def finish(self) -> "Run":
        """Wait for the command; it must have trained to its end."""
        code = self.process.wait(timeout=SECONDS)
        assert code == 0, f"{self.directory.name}: exit code {code}\n{self.log.read_text()[-4000:]}"
        return self

    def rows(self) -> list[dict[str, float]]:
        """Return the rows of metrics.jsonl without what depends on time."""
        lines = (self.directory / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return [{tag: value for tag, value in row.items() if tag not in TIMED} for row in found]

    def bits(self) -> dict[str, tuple[str, bytes]]:
        """Return dtype and bytes of every array in the last checkpoint, by path."""
        folder = (self.directory / "checkpoints" / str(STEPS) / "state").absolute()
        state = ocp.StandardCheckpointer().restore(folder)
        return {
            jax.tree_util.keystr(path): (str(leaf.dtype), np.asarray(leaf).tobytes())
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        }


def start(folder: Path, family: str, name: str, steps: int = STEPS) -> Run:
    """Start a training command in `folder`, with a store of its own."""
    edits = [
        *FAMILIES[family],
        f"run_directory={name}",
        f"data.store=stores-{name}",
        f"training.steps={steps}",
    ]
    command = [sys.executable, "-m", "jaxlm.train", "--config", "recipe.py", *edits]
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # Each run compiles for itself, as runs of users do: the bits must not hang on a shared program.
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    environment.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)

    log = folder / f"{name}-{steps}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    return Run(folder / name, process, log)


class Runs(NamedTuple):
    """Two runs of 12 steps, and one of 6 that another command takes to 12."""

    whole: Run
    again: Run
    halves: Run


@pytest.fixture(scope="module")
def started(gpu, tmp_path_factory):
    """Start the runs of both families at once; the first ones of each have not ended yet."""
    runs = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        words = ["tree", "river", "stone", "cloud", "of", "the", "and"]
        text = " ".join(random.Random(0).choices(words, k=20_000))
        (folder / "text.txt").write_text(text)
        (folder / "recipe.py").write_text(RECIPE)
        runs[family] = Runs(
            whole=start(folder, family, "whole"),
            again=start(folder, family, "again"),
            halves=start(folder, family, "halves", HALF),
        )
    yield runs
    for runs_of_family in runs.values():
        for run in runs_of_family:
            run.process.kill()


@pytest.fixture(scope="module")
def resumed(started) -> dict[str, Run | Exception]:
    """Start the second halves when the first have ended; a failure of the first is kept instead."""
    second = {}
    for family, runs in started.items():
        try:
            folder = runs.halves.finish().directory.parent
            second[family] = start(folder, family, "halves")
        except (AssertionError, subprocess.TimeoutExpired) as error:
            second[family] = error
    return second


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interrupted_run_ends_with_the_bits_of_an_unbroken_one(gpu, started, resumed, family):
    second = resumed[family]
    if isinstance(second, Exception):
        raise second
    whole, halves = started[family].whole.finish(), second.finish()
    log = halves.log.read_text()
    assert gpu.device_kind in log and f" after step {HALF}" in log
    # XLA can't run cuDNN's deterministic backward pass: such runs must not choose it.
    kernels = re.findall(r"attention.*: (\w+) \(", log)
    assert kernels and set(kernels) == {"xla"}

    # The first half was evaluated at its end, in the middle of the whole.
    rows = [row for row in halves.rows() if row["step"] != HALF or "eval/loss" not in row]
    assert rows == whole.rows()
    assert halves.bits() == whole.bits()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_run_twice_gives_the_same_bits(gpu, started, resumed, family):
    whole, again = (run.finish() for run in (started[family].whole, started[family].again))
    assert whole.rows() == again.rows()
    assert whole.bits() == again.bits()
