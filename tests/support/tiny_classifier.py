"""Small classifiers of each kind of problem: texts with labels, recipes, and finished runs."""

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any

from jaxlm import runtime, train

RECIPE = """
from jaxlm.config import *

config = Config(
    model=ModelConfig(
        family="encoder", vocabulary_size=259, layers=1, width=32, heads=4, context_length=48,
        norm_placement="post", embedding_norm=True, norm_epsilon=1e-12,
        classifier=ClassifierConfig(kind="sequence", labels=("bad", "good", "odd")),
    ),
    objective=ObjectiveConfig(kind="classify"),
    tokenizer=TokenizerConfig(kind="bytes"),
    data=DataConfig(
        sources=(SourceConfig(name="texts", path="texts.jsonl", format="labelled"),),
        sequence_length=32,
        validation=ValidationConfig(method="source", path="held_out.jsonl"),
    ),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=4),
    precision=PrecisionConfig(compute="float32"),
    training=TrainingConfig(steps=12, batch_size=8),
    evaluation=EvaluationConfig(every_steps=4),
    checkpoint=CheckpointConfig(every_steps=12, best="eval/accuracy"),
    logging=LoggingConfig(every_steps=4),
    runtime=RuntimeConfig(devices=1, measure_cpu=False),
)
"""
WORDS = ("bad", "good", "odd", "tree", "river", "stone", "cloud", "of", "and")
LABELS = WORDS[:3]

# Edits of the recipe for each problem.
PROBLEMS = {
    "single_label": (),
    "multi_label": ("model.classifier.problem=multi_label",),
    "regression": (
        "model.classifier.problem=regression",
        'model.classifier.labels=["length", "vowels"]',
        "checkpoint.best=eval/spearman",
    ),
    "token": (
        "model.classifier.kind=token",
        'model.classifier.labels=["O", "B-WORD", "I-WORD"]',
        "checkpoint.best=eval/entity_f1",
    ),
}


def describe_words(words: list[str], problem: str) -> dict[str, Any]:
    """Return a record: words with what their labels are made of."""
    text = " ".join(words)
    if problem == "single_label":
        return {"text": text, "label": max(LABELS, key=words.count)}
    if problem == "multi_label":
        return {"text": text, "label": [label for label in LABELS if label in words]}
    if problem == "regression":
        vowels = sum(text.count(vowel) for vowel in "aeiou")
        return {"text": text, "label": [len(text) / 20, vowels / 10]}

    tags, before = [], "O"
    for word in words:
        before = ("I-WORD" if before != "O" else "B-WORD") if word in LABELS else "O"
        tags.append(before)
    return {"tokens": words, "label": tags}


def write_texts(path: Path, problem: str, count: int = 120, seed: int = 0) -> list[dict[str, Any]]:
    """Write records of random words, some longer than a sample, and return them."""
    draw = random.Random(seed)
    records = [
        describe_words(draw.choices(WORDS, k=draw.randint(2, 8)), problem) for _ in range(count)
    ]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return records


def train_classifier(folder: Path, problem: str, *edits: str) -> str:
    """Write the recipe, the texts and a finished run (runs/tiny) to `folder`; return its output."""
    (folder / "tiny.py").write_text(RECIPE)
    write_texts(folder / "texts.jsonl", problem)
    write_texts(folder / "held_out.jsonl", problem, count=27, seed=1)
    arguments = ["--config", "tiny.py", "run_directory=runs/tiny", *PROBLEMS[problem], *edits]
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as output:
        code = runtime.command(train.main, arguments)
    assert code == 0, output.getvalue()
    return output.getvalue()
