"""Number the samples of a run: step t covers [S(t), S(t + 1)), and S has a closed form.

The weights of the sources go by steps, too.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class BatchSchedule(NamedTuple):
    """The global batch size of each step.

    A step has `batch_size` sequences, and from step `changes[i][0]` on `changes[i][1]`. The steps
    of `changes` increase, and the first is above 0.
    """

    batch_size: int
    changes: tuple[tuple[int, int], ...] = ()

    def size(self, step: int) -> int:
        """Return the number of sequences in the global batch of `step`."""
        for start, size in reversed(self.changes):
            if start <= step:
                return size
        return self.batch_size

    def first_sample(self, step: int) -> int:
        """Return S(step), the number of samples before `step`. Python integers keep it exact."""
        samples, size, since = 0, self.batch_size, 0
        for start, next_size in self.changes:
            if start >= step:
                break
            samples += (start - since) * size
            size, since = next_size, start
        return samples + (step - since) * size

    def sizes(self, step: int) -> list[int]:
        """Return the different batch sizes from `step` on, ascending."""
        return sorted({self.size(step), *(size for start, size in self.changes if start > step)})

    def merged(self, other: "BatchSchedule", step: int) -> "BatchSchedule":
        """Return this schedule before `step` and `other` from `step` on.

        A resumed run whose batch size was changed follows such a schedule.
        """
        before = [change for change in ((0, self.batch_size), *self.changes) if change[0] < step]
        after = [change for change in other.changes if change[0] > step]
        (_, batch_size), *rest = [*before, (step, other.size(step)), *after]

        # Steps at which the size stays the same are left out.
        changes, size = [], batch_size
        for start, next_size in rest:
            if next_size != size:
                changes.append((start, next_size))
                size = next_size
        return BatchSchedule(batch_size, tuple(changes))


class MixtureSchedule(NamedTuple):
    """The weights of the sources at each step.

    A source has its weight in `weights`, and from step `changes[i][0]` on that in `changes[i][1]`.
    The steps of `changes` increase, and the first may be 0.
    """

    weights: tuple[float, ...]
    changes: tuple[tuple[int, tuple[float, ...]], ...] = ()

    def at(self, step: int) -> tuple[float, ...]:
        """Return the weights of `step`."""
        for start, weights in reversed(self.changes):
            if start <= step:
                return weights
        return self.weights

    @property
    def begins_with_change(self) -> bool:
        """Return whether no step has the `weights` of the sources themselves."""
        return bool(self.changes) and self.changes[0][0] == 0

    def merged(self, other: "MixtureSchedule", step: int) -> "MixtureSchedule":
        """Return this schedule before `step` and `other` from `step` on.

        A change before `step` stays even if it changes nothing: the places of the samples in the
        mixture count from it.
        """
        following = tuple(change for change in other.changes if change[0] > step)
        if not same_shares(self.at(step), other.at(step)):
            before = tuple(change for change in self.changes if change[0] < step)
            return self._replace(changes=(*before, (step, other.at(step)), *following))

        before = tuple(change for change in self.changes if change[0] <= step)
        return self._replace(changes=(*before, *following))


def same_shares(weights: Sequence[float], others: Sequence[float]) -> bool:
    """Return whether two lists of weights give the sources the same shares."""
    total, other_total = sum(weights), sum(others)
    return all(
        math.isclose(weight / total, other / other_total, rel_tol=1e-12)
        for weight, other in zip(weights, others, strict=True)
    )
