"""What pretraining is worth to a classifier: pytest -m campaign -s tests/test_tuning_campaign.py.

JAXLM_CORPORA names a folder with classic_books/*.md, sms_spam/SMSSpamCollection.tsv (label, tab,
text) and movie_reviews/{train,test}.jsonl (text, label). An encoder is pretrained on the books, and
tuned on both tasks; the same shape is tuned from random weights, by the same recipe. On two quiet
cores this takes some 50 minutes: 10 for the pretraining, 40 for the 20 runs. JAXLM_TUNING_SEEDS (5)
is the number of runs of each arm, and JAXLM_TUNING_SHARE (1.0) the share of all steps that is done,
for a trial: with a share below 1 nothing is claimed.
"""

import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.programs import OF_TESTS, OURS, ROOT, train_recipe

from jaxlm.columns import align_columns

pytestmark = pytest.mark.campaign

# Two-sided 95% quantiles of Student's t by degrees of freedom.
STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}
PRETRAINING_STEPS = 2200  # ten minutes on two cores: 1,000 take 265 s

RECIPE = """
from jaxlm.config import *

config = Config(
    base={base!r},
    model=ModelConfig(
        dropout=0.1,
        classifier=ClassifierConfig(kind="sequence", labels={labels!r}, pooling="mean"),
    ),
    objective=ObjectiveConfig(kind="classify"),
    data=DataConfig(
        sources=(SourceConfig(name="texts", path={train!r}, format="labelled"),),
        sequence_length={length},
        validation=ValidationConfig(method="source", path={test!r}),
        store={stores!r},
    ),
    optimizer=OptimizerConfig(
        learning_rate=5e-4, schedule="linear", warmup_steps=30, final_learning_rate_ratio=0.0,
        weight_decay=0.01,
    ),
    training=TrainingConfig(steps={steps}, batch_size={batch}),
    evaluation=EvaluationConfig(every_steps=0, batch_size=32, samples=0),
    checkpoint=CheckpointConfig(every_steps=0, best="eval/accuracy"),
    logging=LoggingConfig(every_steps=50),
    runtime=RuntimeConfig(measure_cpu=True),
)
"""


class Task(NamedTuple):
    """A task: its labels, and the length and number of its samples."""

    labels: tuple[str, ...]
    length: int  # tokens
    batch: int
    steps: int


TASKS = {
    "sms_spam": Task(("ham", "spam"), length=64, batch=32, steps=300),
    "movie_reviews": Task(("neg", "pos"), length=256, batch=16, steps=300),
}


def test_a_pretrained_encoder_beats_random_weights(tmp_path, capfd):
    """On both tasks the accuracy is higher with each seed's data order, by the interval at 95%."""
    corpora = os.environ.get("JAXLM_CORPORA")
    if not corpora:
        pytest.skip("JAXLM_CORPORA names no folder")
    seeds = int(os.environ.get("JAXLM_TUNING_SEEDS", "5"))
    share = float(os.environ.get("JAXLM_TUNING_SHARE", "1"))

    stores = str(tmp_path / "stores")
    base = pretrain(Path(corpora) / "classic_books" / "*.md", tmp_path / "base", stores, share)
    table, differences = [["task, accuracy on held-out texts", "mean", "95% interval"]], {}
    for name, task in TASKS.items():
        folder = tmp_path / name
        train, test = write_task(name, Path(corpora), folder)
        arms = tune_arms(task, folder, base, seeds, share, stores)
        for arm, accuracies in arms.items():
            mean, half = mean_interval(accuracies)
            table.append(
                [f"{name}, {arm}", f"{mean:.4f}", f"{mean - half:.4f} to {mean + half:.4f}"]
            )
        differences[name] = [
            pretrained - fresh
            for pretrained, fresh in zip(arms["pretrained"], arms["random weights"], strict=True)
        ]
        mean, half = mean_interval(differences[name])
        table.append([f"{name}, gain", f"{mean:+.4f}", f"{mean - half:+.4f} to {mean + half:+.4f}"])
        table.append(
            [f"{name}, TF-IDF + logistic regression", f"{bag_of_words(train, test):.4f}", ""]
        )

    with capfd.disabled():
        print(f"\n{align_columns(table)}")
    for name, gains in differences.items():
        mean, half = mean_interval(gains)
        assert share < 1 or mean - half > 0, name


def pretrain(texts: Path, directory: Path, stores: str, share: float) -> Path:
    """Pretrain the encoder of the quickstart on English books."""
    steps = max(4, int(share * PRETRAINING_STEPS))
    train_recipe(
        "quickstart_encoder",
        directory,
        "--data",
        str(texts),
        f"data.store={stores}",
        "data.validation.method=tail",
        "data.validation.share=0.02",
        f"training.steps={steps}",
        f"evaluation.every_steps={steps}",
        "evaluation.samples=0",
        f"checkpoint.every_steps={steps}",
    )
    return directory


def write_task(name: str, corpora: Path, folder: Path) -> tuple[Path, Path]:
    """Write the texts of a task for training and for the test, a fifth, as JSON lines."""
    folder.mkdir()
    if name == "movie_reviews":
        parts = [
            [json.loads(line) for line in (corpora / name / file).read_text().splitlines()]
            for file in ("train.jsonl", "test.jsonl")
        ]
    else:
        lines = (corpora / name / "SMSSpamCollection.tsv").read_text(errors="replace")
        fields = [line.split("\t") for line in lines.splitlines() if "\t" in line]
        records = [{"label": label, "text": text} for label, text, *_ in fields]
        random.Random(0).shuffle(records)
        parts = [records[len(records) // 5 :], records[: len(records) // 5]]

    paths = folder / "train.jsonl", folder / "test.jsonl"
    for path, records in zip(paths, parts, strict=True):
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return paths


def tune_arms(
    task: Task, folder: Path, base: Path, seeds: int, share: float, stores: str
) -> dict[str, list[float]]:
    """Return the accuracies after the last step, by arm and seed.

    The arm of random weights has the config of the other one but for its base: the same model,
    tokenizer, order of the texts and learning rates.
    """
    recipe = folder / "recipe.py"
    recipe.write_text(
        RECIPE.format(
            base=str(base),
            labels=task.labels,
            train=str(folder / "train.jsonl"),
            test=str(folder / "test.jsonl"),
            length=task.length,
            batch=task.batch,
            steps=max(4, int(share * task.steps)),
            stores=stores,
        )
    )
    arms: dict[str, list[float]] = {"pretrained": [], "random weights": []}
    for seed in range(seeds):
        tuned, fresh = folder / f"tuned-{seed}", folder / f"fresh-{seed}"
        arms["pretrained"].append(tune(recipe, tuned, f"seed={seed}"))
        arms["random weights"].append(tune(tuned / "config.json", fresh, "base=none"))
    return arms


def tune(recipe: Path, directory: Path, edit: str) -> float:
    """Train a run and return the accuracy of its last evaluation."""
    clean = {key: value for key, value in os.environ.items() if key not in (*OURS, *OF_TESTS)}
    command = [sys.executable, "-m", "jaxlm.train", "--config", str(recipe), edit]
    subprocess.run(
        [*command, f"run_directory={directory}"],
        cwd=ROOT,
        env={**clean, "JAX_PLATFORMS": "cpu"},
        check=True,
    )
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()
    ]
    return [row["eval/accuracy"] for row in rows if "eval/accuracy" in row][-1]


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and half of its interval at 95% by Student's t; infinite for one value."""
    if len(values) < 2:
        return values[0], math.inf
    half = STUDENT_T[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), half


def bag_of_words(train: Path, test: Path) -> float:
    """Return the accuracy of logistic regression on TF-IDF of words and pairs of words."""
    text = pytest.importorskip("sklearn.feature_extraction.text")
    linear_model = pytest.importorskip("sklearn.linear_model")
    (x, y), (test_x, test_y) = (
        zip(
            *((record["text"], record["label"]) for record in map(json.loads, path.open())),
            strict=True,
        )
        for path in (train, test)
    )
    vectorizer = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    model = linear_model.LogisticRegression(C=10, max_iter=1000).fit(vectorizer.fit_transform(x), y)
    return float(model.score(vectorizer.transform(test_x), test_y))
