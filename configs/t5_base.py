"""T5 v1.1 base (arXiv 1910.10683, with the gated GELU of 2002.05202): 247,577,856 parameters.

    python -m jaxlm.train --config configs/t5_base.py --data 'corpus/*.jsonl'

1.2M source tokens a step, 1M steps. Shape and z-loss: t5_1_1/base.gin of T5X (12 and 12 layers,
untied head, no dropout in pretraining). Objective: span corruption, 15% of the tokens in spans of 3
on average, so that a window of 568 tokens becomes 512 of source and 114 of target (section 3.1.4).
Hyperparameters: Adafactor, learning rate 0.01 for 10,000 steps, then 1 / sqrt(step) (section
3.1.2); 1M steps of 2048 sequences (section 3.7, the largest runs). The paper's baseline has 2^19
steps of 128 sequences: training.steps=524288 training.batch_size=128. For the published
SentencePiece vocabulary add tokenizer.kind=file tokenizer.path=tokenizer.json.

Differences: a sample is a window of the running text of one length, where T5 packs shorter
examples.

Hardware: written for 8 GPUs of 40 GB or more, ZeRO 1; on n GPUs set training.microbatches to
128 / n. Not run here.
"""

from jaxlm.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    TokenizerConfig,
    TrainingConfig,
)

config = Config(
    model=ModelConfig(
        family="encoder_decoder",
        vocabulary_size=32128,
        layers=12,
        width=768,
        heads=12,
        mlp_width=2048,
        context_length=512,
        norm="rmsnorm",
        norm_epsilon=1e-6,
        positions="relative",
        activation="gelu_tanh",
        gated=True,
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        attention_scale=1.0,
        tied_head=False,
        initializer="t5",
    ),
    objective=ObjectiveConfig(kind="span"),
    tokenizer=TokenizerConfig(kind="bpe", end_of_text="</s>"),
    data=DataConfig(sequence_length=512),
    optimizer=OptimizerConfig(
        kind="adafactor",
        learning_rate=0.01,
        schedule="inverse_sqrt",
        warmup_steps=10_000,
        warmup_start_ratio=1.0,
        weight_decay=0.0,
        gradient_clip=None,
    ),
    parallel=ParallelConfig(zero=1),
    training=TrainingConfig(steps=1_000_000, batch_size=2048, microbatches=16, z_loss=1e-4),
    evaluation=EvaluationConfig(every_steps=5000, steps=40, batch_size=256),
    checkpoint=CheckpointConfig(every_steps=5000),
)
