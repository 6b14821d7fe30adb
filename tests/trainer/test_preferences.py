"""Runs of objective.kind=preference: from a base, against its log-probabilities, resumed."""

import json
import math
import random
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from support import tiny_run

from jaxlm import evaluate, runtime

RECIPE = tiny_run.tuned_recipe(
    """objective=ObjectiveConfig(kind="preference", beta=0.5),
    data=DataConfig(
        sources=(SourceConfig(name="answers", path="answers.jsonl", format="preferences"),),
        sequence_length=16,
        validation=ValidationConfig(share=0.2),
    ),"""
)


@pytest.fixture
def answers(copied_run):
    """Write a recipe of preferences, and their file, beside a finished run of a decoder."""
    copied_run("decoder")
    draw = random.Random(0)
    words = ["tree", "river", "stone", "cloud"]
    lines = [
        {"prompt": " ".join(draw.choices(words, k=2)), "chosen": " bird", "rejected": " xyz"}
        for _ in range(60)
    ]
    Path("answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("answers.py").write_text(RECIPE)


def test_a_run_prefers_the_chosen_answers_and_resumes_exactly(answers, capsys):
    """At the start the model is its reference: each pair has the loss ln 2."""
    assert tiny_run.run("model.dropout=0.0", recipe="answers.py", directory="runs/whole") == 0
    rows = tiny_run.rows("runs/whole")
    assert rows["train/loss"][0][1] == pytest.approx(math.log(2), abs=1e-6)
    assert rows["eval/loss"][-1][1] < math.log(2)
    assert rows["eval/reward_margin"][-1][1] > 0 and rows["eval/reward_accuracy"][-1][1] > 0.5

    edits = ("model.dropout=0.0", "training.steps=2")
    assert tiny_run.run(*edits, recipe="answers.py", directory="runs/parts") == 0
    stored = load_file("runs/parts/reference.safetensors")
    assert {name: value.shape[1] for name, value in stored.items()} == {
        "train.0": 2,
        "validation.0": 2,
    }
    edits = ("model.dropout=0.0", "training.steps=4")
    assert tiny_run.run(*edits, recipe="answers.py", directory="runs/parts") == 0
    assert tiny_run.rows("runs/parts")["train/loss"] == rows["train/loss"]
    assert tiny_run.rows("runs/parts")["eval/loss"] == rows["eval/loss"]

    capsys.readouterr()
    assert runtime.command(evaluate.main, ["runs/parts"]) == 2
    assert "tuned by preferences, whose loss is relative to its base" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_lost_its_reference_is_not_resumed(answers, capsys):
    assert tiny_run.run("training.steps=2", recipe="answers.py", directory="runs/parts") == 0
    Path("runs/parts/reference.safetensors").unlink()
    assert tiny_run.run("training.steps=4", recipe="answers.py", directory="runs/parts") == 2
    message = capsys.readouterr().err.strip()
    assert message.endswith("put it back, or choose another run_directory")
    assert "reference.safetensors: is missing" in message
