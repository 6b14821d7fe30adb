"""Number the samples of a run: step t covers [S(t), S(t + 1)), and S has a closed form."""

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
