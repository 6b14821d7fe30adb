"""Batches in the order of their steps, read ahead by threads."""

from collections.abc import Iterator
from typing import Protocol

import grain

from jaxlm.types import Batch


class Steps(Protocol):
    """Batches by step: a `Stream`, or a view of one such as the rows of a process."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


def batches(stream: Steps, first_step: int, last_step: int, threads: int, buffer: int) -> Iterator[Batch]:
    """`stream[first_step]`, ..., `stream[last_step - 1]`, at most `buffer` of them ahead, made by `threads` threads."""
    steps = grain.MapDataset.source(stream)[first_step:last_step]
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)))
