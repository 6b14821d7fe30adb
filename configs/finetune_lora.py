"""Teach a decoder to answer by small matrices beside its own, which stay as they are (LoRA).

    python -m jaxlm.prepare docstrings docstrings.jsonl
    python -m jaxlm.train --config configs/finetune_lora.py base=runs/quickstart \
        --data docstrings.jsonl

The data are those of configs/finetune_instruction.py. Each matrix of attention and MLP gets two of
rank 8 (arXiv 2106.09685); the optimizer and the checkpoints keep these alone. The rate is five
times that of the full fine-tuning: a matrix that starts at 0 takes larger steps.

    python -m jaxlm.convert export runs/finetune_lora lora-hf

writes the model with its adapters merged.

Hardware: written for two CPU cores and a base of configs/quickstart.py.
"""

from dataclasses import replace

from finetune_instruction import config as instruction

from jaxlm.config import AdapterConfig

config = replace(
    instruction,
    adapter=AdapterConfig(
        rank=8, alpha=16.0, targets=("query", "key", "value", "output", "up", "down")
    ),
    optimizer=replace(instruction.optimizer, learning_rate=5e-3, weight_decay=0.0),
)
