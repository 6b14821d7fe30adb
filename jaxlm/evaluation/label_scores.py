"""The figures of a classifier on the validation split, from its predictions. Imports no jax."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.config import ClassifierConfig
from jaxlm.evaluation import label_metrics
from jaxlm.types import Array

# Figures by name -> (name for people, whether it is a share).
TITLES = {
    "accuracy": ("accuracy", True),
    "macro_f1": ("macro F1", False),
    "micro_f1": ("micro F1", False),
    "matthews": ("Matthews", False),
    "entity_f1": ("entity F1", False),
    "spearman": ("Spearman", False),
    "pearson": ("Pearson", False),
    "mse": ("mean squared error", False),
}


class LabelPredictions(NamedTuple):
    """The predictions for some samples, and what was right. P is 1 for texts, else tokens."""

    # int32 [B, P]: the label; bool [B, 1, C]: which labels hold; float32 [B, 1, C]: the values
    predicted: Array
    targets: Array  # of the same shape
    weights: Array  # float32 [B, P]; 0: not a target


def figure_names(classifier: ClassifierConfig) -> tuple[str, ...]:
    """Return the figures that a classifier has beside its loss, by name."""
    if classifier.problem == "regression":
        return "spearman", "pearson", "mse"
    if classifier.problem == "multi_label":
        return "accuracy", "macro_f1", "micro_f1"
    if classifier.kind == "sequence":
        return "accuracy", "macro_f1", "micro_f1", "matthews"

    has_entities = label_metrics.entity_labels(classifier.labels) is not None
    return ("accuracy", "macro_f1", *(["entity_f1"] if has_entities else []))


def score_labels(
    classifier: ClassifierConfig, predictions: Sequence[LabelPredictions]
) -> dict[str, float]:
    """Return the figures of `figure_names` over all samples, and how many samples there are.

    A weight says whether there is a target; the figures are not weighted, as in scikit-learn. They
    are those of multi-label accuracy where all labels of a text have to be right.
    """
    predicted, targets, weights = (
        np.concatenate(parts) for parts in zip(*predictions, strict=True)
    )
    counted = weights > 0
    lengths = counted.sum(axis=1)
    predicted, targets = predicted[counted], targets[counted]  # [N] or [N, C]

    if classifier.problem == "regression":
        figures = score_values(targets, predicted)
    elif classifier.problem == "multi_label":
        counts = label_metrics.multi_label_counts(targets, predicted)
        figures = {
            "accuracy": label_metrics.accuracy(targets > 0, predicted > 0),
            "macro_f1": label_metrics.macro_f1(counts),
            "micro_f1": counts.micro_f1(),
        }
    else:
        figures = score_single_labels(classifier, targets, predicted, lengths)
    return {name: figures[name] for name in figure_names(classifier)} | {"targets": len(targets)}


def score_single_labels(
    classifier: ClassifierConfig, targets: np.ndarray, predicted: np.ndarray, lengths: np.ndarray
) -> dict[str, float]:
    """Return the figures of one label for each text, or each token of texts of these `lengths`."""
    labels = len(classifier.labels)
    confusion = label_metrics.confusion_matrix(targets, predicted, labels)
    counts = label_metrics.single_label_counts(confusion)
    figures = {
        "accuracy": label_metrics.accuracy(targets, predicted),
        "macro_f1": label_metrics.macro_f1(counts),
        "micro_f1": counts.micro_f1(),
        "matthews": label_metrics.matthews(confusion),
    }

    places = label_metrics.entity_labels(classifier.labels)
    if classifier.kind == "token" and places is not None:
        figures["entity_f1"] = label_metrics.entity_f1(targets, predicted, lengths, places)
    return figures


def score_values(targets: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return the figures of numbers [N, C]; correlations are the means over the columns."""
    columns = list(zip(targets.T, predicted.T, strict=True))
    return {
        "spearman": float(np.mean([label_metrics.spearman(*column) for column in columns])),
        "pearson": float(np.mean([label_metrics.pearson(*column) for column in columns])),
        "mse": label_metrics.mean_squared_error(targets, predicted),
    }


def describe_figures(figures: dict[str, float]) -> str:
    """Return the figures, by name, as a part of a line for the terminal."""
    parts = []
    for name, (title, is_share) in TITLES.items():
        if name in figures:
            value = figures[name]
            parts.append(f"{title} {value:.2%}" if is_share else f"{title} {value:.4f}")
    return ", ".join(parts)
