"""How samples are cut from arrays on disk, whether these hold running text or pairs."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jaxlm.objectives import Objective


class Samples(Protocol):
    """What a source's samples are read from: a `TokenArray` of running text, or a `PairArray`."""

    def __len__(self) -> int: ...

    def places(self, objective: Objective) -> int:
        """A sample can begin at 0, ..., places - 1."""
        ...

    def read(self, starts: np.ndarray, objective: Objective) -> np.ndarray:
        """int32 [n, window]: the samples that begin at `starts` (int64 [n])."""
        ...


def window_count(array: Samples, objective: Objective) -> int:
    """Whole windows of an array, the first at its beginning."""
    return (array.places(objective) - 1) // objective.stride + 1


def read(
    arrays: Sequence[Samples], which: np.ndarray, starts: np.ndarray, objective: Objective
) -> np.ndarray:
    """int32 [n, window]: row i is the sample of `arrays[which[i]]` that begins at `starts[i]`."""
    rows = np.empty((len(starts), objective.window), np.int32)
    for source in np.unique(which):
        mine = which == source
        rows[mine] = arrays[source].read(starts[mine], objective)
    return rows
