"""Teach an encoder whether a review is positive or negative.

    python -m jaxlm.train --config configs/finetune_movie_reviews.py base=runs/encoder \
        --data reviews.jsonl model.classifier.pooling=mean

Each line of the file has `text` and `label` (pos or neg). Reviews are longer than the 128 tokens
that a base of configs/quickstart_encoder.py reads: the start of each is kept
(`objective.too_long=drop` leaves such reviews out). A base with a longer context takes
data.sequence_length=512. 10% of the reviews are held out, and the checkpoint with the best accuracy
on them is kept.

The mean of the tokens suits a base without a token for whole texts. Without that edit the first
token is read, as BERT's class in transformers has it, which alone can be exported.

Hardware: two CPU cores; 69 s of training on a base of configs/quickstart_encoder.py, November 2026.
Reaches: 60% of the reviews right. That base has read Python's library; a bag of words (TF-IDF and
logistic regression) has 89%, so take a base that has read English.
"""

from dataclasses import replace

from finetune_sms_spam import config as messages

from jaxlm.config import CheckpointConfig, ClassifierConfig, SourceConfig, TrainingConfig

config = replace(
    messages,
    model=replace(
        messages.model, classifier=ClassifierConfig(kind="sequence", labels=("neg", "pos"))
    ),
    data=replace(
        messages.data,
        sources=(SourceConfig(name="reviews", path="reviews.jsonl", format="labelled"),),
        sequence_length=128,
    ),
    optimizer=replace(messages.optimizer, learning_rate=1e-3),
    training=TrainingConfig(steps=300, batch_size=16),
    checkpoint=CheckpointConfig(every_steps=100, best="eval/accuracy"),
)
