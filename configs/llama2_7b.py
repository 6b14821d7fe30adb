"""Llama 2 7B (arXiv 2307.09288): 6,738,415,616 parameters, 4M tokens a step, 2T tokens.

    python -m jaxlm.train --config configs/llama2_7b.py --data 'corpus/*.jsonl'

Shape: 32 layers of width 4096, 32 heads, SwiGLU of width 11008, context 4096, 32,000 tokens.
Hyperparameters: section 2.2 (AdamW 0.9/0.95, learning rate 3e-4 with cosine to 10%, 2,000 warmup
steps, weight decay 0.1, clipping at 1.0).

Hardware: written for 64 GPUs of 80 GB, ZeRO 3; each block is recomputed in the backward pass. Not
run here.
"""

import dataclasses

import llama_1b

from jaxlm.config import DataConfig, TrainingConfig

config = dataclasses.replace(
    llama_1b.config,
    model=dataclasses.replace(
        llama_1b.config.model,
        layers=32,
        width=4096,
        heads=32,
        kv_heads=None,
        mlp_width=11008,
        context_length=4096,
    ),
    data=DataConfig(sequence_length=4096),
    optimizer=dataclasses.replace(llama_1b.config.optimizer, learning_rate=3e-4),
    training=TrainingConfig(steps=477_000, batch_size=1024, microbatches=8),
)
