"""A Llama with the shape and schedule of TinyLlama (arXiv 2401.02385): 1,100,048,384 parameters.

    python -m jaxlm.train --config configs/llama_1b.py --data 'corpus/*.jsonl'

Shape: 22 layers of width 2048, 32 heads over 4 key/value heads, SwiGLU of width 5632, rotary
positions, RMSNorm, untied head, 32,000 tokens. Hyperparameters: section 2.3 (AdamW 0.9/0.95,
learning rate 4e-4 with cosine to 4e-5, 2,000 warmup steps, weight decay 0.1, clipping at 1.0, 2M
tokens a step).

Hardware: written for 8 GPUs of 80 GB, ZeRO 3; each block is recomputed in the backward pass.
Compiled for 8 H100 with 4 sequences per GPU and no accumulation, it peaks below 5 GB a GPU
(tests/test_aot.py). Not run to its end here.
"""

from jaxlm.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainingConfig,
)

config = Config(
    model=ModelConfig(
        vocabulary_size=32000,
        layers=22,
        width=2048,
        heads=32,
        kv_heads=4,
        mlp_width=5632,
        context_length=2048,
        norm="rmsnorm",
        norm_epsilon=1e-5,
        positions="rotary",
        activation="silu",
        gated=True,
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        tied_head=False,
        initializer="normal",
    ),
    data=DataConfig(sequence_length=2048),
    optimizer=OptimizerConfig(
        learning_rate=4e-4,
        warmup_steps=2000,
        final_learning_rate_ratio=0.1,
        beta2=0.95,
        weight_decay=0.1,
    ),
    parallel=ParallelConfig(zero=3, remat="full"),
    training=TrainingConfig(steps=1_430_000, batch_size=1024, microbatches=8),
    evaluation=EvaluationConfig(every_steps=5000, steps=40),
    checkpoint=CheckpointConfig(every_steps=5000),
)
