"""Runs that tune a base are the same on any devices, and resumed where they stopped."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from support import tiny_run

PARTS = {
    "classify": """
    model=ModelConfig(classifier=ClassifierConfig(kind="sequence", labels=("odd", "even"))),
    objective=ObjectiveConfig(kind="classify"),
    data=DataConfig(
        sources=(SourceConfig(name="tuned", path="tuned.jsonl", format="labelled"),),
        sequence_length=24,
        validation=ValidationConfig(share=0.2),
    ),""",
    "instruction": """
    objective=ObjectiveConfig(kind="instruction"),
    tokenizer=TokenizerConfig(chat_template="plain"),
    data=DataConfig(
        sources=(SourceConfig(name="tuned", path="tuned.jsonl", format="messages"),),
        sequence_length=32,
        sequences="packed",
        validation=ValidationConfig(share=0.2),
    ),""",
    "preference": """
    objective=ObjectiveConfig(kind="preference"),
    data=DataConfig(
        sources=(SourceConfig(name="tuned", path="tuned.jsonl", format="preferences"),),
        sequence_length=16,
        validation=ValidationConfig(share=0.2),
    ),""",
}


def write_examples(kind: str) -> None:
    """Write tuned.jsonl and tuned.py."""
    draw, lines = random.Random(0), []
    for _ in range(80):
        number = draw.randrange(100)
        label = ("even", "odd")[number % 2]
        lines.append(
            {
                "classify": {"text": f"tree {number}", "label": label},
                "instruction": {"prompt": str(number), "response": label},
                "preference": {"prompt": f"{number} ", "chosen": label, "rejected": "x"},
            }[kind]
        )
    Path("tuned.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("tuned.py").write_text(tiny_run.tuned_recipe(PARTS[kind]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "family"),
    [("classify", "encoder"), ("instruction", "decoder"), ("preference", "decoder")],
)
def test_a_run_goes_from_eight_devices_to_four_and_to_one(kind, family, copied_run):
    """Losses differ by the order of sums alone: 1e-6 of them, which Adam's first steps enlarge."""
    copied_run(family)
    write_examples(kind)
    assert tiny_run.run("model.dropout=0.0", recipe="tuned.py", directory="runs/whole") == 0
    for steps, devices, zero in ((2, 8, 3), (3, 4, 1), (4, 1, 0)):
        edits = (f"training.steps={steps}", f"runtime.devices={devices}", f"parallel.zero={zero}")
        code = tiny_run.run("model.dropout=0.0", *edits, recipe="tuned.py", directory="runs/parts")
        assert code == 0

    whole, parts = tiny_run.rows("runs/whole"), tiny_run.rows("runs/parts")
    assert [step for step, _ in parts["train/loss"]] == [1, 2, 3, 4]
    np.testing.assert_allclose(whole["train/loss"], parts["train/loss"], rtol=2e-5)
    np.testing.assert_allclose(whole["eval/loss"][-1], parts["eval/loss"][-1], rtol=2e-5)
