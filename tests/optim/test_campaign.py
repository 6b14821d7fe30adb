"""Muon against AdamW on the decoder quickstart, each at the best of the same rates.

pytest -m campaign -s tests/optim/test_campaign.py takes about 35 minutes on two quiet cores.
"""

import time
from pathlib import Path

import pytest
from support.programs import train_recipe

pytestmark = pytest.mark.campaign
STEPS, SHARE = 900, 0.75
RATES = (1e-3, 2e-3, 4e-3, 8e-3)


def train_quickstart(folder: Path, *edits: str) -> tuple[float, float]:
    """Return the validation loss at the end, and the seconds of the run."""
    started = time.perf_counter()
    run = folder / str(time.monotonic_ns())
    values = train_recipe("quickstart", run, f"data.store={folder / 'stores'}", *edits)
    return values["eval/loss"], time.perf_counter() - started


def test_muon_needs_three_quarters_of_the_steps_of_adamw(tmp_path, capfd):
    steps = {"adamw": STEPS, "muon": round(SHARE * STEPS)}
    best = {}
    for kind, count in steps.items():
        tries = {
            rate: train_quickstart(
                tmp_path,
                f"optimizer.kind={kind}",
                f"optimizer.learning_rate={rate}",
                f"training.steps={count}",
                "evaluation.samples=0",
            )
            for rate in RATES
        }
        best[kind] = min(tries.values())
        with capfd.disabled():
            for rate, (loss, seconds) in tries.items():
                print(f"\n{kind} {count} steps, rate {rate:g}: {loss:.4f}, {seconds:.0f} s", end="")

    assert best["muon"][0] <= best["adamw"][0]
