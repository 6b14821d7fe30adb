"""Teach an encoder to tell spam from other short messages.

    python -m jaxlm.train --config configs/finetune_sms_spam.py base=runs/encoder \
        --data SMSSpamCollection.tsv

The file has a label (ham or spam) and a text in each row, and no names of columns, as the SMS Spam
Collection is published.

`base` is a run of an encoder, or of another family, or one that `python -m jaxlm.convert import`
has made. Its head is left out, and that of the labels starts anew. 10% of the messages are held
out, and the checkpoint with the best macro F1 on them is kept.

Hardware: two CPU cores, beside other work; 115 s of training on a base of
configs/quickstart_encoder.py, November 2026.
Reaches: 98.0% of the messages right, macro F1 0.946.
"""

from jaxlm import hardware
from jaxlm.config import (
    CheckpointConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PrecisionConfig,
    SourceConfig,
    TrainingConfig,
    ValidationConfig,
)

config = Config(
    model=ModelConfig(
        dropout=0.1, classifier=ClassifierConfig(kind="sequence", labels=("ham", "spam"))
    ),
    objective=ObjectiveConfig(kind="classify"),
    data=DataConfig(
        sources=(
            SourceConfig(
                name="messages",
                path="SMSSpamCollection.tsv",
                format="labelled",
                keys=(("label", "1"), ("text", "2")),  # columns by number
            ),
        ),
        sequence_length=64,
        validation=ValidationConfig(share=0.1),
    ),
    optimizer=OptimizerConfig(
        learning_rate=5e-4,
        schedule="linear",
        warmup_steps=30,
        final_learning_rate_ratio=0.0,
        weight_decay=0.01,
    ),
    precision=PrecisionConfig(compute="bfloat16" if hardware.cpu_has_bfloat16() else "float32"),
    training=TrainingConfig(steps=300, batch_size=32),
    evaluation=EvaluationConfig(every_steps=100, samples=0),
    checkpoint=CheckpointConfig(every_steps=100, best="eval/macro_f1"),
    logging=LoggingConfig(every_steps=30),
)
