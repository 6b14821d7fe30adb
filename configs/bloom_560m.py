"""BLOOM-560M (arXiv 2211.05100): 559,214,592 parameters, 0.5M tokens a step, 341B tokens.

    python -m jaxlm.train --config configs/bloom_560m.py --data 'corpus/*.jsonl'

Table 3: 24 layers of width 1024, 16 heads, 2,048 tokens, GELU, ALiBi, tied embeddings; 256
sequences a step, Adam 0.9/0.95, learning rate 3e-4 after 375M tokens of warmup, cosine to 1e-5 over
410B tokens, weight decay 0.1, clipping at 1.0. In steps of 524,288 tokens, the warmup takes 715 and
the decay 782,000, of which training does 650,000. The published tokenizer has 250,680 entries, the
model 250,880 rows; add tokenizer.kind=file tokenizer.path=tokenizer.json for it.

Differences: bfloat16, as in the 176B model (the paper's 560M: float16), and the initial values of
GPT-2, which the table does not give.

Hardware: written for 8 GPUs of 80 GB, ZeRO 1; on n GPUs set training.microbatches to 64 / n. Not
run here.
"""

from jaxlm.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TokenizerConfig,
    TrainingConfig,
)

config = Config(
    model=ModelConfig(
        vocabulary_size=250880,
        layers=24,
        width=1024,
        heads=16,
        context_length=2048,
        positions="alibi",
        embedding_norm=True,
    ),
    tokenizer=TokenizerConfig(kind="bpe", end_of_text="</s>"),
    data=DataConfig(sequence_length=2048),
    optimizer=OptimizerConfig(
        learning_rate=3e-4,
        warmup_steps=715,
        decay_steps=782_000,
        final_learning_rate_ratio=1 / 30,
        beta2=0.95,
        weight_decay=0.1,
    ),
    parallel=ParallelConfig(zero=1),
    training=TrainingConfig(steps=650_000, batch_size=256, microbatches=8),
    evaluation=EvaluationConfig(every_steps=5000, steps=40),
    checkpoint=CheckpointConfig(every_steps=5000),
)
