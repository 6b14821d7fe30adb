"""GPT-2 small (Radford et al. 2019), as nanoGPT reproduces it: 124,439,808 parameters.

    python -m jaxlm.train --config configs/gpt2_124m.py --data 'openwebtext/*.jsonl'

0.49M tokens a step, 300B tokens. Shape: GPT-2 small. Hyperparameters: those of GPT-3 125M (arXiv
2005.14165, table 2.1 and appendix B: learning rate 6e-4, cosine to 10%, beta2 0.95, clipping at
1.0, weight decay 0.1) with nanoGPT's 600,000 steps of 480 sequences. nanoGPT reports a validation
loss of 2.85 on OpenWebText with GPT-2's own tokenizer (add
tokenizer.kind=file tokenizer.path=tokenizer.json for it).

Hardware: written for 8 GPUs of 40 GB or more, ZeRO 1; on one GPU set training.microbatches=40. Not
run to its end here.
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
    model=ModelConfig(vocabulary_size=50257, layers=12, width=768, heads=12, context_length=1024),
    tokenizer=TokenizerConfig(kind="bpe"),
    data=DataConfig(sequence_length=1024),
    optimizer=OptimizerConfig(
        learning_rate=6e-4,
        warmup_steps=2000,
        final_learning_rate_ratio=0.1,
        beta2=0.95,
        weight_decay=0.1,
    ),
    parallel=ParallelConfig(zero=1),
    training=TrainingConfig(steps=600_000, batch_size=480, microbatches=5),
    evaluation=EvaluationConfig(every_steps=1000, steps=40),
    checkpoint=CheckpointConfig(every_steps=1000),
)
