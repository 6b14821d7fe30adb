"""Cut samples from a tokenised source, whether it holds running text or pairs."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jaxlm.objectives import Objective


class SampleArray(Protocol):
    """The tokens of a source: a `TokenArray` of running text, or a `PairArray`."""

    def __len__(self) -> int: ...

    def start_count(self, objective: Objective) -> int:
        """Return how many places there are, from 0 on, at which a sample can start."""
        ...

    def read_samples(self, starts: np.ndarray, objective: Objective) -> np.ndarray:
        """Return the samples that start at `starts` (int64 [n]); int32 [n, window]."""
        ...


def window_count(array: SampleArray, objective: Objective) -> int:
    """Return how many whole windows an array holds, the first at its beginning."""
    return (array.start_count(objective) - 1) // objective.stride + 1


def gather_samples(
    arrays: Sequence[SampleArray], sources: np.ndarray, starts: np.ndarray, objective: Objective
) -> np.ndarray:
    """Return the samples that start at `starts[i]` of `arrays[sources[i]]`; int32 [n, window]."""
    rows = np.empty((len(starts), objective.window), np.int32)
    for source in np.unique(sources):
        of_source = sources == source
        rows[of_source] = arrays[source].read_samples(starts[of_source], objective)
    return rows
