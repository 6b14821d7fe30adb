"""BERT-base (arXiv 1810.04805) without next-sentence prediction: 109,514,298 parameters.

    python -m jaxlm.train --config configs/bert_base.py --data 'corpus/*.jsonl'

131,072 tokens a step, 131B tokens. Shape: section 3; norm epsilon and initial values are those of
the authors' release. Hyperparameters: appendix A.2 (Adam 0.9/0.999, learning rate 1e-4 with 10,000
steps of warmup and linear decay to 0, weight decay 0.01, dropout 0.1, 256 sequences, 1M steps);
Adam's epsilon and clipping at 1.0 are those of the release. For the published WordPiece vocabulary
add tokenizer.kind=file tokenizer.path=tokenizer.json; without it, byte-level BPE of the same size
is trained on the data.

Differences: there is no sentence pair to classify, all steps have 512 tokens (in the paper 90% have
128), a sample is a window of the running text, and dropout on the attention weights is 0 (in the
paper 0.1), since it would rule out cuDNN attention.

Hardware: written for 8 GPUs of 40 GB or more, ZeRO 1; on one GPU set training.microbatches=8. Not
run here.
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
        family="encoder",
        vocabulary_size=30522,
        layers=12,
        width=768,
        heads=12,
        context_length=512,
        norm_epsilon=1e-12,
        norm_placement="post",
        embedding_norm=True,
        token_types=2,
        activation="gelu",
        head_bias=True,
        head_transform=True,
        dropout=0.1,
        initializer="normal",
    ),
    objective=ObjectiveConfig(kind="masked"),
    tokenizer=TokenizerConfig(
        kind="bpe", begin_of_text="[CLS]", end_of_text="[SEP]", pad="[PAD]", mask="[MASK]"
    ),
    data=DataConfig(sequence_length=512),
    optimizer=OptimizerConfig(
        learning_rate=1e-4,
        schedule="linear",
        warmup_steps=10_000,
        final_learning_rate_ratio=0.0,
        beta2=0.999,
        epsilon=1e-6,
        weight_decay=0.01,
    ),
    parallel=ParallelConfig(zero=1),
    training=TrainingConfig(steps=1_000_000, batch_size=256),
    evaluation=EvaluationConfig(every_steps=5000, steps=40),
    checkpoint=CheckpointConfig(every_steps=5000),
)
