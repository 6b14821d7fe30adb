"""Runs on examples: resumed to the bit, and on other meshes with the same batches."""

import json
import random
from pathlib import Path

import pytest
from support import tiny_run

RECIPE = """
from jaxlm.config import *

config = Config(
    model=ModelConfig(
        vocabulary_size=300, layers=2, width=32, heads=4, context_length=64, dropout=0.1
    ),
    tokenizer=TokenizerConfig(kind="bytes"),
    data=DataConfig(
        sources=(SourceConfig(name="text", path="examples.jsonl"),),
        sequence_length=64,
        validation=ValidationConfig(share=0.2),
    ),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=1, schedule="constant"),
    precision=PrecisionConfig(compute="float32"),
    training=TrainingConfig(steps=8, batch_size=8, microbatches=1),
    evaluation=EvaluationConfig(every_steps=4, samples=0),
    checkpoint=CheckpointConfig(every_steps=2),
    logging=LoggingConfig(every_steps=1),
    runtime=RuntimeConfig(devices=1),
)
"""
LABELS = 'model.classifier.labels=["even", "odd"]'
ENCODER_DECODER = ("model.family=encoder_decoder", "model.positions=relative")
RUNS = {
    "rows of instructions": (
        "objective.kind=instruction",
        "tokenizer.chat_template=plain",
        "data.sequences=packed",
    ),
    "turns of an encoder-decoder": (
        *ENCODER_DECODER,
        "objective.kind=instruction",
        "tokenizer.chat_template=plain",
    ),
    "labels of texts": (
        "model.family=encoder",
        "objective.kind=classify",
        "model.classifier.kind=sequence",
        LABELS,
        "objective.class_weights=[1.0, 2.0]",
    ),
    "labels of tokens": (
        "objective.kind=classify",
        "model.classifier.kind=token",
        LABELS,
        'data.sources.0.keys=[["label", "labels"]]',
    ),
}


@pytest.fixture
def examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw, lines = random.Random(0), []
    for number in range(80):
        words = draw.choices(["tree", "river", "stone", "cloud"], k=draw.randint(1, 5))
        name = ["even", "odd"][number % 2]
        line = {"prompt": " ".join(words), "response": name, "text": " ".join(words) + f" {number}"}
        line |= {"label": name, "tokens": words, "labels": [name] * len(words)}
        lines.append(json.dumps(line))
    Path("examples.jsonl").write_text("\n".join(lines))
    Path("examples.py").write_text(RECIPE)


def run(name: str, directory: str, *edits: str) -> dict[str, list]:
    """Return the figures of a run, which is resumed where it is there."""
    formats = {"instruction": "messages", "classify": "labelled"}
    kind = next(edit for edit in RUNS[name] if edit.startswith("objective.kind"))
    source = f"data.sources.0.format={formats[kind.partition('=')[2]]}"
    arguments = (source, *RUNS[name], *edits)
    assert tiny_run.run(*arguments, recipe="examples.py", directory=directory) == 0
    return tiny_run.rows(directory)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_unbroken_one(examples, name):
    whole = run(name, "runs/whole")
    run(name, "runs/parts", "training.steps=3")
    parts = run(name, "runs/parts")
    assert parts["train/loss"] == whole["train/loss"]
    assert parts["eval/loss"][-1] == whole["eval/loss"][-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows of instructions", "labels of texts"])
def test_other_meshes_see_the_same_batches(examples, name):
    """float32 sums in another order; another batch would be off by 1e-2 and more."""
    whole = dict(run(name, "runs/whole", "model.dropout=0")["train/loss"])
    for steps, devices, zero in ((3, 8, 3), (6, 4, 2), (8, 1, 0)):
        edits = (f"training.steps={steps}", f"runtime.devices={devices}", f"parallel.zero={zero}")
        moved = dict(run(name, "runs/moved", "model.dropout=0", *edits)["train/loss"])
    assert moved.keys() == whole.keys()
    assert max(abs(moved[step] - whole[step]) for step in whole) < 1e-4

    edits = ("model.dropout=0", "runtime.devices=8", "parallel.tensor=2", "training.microbatches=2")
    split = dict(run(name, "runs/split", "training.steps=3", *edits)["train/loss"])
    assert max(abs(split[step] - whole[step]) for step in split) < 1e-4
