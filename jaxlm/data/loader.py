"""Batches in the order of their steps, read ahead by threads, and the rows of them that one process reads."""

from collections.abc import Callable, Iterator
from typing import Protocol

import grain

from jaxlm.types import Batch, Batches


class Divisible(Protocol):
    """Batches that can be made in parts: a `Stream`, `EvaluationWindows`."""

    def __len__(self) -> int: ...

    def size(self, index: int, /) -> int: ...

    def rows(self, index: int, start: int, stop: int, /) -> Batch: ...


class Share:
    """The rows of each batch that one process reads; `rows_of` gives the first and the end of them by the size of a batch."""

    def __init__(self, whole: Divisible, rows_of: Callable[[int], tuple[int, int]]):
        self.whole, self.rows_of = whole, rows_of

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> Batch:
        """The process's rows of batch `index`."""
        return self.whole.rows(index, *self.rows_of(self.whole.size(index)))


def batches(
    stream: Batches, first_step: int, last_step: int, threads: int, buffer: int
) -> Iterator[Batch]:
    """`stream[first_step]`, ..., `stream[last_step - 1]`, at most `buffer` of them ahead, made by `threads` threads."""
    steps = grain.MapDataset.source(stream)[first_step:last_step]
    return iter(
        steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer))
    )
