"""ELECTRA-small (arXiv 2003.10555): 13,549,057 parameters, and a generator of a quarter its width.

    python -m jaxlm.train --config configs/electra_small.py --data 'corpus/*.jsonl'

16,384 tokens a step, 16B tokens. Shape and hyperparameters: tables 1 and 6 (12 layers of width 256,
4 heads, embeddings of width 128, 15% of the tokens hidden, detection weight 50, learning rate 5e-4
with 10,000 steps of warmup and linear decay, weight decay 0.01, 128 samples of 128 tokens, 1M
steps). The parameters are those of ElectraForPreTraining of this shape, which a test counts. For
the published WordPiece vocabulary add tokenizer.kind=file tokenizer.path=tokenizer.json.

Differences: a sample is a window of the running text, and dropout on the attention weights is 0 (in
the paper 0.1), since it would rule out cuDNN attention.

Hardware: written for one GPU. On an H100 500 steps of 256 samples ran at 1.5M tokens/s; it was not
trained further.
"""

from dataclasses import replace

from bert_base import config as bert

from jaxlm.config import DataConfig, ObjectiveConfig, ParallelConfig, TrainingConfig

config = replace(
    bert,
    model=replace(
        bert.model,
        width=256,
        heads=4,
        embedding_width=128,
        generator_share=0.25,
    ),
    objective=ObjectiveConfig(kind="replaced_tokens"),
    data=DataConfig(sequence_length=128),
    optimizer=replace(bert.optimizer, learning_rate=5e-4),
    parallel=ParallelConfig(zero=0),
    training=TrainingConfig(steps=1_000_000, batch_size=128),
)
