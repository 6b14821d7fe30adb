"""A run of each family on a small text, by the command."""

import json
import random
from pathlib import Path

from jaxlm import runtime, train

RECIPE = """
from jaxlm.config import *

config = Config(
    model=ModelConfig(vocabulary_size=257, layers=2, width=32, heads=4, context_length=32, dropout=0.1),
    tokenizer=TokenizerConfig(kind="bytes"),
    data=DataConfig(sources=(SourceConfig(name="text", path="text.txt"),), sequence_length=32, validation=ValidationConfig(method="tail", share=0.1)),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=4),
    precision=PrecisionConfig(compute="float32"),
    training=TrainingConfig(steps=12, batch_size=8),
    evaluation=EvaluationConfig(every_steps=6, samples=0),
    checkpoint=CheckpointConfig(every_steps=4),
    logging=LoggingConfig(every_steps=1),
    runtime=RuntimeConfig(devices=1),
)
"""

FAMILIES = {  # edits of the recipe
    "decoder": (),
    "encoder": (
        "model.family=encoder",
        "objective.kind=masked",
        "model.norm_placement=post",
        "model.vocabulary_size=259",
    ),
    "encoder_decoder": (
        "model.family=encoder_decoder",
        "objective.kind=span",
        "model.encoder_layers=1",
        "model.positions=relative",
        "model.vocabulary_size=262",
        "tokenizer.sentinels=4",
    ),
}


def write_recipe(folder: Path) -> None:
    """tiny.py and text.txt in `folder`."""
    words = random.Random(0).choices(
        ["tree", "river", "stone", "cloud", "bird", "of", "the", "and"], k=4000
    )
    (folder / "text.txt").write_text(" ".join(words))
    (folder / "tiny.py").write_text(RECIPE)


def run(*edits: str, directory: str = "runs/tiny", recipe: str = "tiny.py") -> int:
    """The command's exit code, in the working directory that has the recipe."""
    return runtime.command(train.main, ["--config", recipe, f"run_directory={directory}", *edits])


def rows(directory: str = "runs/tiny") -> dict[str, list]:
    """tag -> [(step, value), ...] without the tags that time decides."""
    found: dict[str, list] = {}
    for line in (Path(directory) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for tag, value in row.items():
            if tag not in ("step", "train/tokens_per_second", "train/mfu"):
                found.setdefault(tag, []).append((row["step"], value))
    return found
