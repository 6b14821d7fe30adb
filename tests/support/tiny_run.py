"""Small runs of each family on a small text, made by the command."""

import contextlib
import hashlib
import io
import json
import random
from pathlib import Path

from jaxlm import runtime, train

RECIPE = """
from jaxlm.config import *

config = Config(
    model=ModelConfig(
        vocabulary_size=257, layers=2, width=32, heads=4, context_length=32, dropout=0.1
    ),
    tokenizer=TokenizerConfig(kind="bytes"),
    data=DataConfig(
        sources=(SourceConfig(name="text", path="text.txt"),),
        sequence_length=32,
        validation=ValidationConfig(method="tail", share=0.1),
    ),
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

RUNS = FAMILIES | {  # and edits for other models of these families
    "electra": (
        *FAMILIES["encoder"],
        "objective.kind=replaced_tokens",
        "model.head_transform=true",
        "model.embedding_width=16",
        "model.generator_share=0.5",
    ),
}


TUNED = """
from jaxlm.config import *

config = Config(
    base="runs/tiny",
    {parts}
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, schedule="constant"),
    precision=PrecisionConfig(compute="float32"),
    training=TrainingConfig(steps=4, batch_size=8),
    evaluation=EvaluationConfig(every_steps=2, samples=0),
    checkpoint=CheckpointConfig(every_steps=2),
    logging=LoggingConfig(every_steps=1),
    runtime=RuntimeConfig(devices=1),
)
"""
TEXT_DATA = """data=DataConfig(
        sources=(SourceConfig(name="other", path="other.txt"),),
        sequence_length={length},
        validation=ValidationConfig(method="tail", share=0.1),
    ),"""


def tuned_recipe(parts: str) -> str:
    """Return a recipe that starts from a finished run (runs/tiny), with these sections beside."""
    return TUNED.format(parts=parts)


def write_recipe(folder: Path) -> None:
    """Write tiny.py and text.txt to `folder`."""
    words = random.Random(0).choices(
        ["tree", "river", "stone", "cloud", "bird", "of", "the", "and"], k=4000
    )
    (folder / "text.txt").write_text(" ".join(words))
    (folder / "tiny.py").write_text(RECIPE)


def run(*edits: str, directory: str = "runs/tiny", recipe: str = "tiny.py") -> int:
    """Run the command in the working directory, which has the recipe; return its exit code."""
    arguments = ["--config", recipe, f"run_directory={directory}", *edits]
    return runtime.command(train.main, arguments)


def finish(folder: Path, family: str) -> None:
    """Write the recipe, a finished run of it (runs/tiny) and its output.txt to `folder`."""
    write_recipe(folder)
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as output:
        code = run(*RUNS[family], "evaluation.samples=1", "evaluation.sample_tokens=8")
    assert code == 0, output.getvalue()
    (folder / "output.txt").write_text(output.getvalue())


def digest(folder: Path) -> str:
    """Return a hash of the names and contents of all files below `folder`."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(f"{path.relative_to(folder)}\0".encode())
        if path.is_file():
            total.update(path.read_bytes())
    return total.hexdigest()


def rows(directory: str | Path = "runs/tiny") -> dict[str, list]:
    """Return tag -> [(step, value), ...], without the tags that depend on time."""
    values: dict[str, list] = {}
    for line in (Path(directory) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for tag, value in row.items():
            if tag not in ("step", "train/tokens_per_second", "train/mfu"):
                values.setdefault(tag, []).append((row["step"], value))
    return values
