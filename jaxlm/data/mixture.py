"""Mix sources by weight, with random access.

Both the source of a sample and the number of earlier samples from that source have a closed form.
The weights become whole numbers of slots in a period that repeats for ever. Within the period the
slots of each source are spread evenly, so any stretch of the run holds the sources nearly in
proportion.
"""

from collections.abc import Sequence

import numpy as np

PERIOD = 4096  # slots; the share of a source is exact to 1 / PERIOD


class Mixture:
    """Sources in proportion to positive weights. Every source has at least one slot."""

    def __init__(self, weights: Sequence[float]):
        """`weights` has one number per source, for at most PERIOD sources."""
        self.slots = apportion_slots(weights)

        # The j-th of a source's c slots belongs at (j + 1/2) / c of the period. The stable sort
        # gives ties to the earlier source.
        places = np.concatenate([(np.arange(count) + 0.5) / count for count in self.slots])
        sources = np.repeat(np.arange(len(self.slots)), self.slots)
        self.pattern = sources[np.argsort(places, kind="stable")]

        chosen = self.pattern[:, None] == np.arange(len(self.slots))
        self.before = np.cumsum(chosen, axis=0) - chosen  # [PERIOD, sources]

    def __call__(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map sample numbers (int64 [n]) to sources and numbers within the source (int64 [n])."""
        if len(self.slots) == 1:
            return np.zeros_like(samples), samples

        periods, slot = np.divmod(samples, PERIOD)
        source = self.pattern[slot]
        return source, periods * self.slots[source] + self.before[slot, source]


def apportion_slots(weights: Sequence[float]) -> np.ndarray:
    """Divide PERIOD slots among the sources by largest remainder; int64 [sources].

    Ties go to the earlier source. A source that would get no slot takes one from the largest.
    """
    quota = np.asarray(weights, np.float64) / np.sum(weights) * PERIOD
    slots = np.floor(quota).astype(np.int64)
    by_remainder = np.argsort(slots - quota, kind="stable")
    slots[by_remainder[: PERIOD - slots.sum()]] += 1

    for source in np.flatnonzero(slots == 0):
        slots[np.argmax(slots)] -= 1
        slots[source] = 1
    return slots
