"""What number formats cost in the quickstarts, in 300 steps: pytest -m campaign -s.

JAXLM_FORMATS_EDITS holds edits for a smaller run, such as "model.layers=2 model.width=128".
"""

import functools
import os

import pytest
from support.programs import train_recipe

pytestmark = pytest.mark.campaign
EDITS = ("training.steps=300", "runtime.measure_cpu=false", "evaluation.samples=0")


@pytest.fixture(scope="module")
def final_loss(tmp_path_factory):
    """Return a function: quickstart, edits of precision -> eval/loss and the last value of all."""
    folder = tmp_path_factory.mktemp("formats")

    @functools.cache
    def train_once(name: str, *precision: str) -> tuple[float, dict[str, float]]:
        smaller = os.environ.get("JAXLM_FORMATS_EDITS", "").split()
        edits = [f"data.store={folder / 'stores'}", *EDITS, *smaller]
        edits += [f"precision.{edit}" for edit in precision]
        values = train_recipe(name, folder / f"{name}-{'-'.join(precision)}", *edits)
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
