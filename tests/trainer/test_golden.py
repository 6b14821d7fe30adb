"""The first 20 losses of each family are those on file: whatever alters the maths shows here.

A change that means to alter them regenerates the files, and its diff shows by how much:
python tests/trainer/test_golden.py
"""

import contextlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from support import tiny_run

GOLDEN = Path(__file__).parent / "golden"
STEPS = 20


def losses(family: str) -> dict[str, list[float]]:
    """Return the losses of a run in the working directory: the whole path from text to metrics."""
    edits = (
        f"training.steps={STEPS}",
        "model.dropout=0",
        "evaluation.every_steps=0",
        "checkpoint.every_steps=0",
    )
    assert tiny_run.run(*tiny_run.FAMILIES[family], *edits, directory=f"runs/{family}") == 0
    rows = tiny_run.rows(f"runs/{family}")
    return {tag: [value for _, value in rows[tag]] for tag in ("train/loss", "eval/loss")}


@pytest.mark.parametrize("family", tiny_run.FAMILIES)
def test_losses_are_those_on_file(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_run.write_recipe(tmp_path)
    expected = json.loads((GOLDEN / f"{family}.json").read_text())
    actual = losses(family)
    assert actual.keys() == expected.keys() and len(actual["train/loss"]) == STEPS
    for tag, values in expected.items():
        # Other processors and versions of XLA add up in another order: after 20 steps of AdamW
        # that is below 1e-4 of a loss. A wrong epsilon, mask or decay is above it.
        np.testing.assert_allclose(actual[tag], values, rtol=1e-4)


def regenerate() -> None:
    for family in tiny_run.FAMILIES:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            tiny_run.write_recipe(Path(folder))
            text = json.dumps(losses(family), indent=1)
        (GOLDEN / f"{family}.json").write_text(text + "\n")


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    regenerate()
