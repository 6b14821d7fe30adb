"""Runs with adapters: checkpoints of these alone, beside the hash of a base that stays as it is."""

import contextlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from support import tiny_run
from support.trees import assert_same

from jaxlm import checkpoint
from jaxlm.load_model import load_model

RECIPE = tiny_run.tuned_recipe(
    'adapter=AdapterConfig(rank=2, targets=("query", "value", "up"), base="float32"),'
    + tiny_run.TEXT_DATA.format(length=32)
)
FASTER = "optimizer.learning_rate=1e-2"


@pytest.fixture
def adapted(copied_run):
    """Write a recipe of adapters on a finished run of a decoder (runs/tiny)."""
    copied_run("decoder")
    Path("other.txt").write_text(Path("text.txt").read_text()[::-1])
    Path("adapted.py").write_text(RECIPE)


def saved_names(directory: str, step: int) -> list[str]:
    """Return the paths of the parameters in a checkpoint."""
    with checkpoint.Checkpoints(Path(directory) / "checkpoints", keep=2) as checkpoints:
        paths = checkpoints._saved_arrays(step)
    return [path for path in paths if path.startswith("params/")]


def test_checkpoints_hold_adapters_alone_and_a_resumed_run_is_the_unbroken_one(adapted):
    assert tiny_run.run(FASTER, recipe="adapted.py", directory="runs/whole") == 0
    rows = tiny_run.rows("runs/whole")
    names = saved_names("runs/whole", 4)
    assert len(names) == 6 and all("lora" in name for name in names)
    record = json.loads(Path("runs/whole/base.json").read_text())
    assert (record["path"], record["step"], len(record["hash"])) == ("runs/tiny", 12, 64)

    half = ("training.steps=2",)
    assert tiny_run.run(FASTER, *half, recipe="adapted.py", directory="runs/parts") == 0
    assert tiny_run.run(FASTER, recipe="adapted.py", directory="runs/parts") == 0
    assert tiny_run.rows("runs/parts")["train/loss"] == rows["train/loss"]
    assert tiny_run.rows("runs/parts")["eval/loss"] == rows["eval/loss"]

    # It is found from other folders, too.
    run = Path("runs/whole").absolute()
    with contextlib.chdir("/"):
        assert load_model(run).step == 4

    # The base has not changed, and the loaded model has the adapters in its weights.
    base, plain = load_model("runs/tiny"), load_model("runs/whole")
    assert jax.tree.structure(base.params) == jax.tree.structure(plain.params)
    before, after = base.params["blocks"]["mlp"], plain.params["blocks"]["mlp"]
    assert_same(before["down_kernel"], after["down_kernel"])
    assert np.abs(np.asarray(before["up_kernel"] - after["up_kernel"])).max() > 1e-3


@pytest.mark.slow
def test_another_base_is_refused(adapted, capsys):
    """The base has been trained on meanwhile, in place of the one of the adapters."""
    assert tiny_run.run("training.steps=2", recipe="adapted.py", directory="runs/parts") == 0
    shutil.rmtree("runs/tiny")
    assert tiny_run.run("seed=1", "training.steps=12") == 0
    capsys.readouterr()
    assert tiny_run.run("training.steps=4", recipe="adapted.py", directory="runs/parts") == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: base: runs/tiny: its weights have the hash")
    assert "but the adapters were trained on those with" in message and "\n" not in message


@pytest.mark.slow
def test_adapters_go_on_top_of_those_of_the_base(adapted):
    """A second run starts from the merged weights of the first."""
    assert tiny_run.run("training.steps=2", recipe="adapted.py", directory="runs/first") == 0
    edits = ("base=runs/first", "training.steps=1", "optimizer.learning_rate=1e-12")
    assert tiny_run.run(*edits, recipe="adapted.py", directory="runs/second") == 0
    first, second = (load_model(path).params for path in ("runs/first", "runs/second"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), first, second)


@pytest.mark.slow
@pytest.mark.parametrize("edits", [("adapter.base=int8",), ("adapter.dora=true",)])
def test_other_adapters_resume_on_other_devices(adapted, edits):
    """On eight devices, with ZeRO 3, then on one: losses differ by the order of sums alone."""
    common = (*edits, "model.dropout=0.0")
    assert tiny_run.run(*common, recipe="adapted.py", directory="runs/whole") == 0
    sharded = ("training.steps=2", "runtime.devices=8", "parallel.zero=3")
    assert tiny_run.run(*common, *sharded, recipe="adapted.py", directory="runs/parts") == 0
    assert tiny_run.run(*common, recipe="adapted.py", directory="runs/parts") == 0
    whole, parts = (tiny_run.rows(f"runs/{name}")["train/loss"] for name in ("whole", "parts"))
    np.testing.assert_allclose(whole, parts, rtol=2e-5)
