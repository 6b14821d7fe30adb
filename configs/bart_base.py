"""BART-base (arXiv 1910.13461): 139,420,416 parameters, 4.1M source tokens a step, 2T tokens.

    python -m jaxlm.train --config configs/bart_base.py --data 'corpus/*.jsonl'

Shape: 6 and 6 layers (section 2.1), exact GELU, N(0, 0.02), with the 1,024 positions of the release
and its two unused rows before them. Objective: 30% of the tokens in spans of Poisson length 3, each
hidden by one mask token, and sentences in random order (section 5.1). Batch and steps are those of
the large model in section 5.1: 8,000 sequences, 500,000 steps. The paper gives no sequence length,
learning rate or warmup. It follows RoBERTa otherwise, so 512 tokens and the optimizer of
RoBERTa-base stand in for them. For the published tokenizer add
tokenizer.kind=file tokenizer.path=tokenizer.json.

Differences: a sample is a window of the running text, and dropout stays on to the end (in the paper
it is off for the last 10% of the steps). Dropout on the attention weights is 0, since it would rule
out cuDNN attention.

Hardware: written for 8 GPUs of 40 GB or more, ZeRO 1; on n GPUs set training.microbatches to
400 / n. Not run here.
"""

import dataclasses

import roberta_base

from jaxlm.config import ModelConfig, ObjectiveConfig, TrainingConfig

config = dataclasses.replace(
    roberta_base.config,
    model=ModelConfig(
        family="encoder_decoder",
        vocabulary_size=50265,
        layers=6,
        width=768,
        heads=12,
        context_length=1024,
        norm_placement="post",
        embedding_norm=True,
        position_offset=2,
        activation="gelu",
        dropout=0.1,
        initializer="normal",
    ),
    objective=ObjectiveConfig(
        kind="infilling", noise_share=0.3, mean_span=3.0, shuffle_sentences=True
    ),
    training=TrainingConfig(steps=500_000, batch_size=8000, microbatches=50),
)
