"""Which source a sample comes from, and how many samples of that source came before it: both in closed form.

The weights become whole numbers of slots in a period that repeats for ever. Within the period the slots of each source are
spread evenly, so that any stretch of the run holds the sources nearly in proportion.
"""

from collections.abc import Sequence

import numpy as np

PERIOD = 4096  # slots; the share of a source is exact to 1 / PERIOD


class Mixture:
    """Sources in proportion to `weights` (positive, at most PERIOD of them). Every source gets at least one slot."""

    def __init__(self, weights: Sequence[float]):
        slots = apportion(weights)
        # The j-th of a source's c slots belongs at (j + 1/2) / c of the period; ties go to the earlier source.
        places = np.concatenate([(np.arange(count) + 0.5) / count for count in slots])
        self.slots = slots
        self.pattern = np.repeat(np.arange(len(slots)), slots)[np.argsort(places, kind="stable")]
        chosen = self.pattern[:, None] == np.arange(len(slots))
        self.before = np.cumsum(chosen, axis=0) - chosen  # [PERIOD, sources]

    def __call__(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 [n] sample numbers -> (source of each, samples of that source before it), both int64 [n]."""
        if len(self.slots) == 1:
            return np.zeros_like(samples), samples
        periods, slot = np.divmod(samples, PERIOD)
        source = self.pattern[slot]
        return source, periods * self.slots[source] + self.before[slot, source]


def apportion(weights: Sequence[float]) -> np.ndarray:
    """PERIOD slots by largest remainder (ties to the earlier source); a source that would get none takes one of the largest's."""
    quota = np.asarray(weights, np.float64) / np.sum(weights) * PERIOD
    slots = np.floor(quota).astype(np.int64)
    by_remainder = np.argsort(slots - quota, kind="stable")
    slots[by_remainder[: PERIOD - slots.sum()]] += 1
    for source in np.flatnonzero(slots == 0):
        slots[np.argmax(slots)] -= 1
        slots[source] = 1
    return slots
