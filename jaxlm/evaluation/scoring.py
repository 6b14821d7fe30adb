"""The loss of a model over batches, and the figures that follow from it."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jaxlm.losses import DetectionSums, LossSums, RewardSums
from jaxlm.types import Batch, Batches, Tree


class Score(NamedTuple):
    """Means over all targets that were scored."""

    loss: float  # nats per target
    accuracy: float  # share of the targets with the highest score
    targets: int
    detection: DetectionSums | None = None  # sums, on the host
    rewards: RewardSums | None = None  # the same, of pairs of answers

    @property
    def perplexity(self) -> float:
        """Return exp(loss), at most the largest that a float64 holds."""
        return math.exp(min(self.loss, 700.0))


def combine(scores: Sequence[Score]) -> Score:
    """Return the means over the targets of several scores together."""
    if len(scores) == 1:
        return scores[0]
    targets = sum(score.targets for score in scores)
    loss = sum(score.loss * score.targets for score in scores)
    correct = sum(score.accuracy * score.targets for score in scores)
    detections = [score.detection for score in scores if score.detection is not None]
    detection = add_detections(detections) if detections else None
    rewards = add_rewards([score.rewards for score in scores if score.rewards is not None])
    return Score(loss / max(targets, 1), correct / max(targets, 1), targets, detection, rewards)


def add_rewards(sums: Sequence[RewardSums]) -> RewardSums | None:
    """Return the sums over all pairs, float64; None where there are none."""
    if not sums:
        return None
    return RewardSums(*(sum(map(float, column)) for column in zip(*sums, strict=True)))


def add_detections(sums: Sequence[DetectionSums]) -> DetectionSums:
    """Return the sums over all tokens, float64."""
    return DetectionSums(*(sum(map(float, column)) for column in zip(*sums, strict=True)))


def detection_means(sums: DetectionSums) -> dict[str, float]:
    """Return the figures of replaced-token detection by name, per token that was judged."""
    count = max(sums.count, 1)
    return {
        "detection_loss": sums.loss / count,
        "detection_accuracy": sums.correct / count,
        "replaced_share": sums.replaced / count,
    }


def fetch_results(
    step: Callable[[Tree, Batch], Any],
    params: Tree,
    windows: Batches,
    batches: int | None,
    put: Callable[[Batch], Batch],
    in_flight: int,
) -> Iterator[Any]:
    """Yield the results of a step, on the host, for the first `batches` of `windows`, or for all.

    `put` places a batch on the devices. Up to `in_flight` steps run while the host prepares the
    next batch.
    """
    pending: list[Any] = []
    count = min(len(windows), batches or len(windows))
    for index in range(count):
        pending.append(step(params, put(windows[index])))
        last = index + 1 == count
        while len(pending) > (0 if last else in_flight):
            # Sync: the results of the oldest unread step.
            yield jax.device_get(pending.pop(0))


def evaluate(
    step: Callable[[Tree, Batch], LossSums],
    params: Tree,
    windows: Batches,
    batches: int | None,
    put: Callable[[Batch], Batch],
    in_flight: int,
) -> Score:
    """Return the score of the first `batches` of `windows`, or of all of them.

    Batches are placed and steps kept running as in `fetch_results`. Sums over batches are float64,
    on the host.
    """
    loss = correct = targets = 0.0
    detections: list[DetectionSums] = []
    rewards: list[RewardSums] = []
    for sums in fetch_results(step, params, windows, batches, put, in_flight):
        loss += float(sums.loss)
        correct += float(sums.correct)
        targets += float(sums.count)
        if sums.detection is not None:
            detections.append(sums.detection)
        if sums.rewards is not None:
            rewards.append(sums.rewards)

    detection, divisor = add_detections(detections) if detections else None, max(targets, 1.0)
    return Score(loss / divisor, correct / divisor, int(targets), detection, add_rewards(rewards))


def bits_per_byte(loss: float, targets: int, text_bytes: int) -> float:
    """Return the bits that a model needs for each byte of a text.

    The text is `text_bytes` of UTF-8 and has `targets` target tokens of `loss` nats on average.
    """
    return loss * targets / math.log(2) / text_bytes
