"""nanoGPT's Shakespeare for CPUs: 4 layers of width 128 on single bytes, 2,000 steps.

    python -m jaxlm.train --config configs/nanogpt_shakespeare.py --data input.txt

The context has 64 bytes, a step 12 sequences. The text is tiny Shakespeare (1.1 MB, one file,
ASCII: a byte is a character); its last 10% are held out. Model, learning rate and schedule are
those of nanoGPT's train_shakespeare_char recipe for CPUs, which reports 1.88 nats per character.
"""

from jaxlm import hardware
from jaxlm.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    RuntimeConfig,
    SourceConfig,
    TokenizerConfig,
    TrainingConfig,
    ValidationConfig,
)

config = Config(
    model=ModelConfig(
        vocabulary_size=257,
        layers=4,
        width=128,
        heads=4,
        context_length=64,
        activation="gelu",
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        norm_bias=False,
    ),
    tokenizer=TokenizerConfig(kind="bytes"),
    data=DataConfig(
        sources=(SourceConfig(name="shakespeare", path="input.txt"),),
        sequence_length=64,
        validation=ValidationConfig(method="tail", share=0.1),
    ),
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        warmup_steps=100,
        final_learning_rate_ratio=0.1,
        beta2=0.99,
        weight_decay=0.1,
    ),
    precision=PrecisionConfig(compute="float32"),
    training=TrainingConfig(steps=2000, batch_size=12),
    evaluation=EvaluationConfig(every_steps=500, batch_size=96, sample_tokens=300),
    checkpoint=CheckpointConfig(every_steps=500),
    runtime=RuntimeConfig(devices=hardware.cpu_devices()),
)
