"""RoBERTa-base (arXiv 1907.11692): 124,697,433 parameters, 4.2M tokens a step, 2.1T tokens.

    python -m jaxlm.train --config configs/roberta_base.py --data 'corpus/*.jsonl'

Shape: BERT-base with a vocabulary of 50,265, one token type and a table of positions whose first
two rows are not used, as in the release. Hyperparameters: table 9 (Adam 0.9/0.98 with epsilon 1e-6,
learning rate 6e-4 with 24,000 steps of warmup and linear decay, weight decay 0.01, no clipping,
dropout 0.1, "8k" sequences, 500,000 steps). Masks are drawn anew on each visit of a text (section
4.1). For the published tokenizer add tokenizer.kind=file tokenizer.path=tokenizer.json.

Differences: a sample is a window of the running text, whose documents are not kept apart
(FULL-SENTENCES in section 4.2), and dropout on the attention weights is 0 (in the paper 0.1), since
it would rule out cuDNN attention.

Hardware: written for 8 GPUs of 40 GB or more, ZeRO 1; on n GPUs set training.microbatches to
256 / n. Not run here.
"""

import dataclasses

import bert_base

from jaxlm.config import EvaluationConfig, OptimizerConfig, TokenizerConfig, TrainingConfig

config = dataclasses.replace(
    bert_base.config,
    model=dataclasses.replace(
        bert_base.config.model,
        vocabulary_size=50265,
        norm_epsilon=1e-5,
        position_offset=2,
        token_types=1,
    ),
    tokenizer=TokenizerConfig(kind="bpe", begin_of_text="<s>", end_of_text="</s>"),
    optimizer=OptimizerConfig(
        learning_rate=6e-4,
        schedule="linear",
        warmup_steps=24_000,
        final_learning_rate_ratio=0.0,
        beta2=0.98,
        epsilon=1e-6,
        weight_decay=0.01,
        gradient_clip=None,
    ),
    training=TrainingConfig(steps=500_000, batch_size=8192, microbatches=32),
    evaluation=EvaluationConfig(every_steps=5000, steps=40, batch_size=256),
)
