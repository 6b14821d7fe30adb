"""What number formats cost in the quickstarts, in 300 steps: pytest -m campaign -s.

JAXLM_FORMATS_EDITS holds edits for a smaller run, such as "model.layers=2 model.width=128".
"""

import functools
import json
import os
from pathlib import Path

import pytest

from jaxlm import runtime, train

pytestmark = pytest.mark.campaign
CONFIGS = Path(__file__).parent.parent / "configs"
EDITS = ("training.steps=300", "runtime.measure_cpu=false", "evaluation.samples=0")


@pytest.fixture(scope="module")
def final_loss(tmp_path_factory):
    """Return a function: quickstart, edits of precision -> eval/loss and the last training row."""
    folder = tmp_path_factory.mktemp("formats")

    @functools.cache
    def train_once(name: str, *precision: str) -> tuple[float, dict[str, float]]:
        directory = folder / f"{name}-{'-'.join(precision)}"
        places = (f"run_directory={directory}", f"data.store={folder / 'stores'}")
        smaller = os.environ.get("JAXLM_FORMATS_EDITS", "").split()
        edits = [*places, *EDITS, *smaller, *(f"precision.{edit}" for edit in precision)]
        assert runtime.command(train.main, ["--config", str(CONFIGS / f"{name}.py"), *edits]) == 0

        values = {}
        for line in (directory / "metrics.jsonl").read_text().splitlines():
            values |= json.loads(line)
        return values["eval/loss"], values

    return train_once


@pytest.mark.parametrize("name", ["quickstart", "quickstart_encoder", "quickstart_encoder_decoder"])
def test_float16_reaches_the_loss_of_float32(final_loss, capfd, name):
    exact, _ = final_loss(name, "compute=float32")
    half, values = final_loss(name, "compute=float16")
    with capfd.disabled():
        print(
            f"\n{name}: float32 {exact:.4f}, float16 {half:.4f} ({half / exact - 1:+.2%}), scale "
            f"{values['train/loss_scale']:g}, {values['train/skipped_steps']} steps skipped"
        )
    assert half == pytest.approx(exact, rel=0.01)


def test_float8_reaches_the_loss_of_bfloat16(final_loss, capfd):
    exact, _ = final_loss("quickstart", "compute=bfloat16")
    rounded, _ = final_loss("quickstart", "compute=bfloat16", "matmul=float8")
    with capfd.disabled():
        print(f"\nbfloat16 {exact:.4f}, float8 {rounded:.4f} ({rounded / exact - 1:+.2%})")
    assert rounded == pytest.approx(exact, rel=0.015)
