"""Show examples: where in a store they are, their texts, and their labels by name."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.data.example_array import ExampleArray
from jaxlm.types import Batch

# The parts of an example that are ids, by the number of its parts in a store and their order.
TEXTS = {
    "labelled": ("text", "second text"),
    "messages": ("before the last turn", "last turn", "after it"),
    "preferences": ("prompt", "chosen", "rejected"),
}


def read_example_texts(
    array: ExampleArray, example: int, form: str, most: int
) -> dict[str, np.ndarray]:
    """Return the texts of an example by name, at most `most` tokens of each, without empty ones."""
    parts = array.parts.read(example)
    named = zip(TEXTS[form], parts, strict=False)
    return {name: ids[:most] for name, ids in named if len(ids)}


def add_labels(rows: list[dict[str, Any]], batch: Batch, labels: Sequence[str]) -> None:
    """Add the labels of a batch of one sample: to its tokens, or to the first for a text."""
    assert batch.targets is not None and batch.weights is not None
    targets, weights = np.asarray(batch.targets)[0], np.asarray(batch.weights)[0].tolist()
    for row, target, weight in zip(rows, targets, weights, strict=False):
        if weight:
            row |= {"target": describe_target(target, labels), "weight": weight}


def describe_target(target: np.ndarray, labels: Sequence[str]) -> str:
    """Return a target as text: the name of a label, those of several, or numbers."""
    if target.ndim == 0:
        return labels[int(target)]
    if not np.isin(target, (0, 1)).all():
        numbers = zip(labels, target.tolist(), strict=True)
        return ", ".join(f"{name} {number:g}" for name, number in numbers)
    return ", ".join(name for name, is_on in zip(labels, target, strict=True) if is_on) or "none"
