"""Mix sources by weight, with random access.

Both the source of a sample and the number of earlier samples from that source have a closed form.
The weights become whole numbers of slots in a period that repeats for ever. Within the period the
slots of each source are spread evenly, so any stretch of the run holds the sources nearly in
proportion. Where the weights change another period begins, and each source goes on with its next
sample.
"""

import bisect
import itertools
from collections.abc import Sequence

import numpy as np

from jaxlm.config import ConfigError
from jaxlm.data.schedule import BatchSchedule, MixtureSchedule

# Slots; the share of a source is exact to 1 / period. The first period in which each source gets a
# slot of its own accord holds.
PERIODS = (1 << 12, 1 << 22)
# The same for a stage of `data.mixture_schedule`: the first period in which the share of each
# source is exact to 0.1% of itself holds, else the last. Samples of the weights of the sources
# themselves can't change any more.
STAGE_PERIODS = (1 << 12, 1 << 17, 1 << 22)
STAGE_ERROR = 1e-3
LAST_SAMPLE = (1 << 63) - 1  # of int64


class Mixture:
    """Sources in proportion to weights. Every source with a weight has at least one slot."""

    def __init__(self, weights: Sequence[float], stage: int | None = None):
        """Take one weight per source; `stage` is the first step of a stage of the schedule.

        Raises ConfigError if one is too small a part of all.
        """
        self.slots = apportion_slots(weights, stage)
        self.period = int(self.slots.sum())

        # The j-th of a source's c slots belongs at (j + 1/2) / c of the period. The stable sort
        # gives ties to the earlier source.
        places = np.concatenate([(np.arange(count) + 0.5) / count for count in self.slots])
        order = np.argsort(places, kind="stable")
        self.pattern = np.repeat(np.arange(len(self.slots)), self.slots)[order]
        # How many slots of its own source come before each slot.
        self.before = np.concatenate([np.arange(count) for count in self.slots])[order]

    def __call__(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map sample numbers (int64 [n]) to sources and numbers within the source (int64 [n])."""
        if len(self.slots) == 1:
            return np.zeros_like(samples), samples

        periods, slot = np.divmod(samples, self.period)
        source = self.pattern[slot]
        return source, periods * self.slots[source] + self.before[slot]

    def count_samples(self, samples: int) -> list[int]:
        """Return how many of the first `samples` come from each source. Any integer is exact."""
        periods, slot = divmod(samples, self.period)
        chosen = np.bincount(self.pattern[:slot], minlength=len(self.slots))
        counts = zip(self.slots.tolist(), chosen.tolist(), strict=True)
        return [periods * slots + before for slots, before in counts]


class MixtureStages:
    """The mixture of each stage of a run, from the first sample of the stage on."""

    def __init__(self, schedule: MixtureSchedule, batches: BatchSchedule):
        """Take the weights by step. Raises ConfigError if one is too small a part of all."""
        self.schedule = schedule
        self.mixtures = [Mixture(weights, step) for step, weights in schedule.changes]
        steps = [step for step, _ in schedule.changes]
        if not schedule.begins_with_change:
            self.mixtures.insert(0, Mixture(schedule.weights))
            steps.insert(0, 0)

        self.starts = [batches.first_sample(step) for step in steps]
        self.before = [[0] * len(schedule.weights)]  # samples of each source before each stage
        for stage, (start, end) in enumerate(itertools.pairwise(self.starts)):
            added = self.mixtures[stage].count_samples(end - start)
            self.before.append([sum(pair) for pair in zip(self.before[-1], added, strict=True)])

    def __call__(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map sample numbers (int64 [n]) to sources and numbers within the source (int64 [n])."""
        if len(self.mixtures) == 1:
            return self.mixtures[0](samples)

        starts = np.array([min(start, LAST_SAMPLE) for start in self.starts], np.int64)
        stages = np.searchsorted(starts, samples, side="right") - 1
        sources, numbers = np.empty_like(samples), np.empty_like(samples)
        for stage in np.unique(stages).tolist():
            chosen = stages == stage
            source, number = self.mixtures[stage](samples[chosen] - starts[stage])
            sources[chosen] = source
            numbers[chosen] = number + np.array(self.before[stage], np.int64)[source]
        return sources, numbers

    def count_samples(self, samples: int) -> list[int]:
        """Return how many of the first `samples` come from each source. Any integer is exact."""
        stage = max(bisect.bisect_right(self.starts, samples) - 1, 0)
        added = self.mixtures[stage].count_samples(samples - self.starts[stage])
        return [sum(pair) for pair in zip(self.before[stage], added, strict=True)]

    def shares(self, samples: int) -> list[float]:
        """Return each source's share of the first `samples`, exact within the first stage."""
        first = self.mixtures[0]
        if len(self.mixtures) == 1 or samples <= self.starts[1]:
            return [slots / first.period for slots in first.slots.tolist()]
        return [count / samples for count in self.count_samples(samples)]


def apportion_slots(weights: Sequence[float], stage: int | None = None) -> np.ndarray:
    """Divide the slots of a period among the sources by largest remainder; int64 [sources].

    Ties go to the earlier source, and a source of weight 0 gets none. `stage` is the first step of
    a stage of the schedule, None for the weights of the sources. Raises ConfigError if a source
    with a weight would get no slot of the longest period.
    """
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    # Weights so small that their share is 0 in float64 are still weights.
    wanted = np.asarray(weights) > 0
    periods = PERIODS if stage is None else STAGE_PERIODS
    for period in periods:
        quota = shares * period
        slots = np.floor(quota).astype(np.int64)
        by_remainder = np.argsort(slots - quota, kind="stable")
        slots[by_remainder[: period - slots.sum()]] += 1

        exact = stage is None or np.all(np.abs(slots - quota) <= STAGE_ERROR * quota)
        if slots[wanted].all() and (exact or period == periods[-1]):
            return slots

    smallest = int(np.flatnonzero(wanted)[np.argmin(shares[wanted])])
    key, place = f"data.sources.{smallest}.weight", ""
    if stage is not None:
        key, place = "data.mixture_schedule", f"step {stage}: "
    raise ConfigError(
        key,
        f"{place}{weights[smallest]:g} is {shares[smallest]:.2g} of the sum of all weights, which "
        f"is less than 1 sample in {periods[-1]:,}: raise it or leave the source out",
    )
