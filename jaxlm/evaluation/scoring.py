"""Evaluation: the loss over the same windows each time, and what follows from it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxlm.losses import LossSums
from jaxlm.types import Batch, Batches, Tree


class Score(NamedTuple):
    """Over all targets that were scored."""

    loss: float  # nats per target
    accuracy: float  # share of the targets with the highest score
    targets: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))  # beyond that no float64


def evaluate(
    step: Callable[[Tree, Batch], LossSums],
    params: Tree,
    windows: Batches,
    batches: int | None,
    put: Callable[[Batch], Batch],
    in_flight: int,
) -> Score:
    """The score of the first `batches` of `windows`, or all; sums over batches are float64 on the host."""
    loss = correct = count = 0.0
    pending: list[LossSums] = []
    total = min(len(windows), batches or len(windows))
    for index in range(total):
        pending.append(step(params, put(windows[index])))
        while len(pending) > (in_flight if index + 1 < total else 0):
            sums = jax.device_get(pending.pop(0))
            loss, correct, count = (
                loss + float(sums.loss),
                correct + float(sums.correct),
                count + float(sums.count),
            )
    return Score(loss / max(count, 1.0), correct / max(count, 1.0), int(count))


def bits_per_byte(loss: float, targets: int, text_bytes: int) -> float:
    """Of a text with `targets` target tokens in `text_bytes` bytes of UTF-8, from its nats per target."""
    return loss * targets / math.log(2) / text_bytes
