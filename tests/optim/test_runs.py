"""Runs with other optimizers, stopped and resumed, and what is evaluated of them."""

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from support import tiny_run

from jaxlm.load_model import load_model

OPTIMIZERS = {
    "schedule_free": ("optimizer.kind=schedule_free", 'optimizer.frozen=["embedding.positions"]'),
    "muon": ("optimizer.kind=muon", "optimizer.layer_decay=0.5"),
    "shampoo": ("optimizer.kind=shampoo",),
    "bfloat16": ("optimizer.first_moment=bfloat16", "optimizer.second_moment=bfloat16"),
}
SHORT = (
    "evaluation.every_steps=2",
    "checkpoint.every_steps=2",
    "optimizer.schedule=constant",
    "optimizer.warmup_steps=1",
)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    tiny_run.write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(directory: str) -> list[dict]:
    """Return the losses of a run, without what depends on the machine."""
    lines = Path(directory, "metrics.jsonl").read_text().splitlines()
    names = ("step", "train/loss", "train/grad_norm", "eval/loss")
    return [{n: v for n, v in json.loads(line).items() if n in names} for line in lines]


def saved_arrays(directory: str, step: int) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint by their paths, read without the trainer."""
    path = Path(directory) / "checkpoints" / str(step) / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.restore(path.resolve())
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize(
    "name",
    [
        "bfloat16",
        *(pytest.param(n, marks=pytest.mark.slow) for n in OPTIMIZERS if n != "bfloat16"),
    ],
)
def test_a_resumed_run_has_the_numbers_of_an_unbroken_one(folder, name):
    edits = (*OPTIMIZERS[name], *SHORT)
    assert tiny_run.run(*edits, "training.steps=4", directory="runs/whole") == 0
    assert tiny_run.run(*edits, "training.steps=2", directory="runs/broken") == 0
    assert tiny_run.run(*edits, "training.steps=4", directory="runs/broken") == 0
    assert rows("runs/broken") == rows("runs/whole")

    if name == "schedule_free":
        check_the_average_is_loaded()


def check_the_average_is_loaded() -> None:
    """y = 0.1 z + 0.9 x: the state holds y and z, and x is evaluated."""
    saved = saved_arrays("runs/whole", 4)
    for path, leaf in jax.tree_util.tree_leaves_with_path(load_model("runs/whole").params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        y = saved[f"params/{name}"]
        if name == "embedding/positions":  # frozen
            np.testing.assert_array_equal(leaf, y)
            continue

        z = next(array for key, array in saved.items() if key.endswith(f"/z/{name}"))
        np.testing.assert_allclose(leaf, (y - 0.1 * z) / 0.9, rtol=1e-5, atol=1e-7)
        assert name.endswith("bias") or np.linalg.norm(np.asarray(leaf) - y) > 0, name


@pytest.mark.slow
def test_what_a_resumed_run_may_not_change_is_named(folder, capsys):
    edits = (*SHORT, "training.steps=2")
    assert tiny_run.run(*edits) == 0
    capsys.readouterr()
    for edit in ('optimizer.frozen=["embedding"]', "optimizer.second_moment=bfloat16"):
        assert tiny_run.run(*edits, "training.steps=4", edit) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"differs in {edit.partition('=')[0]}" in line
    assert tiny_run.run(*edits, "training.steps=4", "optimizer.layer_decay=0.9") == 0
