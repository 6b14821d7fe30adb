"""Evaluation: the loss over the same windows each time, and what follows from it."""

import math
from collections.abc import Callable
from typing import Protocol

import jax

from jaxlm.losses import LossSums
from jaxlm.types import Batch, Tree


class Windows(Protocol):
    """Batches by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


def evaluate(
    step: Callable[[Tree, Batch], LossSums],
    params: Tree,
    windows: Windows,
    batches: int | None,
    put: Callable[[Batch], Batch],
    in_flight: int,
) -> float:
    """Nats per target over the first `batches` of `windows`, or all; sums over batches are float64 on the host."""
    loss = count = 0.0
    pending: list[LossSums] = []
    total = min(len(windows), batches or len(windows))
    for index in range(total):
        pending.append(step(params, put(windows[index])))
        while len(pending) > (in_flight if index + 1 < total else 0):
            sums = jax.device_get(pending.pop(0))
            loss, count = loss + float(sums.loss), count + float(sums.count)
    return loss / max(count, 1.0)


def summary(loss: float, targets: int, text_bytes: int) -> dict[str, float]:
    """The metrics of a split with `targets` target tokens in `text_bytes` bytes of UTF-8 text, from its nats per target."""
    return {
        "eval/loss": loss,
        "eval/perplexity": math.exp(min(loss, 700.0)),  # beyond that no float64
        "eval/bits_per_byte": loss * targets / math.log(2) / text_bytes,
    }
