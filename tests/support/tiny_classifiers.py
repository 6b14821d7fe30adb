"""Classifiers of each family, small enough to train in a test, and random batches for them."""

from dataclasses import replace
from typing import Any

import numpy as np

from jaxlm.config import ClassifierConfig, Config, ObjectiveConfig, SourceConfig
from jaxlm.types import Batch
from support import tiny

LABELS = ("ham", "spam", "other")
SOURCE = SourceConfig(name="labelled", path="labelled.jsonl", format="labelled")  # never read


def classifier_config(family: str, kind: Any, **fields: Any) -> Config:
    """Return the tiny config of a family with a classifier's head, which drops some features."""
    config = tiny.FAMILIES[family]
    classifier = ClassifierConfig(kind=kind, labels=LABELS, **{"dropout": 0.2} | fields)
    return replace(
        config,
        model=replace(config.model, classifier=classifier),
        objective=ObjectiveConfig(kind="classify"),
        data=replace(config.data, sources=(SOURCE,)),
    )


def classifier_batch(number: int, config: Config) -> Batch:
    """Return random texts of unequal lengths, with labels of unequal weights."""
    random = np.random.default_rng(number)
    rows, length = config.training.batch_size, config.data.sequence_length
    model, classifier = config.model, config.model.classifier
    tokens = random.integers(0, model.vocabulary_size, (rows, length)).astype(np.int32)
    lengths = random.integers(length // 2, length + 1, rows).astype(np.int32)

    columns = length if classifier.kind == "token" else 1
    targets = random.integers(0, len(LABELS), (rows, columns)).astype(np.int32)
    if classifier.problem == "multi_label":
        targets = random.integers(0, 2, (rows, 1, len(LABELS))).astype(np.float32)
    elif classifier.problem == "regression":
        targets = random.normal(size=(rows, 1, len(LABELS))).astype(np.float32)
    weights = np.linspace(0.2, 1.0, rows)[:, None] * (random.random((rows, columns)) < 0.8)
    batch = Batch(tokens, lengths, targets=targets, weights=weights.astype(np.float32))
    if model.token_types:
        batch = batch._replace(token_types=np.sort(tokens % model.token_types, axis=1))
    if model.family == "encoder_decoder":
        batch = batch._replace(source=tokens, source_lengths=lengths)
    return batch
