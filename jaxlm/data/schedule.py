"""Which samples a step covers: step t covers the samples [S(t), S(t + 1)), and S has a closed form."""

from typing import NamedTuple


class BatchSchedule(NamedTuple):
    """`batch_size` sequences per step, from step `changes[i][0]` on `changes[i][1]` (steps increasing, the first above 0)."""

    batch_size: int
    changes: tuple[tuple[int, int], ...] = ()

    def size(self, step: int) -> int:
        """Sequences in the global batch of `step`."""
        return next(
            (size for start, size in reversed(self.changes) if start <= step), self.batch_size
        )

    def first_sample(self, step: int) -> int:
        """S(step): the samples of all steps before it. Exact at any size (Python integers)."""
        total, size, since = 0, self.batch_size, 0
        for start, next_size in self.changes:
            if start >= step:
                break
            total += (start - since) * size
            size, since = next_size, start
        return total + (step - since) * size

    def sizes(self, step: int) -> list[int]:
        """The different batch sizes from `step` on."""
        return sorted({self.size(step), *(size for start, size in self.changes if start > step)})

    def merged(self, other: "BatchSchedule", step: int) -> "BatchSchedule":
        """This schedule before `step` and `other` from `step` on: a resumed run whose batch size was changed."""
        before = [change for change in ((0, self.batch_size), *self.changes) if change[0] < step]
        after = [
            (step, other.size(step)),
            *(change for change in other.changes if change[0] > step),
        ]
        (_, batch_size), *rest = before + after
        changes, size = [], batch_size
        for start, next_size in rest:
            if next_size != size:
                changes.append((start, next_size))
                size = next_size
        return BatchSchedule(batch_size, tuple(changes))
