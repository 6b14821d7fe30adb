"""Teach an encoder to tell spam from other short messages: a classification head on a pretrained base.

    python -m jaxlm.train --config configs/finetune_sms_spam.py base=runs/encoder --data sms.tsv

The file has the columns `label` (ham or spam) and `text`; JSON lines with these keys do as well. The
published SMS Spam Collection has no names of columns; this puts them in front:

    (printf 'label\ttext\n'; cut -f1,2 SMSSpamCollection.tsv) > sms.tsv

`base` is a run of an encoder, or of another family, or one that `python -m jaxlm.convert import` has
made. Its head is left out, and that of the labels starts anew. 10% of the messages are held out, and
the checkpoint with the best macro F1 on them is kept.

Hardware: written for two CPU cores and a base of configs/quickstart_encoder.py's size.
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
        sources=(SourceConfig(name="messages", path="sms.tsv", format="labelled"),),
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
    training=TrainingConfig(steps=450, batch_size=32),
    evaluation=EvaluationConfig(every_steps=150, samples=0),
    checkpoint=CheckpointConfig(every_steps=150, best="eval/macro_f1"),
    logging=LoggingConfig(every_steps=30),
)
