"""Torch's AdamW with a schedule, and the config of ours that is the same."""

import math
from typing import Any

import torch

from jaxlm.config import OptimizerConfig

STEPS, WARMUP, PEAK, FINAL = 20, 5, 3e-3, 0.1


def reference_rate(index: int) -> float:
    decay = 0.5 * (1 + math.cos(math.pi * (index - WARMUP) / (STEPS - WARMUP)))
    return PEAK * (index + 1) / WARMUP if index < WARMUP else PEAK * (FINAL + (1 - FINAL) * decay)


def reference_adamw(reference: Any) -> Any:
    """Return torch's AdamW, with decay on everything but biases and norms."""
    parameters = dict(reference.named_parameters())
    plain = {name for name, p in parameters.items() if p.ndim == 1 or "bias" in name}
    groups = [
        {"params": [p for name, p in parameters.items() if name not in plain], "weight_decay": 0.3},
        {"params": [parameters[name] for name in plain], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.97), eps=1e-8)


OUR_ADAMW = OptimizerConfig(
    learning_rate=PEAK,
    warmup_steps=WARMUP,
    final_learning_rate_ratio=FINAL,
    schedule="cosine",
    gradient_clip=1.0,
    weight_decay=0.3,
    beta2=0.97,
)
