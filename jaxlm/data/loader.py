"""Iterate over batches in the order of the steps: prefetched, and cut to the rows of a process."""

from collections.abc import Callable, Iterator
from typing import Protocol

import grain

from jaxlm.types import Batch, Batches


class GlobalBatches(Protocol):
    """Batches of which any rows can be made alone: a `Stream` or `EvaluationWindows`."""

    def __len__(self) -> int: ...

    def size(self, index: int, /) -> int: ...

    def rows(self, index: int, start: int, stop: int, /) -> Batch: ...


class LocalBatches:
    """The rows of each global batch that this process reads."""

    def __init__(self, global_batches: GlobalBatches, local_rows: Callable[[int], tuple[int, int]]):
        """`local_rows` maps the size of a global batch to the [start, stop) of the local rows."""
        self.global_batches, self.local_rows = global_batches, local_rows

    def __len__(self) -> int:
        return len(self.global_batches)

    def __getitem__(self, index: int) -> Batch:
        """Return the local rows of batch `index`."""
        start, stop = self.local_rows(self.global_batches.size(index))
        return self.global_batches.rows(index, start, stop)


def prefetch_batches(
    batches: Batches, first_step: int, last_step: int, *, threads: int, buffer: int
) -> Iterator[Batch]:
    """Yield `batches[first_step]`, ..., `batches[last_step - 1]`, made ahead by `threads` threads.

    At most `buffer` batches wait to be read.
    """
    steps = grain.MapDataset.source(batches)[first_step:last_step]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    return iter(steps.to_iter_dataset(options))
