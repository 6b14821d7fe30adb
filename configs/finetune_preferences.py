"""Let a decoder prefer the better of two answers (DPO, arXiv 2305.18290).

    python -m jaxlm.prepare docstrings preferences.jsonl --preferences
    python -m jaxlm.train --config configs/finetune_preferences.py \
        base=runs/finetune_instruction --data preferences.jsonl

Each line of the file has a `prompt`, the answer that is `chosen` and the one that is `rejected`:
here the docstring of a function, and that of another one. The base is the model that
configs/finetune_instruction.py has taught, whose chat template is kept; its scores of both answers
are the reference.

Hardware: written for two CPU cores and a base of configs/quickstart.py's size.
"""

from dataclasses import replace

from finetune_instruction import config as instruction

from jaxlm.config import (
    EvaluationConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SourceConfig,
    TrainingConfig,
)

config = replace(
    instruction,
    objective=ObjectiveConfig(kind="preference", too_long="drop", beta=0.1),
    data=replace(
        instruction.data,
        sources=(SourceConfig(name="answers", path="preferences.jsonl", format="preferences"),),
        sequences="windows",
    ),
    optimizer=OptimizerConfig(
        learning_rate=1e-4, schedule="linear", warmup_steps=20, weight_decay=0.0
    ),
    training=TrainingConfig(steps=200, batch_size=8),
    evaluation=EvaluationConfig(every_steps=100, samples=0),
)
