"""Mix sources by weight, with random access.

Both the source of a sample and the number of earlier samples from that source have a closed form.
The weights become whole numbers of slots in a period that repeats for ever. Within the period the
slots of each source are spread evenly, so any stretch of the run holds the sources nearly in
proportion.
"""

from collections.abc import Sequence

import numpy as np

from jaxlm.config import ConfigError

# Slots; the share of a source is exact to 1 / period. The first period in which each source gets a
# slot of its own accord holds.
PERIODS = (1 << 12, 1 << 22)


class Mixture:
    """Sources in proportion to positive weights. Every source has at least one slot."""

    def __init__(self, weights: Sequence[float]):
        """Take one weight per source. Raises ConfigError if one is too small a part of all."""
        self.slots = apportion_slots(weights)
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


def apportion_slots(weights: Sequence[float]) -> np.ndarray:
    """Divide the slots of a period among the sources by largest remainder; int64 [sources].

    Ties go to the earlier source. Raises ConfigError if a source would get no slot of the longest
    period.
    """
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    for period in PERIODS:
        quota = shares * period
        slots = np.floor(quota).astype(np.int64)
        by_remainder = np.argsort(slots - quota, kind="stable")
        slots[by_remainder[: period - slots.sum()]] += 1
        if slots.all():
            return slots

    smallest = int(np.argmin(shares))
    raise ConfigError(
        f"data.sources.{smallest}.weight",
        f"{weights[smallest]:g} is {shares[smallest]:.2g} of the sum of all weights, which is less "
        f"than 1 sample in {PERIODS[-1]:,}: raise it or leave the source out",
    )
