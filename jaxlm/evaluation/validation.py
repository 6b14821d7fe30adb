"""The windows of an evaluation, and what the frequencies of their targets alone would score."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxlm.config.errors import ConfigError
from jaxlm.data.samples import SampleArray, gather_samples, window_count
from jaxlm.objectives import Objective
from jaxlm.types import Batch, Batches


class EvaluationWindows:
    """A list of batches of `batch_size` samples over each array in turn, the same each time. All batches have the same shape.

    Where neighbouring windows share a token and every other one is a target (causal), each is one exactly once: the last window
    of an array is padded. An objective that hides text at random sees whole windows only, each `draws` times and hidden anew; the
    choices depend on `seed` and on the number of window and draw alone. Pairs are seen once. The last batch is filled up with
    samples of weight 0.
    """

    def __init__(
        self,
        arrays: Sequence[SampleArray],
        objective: Objective,
        batch_size: int,
        draws: int,
        seed: int,
    ):
        """`ConfigError` at `data.sequence_length` if whole windows are needed and no array holds one."""
        self.arrays, self.objective, self.batch_size, self.seed = (
            tuple(arrays),
            objective,
            batch_size,
            seed,
        )
        self.pads = not objective.random and objective.window == objective.stride + 1
        self.draws = draws if objective.random else 1
        counts = [
            -(-max(len(array) - 1, 0) // objective.stride)
            if self.pads
            else window_count(array, objective)
            for array in arrays
        ]
        self.ends = np.cumsum(counts, dtype=np.int64)  # windows up to and including each array
        self.windows = sum(counts)
        if not self.windows and not self.pads:
            longest = max(map(len, arrays), default=0)
            reason = f"a window takes {objective.window:,} tokens, but the validation split has at most {longest:,} in a row"
            raise ConfigError("data.sequence_length", reason)

    def __len__(self) -> int:
        return -(-self.draws * self.windows // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        """Batch `index`, [batch_size, ...]."""
        return self.rows(index, 0, self.batch_size)

    def size(self, index: int) -> int:
        """Rows of batch `index`."""
        return self.batch_size

    def rows(self, index: int, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of batch `index`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * self.batch_size
        numbers = first + np.arange(start, stop)
        inside = numbers < self.draws * self.windows
        numbers = np.where(inside, numbers, first)
        rows, lengths = self.read(numbers % self.windows)
        batch = self.objective.make_batch(rows, numbers, self.seed)
        weights = np.asarray(batch.weights) * inside[:, None]
        if self.pads:
            weights *= np.arange(1, self.objective.window) < lengths[:, None]
        return batch._replace(weights=weights)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    def read(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows by number (int64 [n]): int32 [n, window], and how many tokens are left from the beginning of each, int64 [n]."""
        which = np.searchsorted(self.ends, numbers, side="right")
        starts = (numbers - np.concatenate([[0], self.ends])[which]) * self.objective.stride
        left = np.array([len(array) for array in self.arrays])[which] - starts
        return gather_samples(self.arrays, which, starts, self.objective), left


def unigram_entropy(windows: Batches, batches: int | None) -> tuple[float, int]:
    """What a model that knew only the targets' frequencies would score on the first `batches` of `windows`, or all of them.

    The entropy of the empirical distribution of the targets, in nats, and their number. Targets of weight 0 don't count.
    """
    counts = np.zeros(0, np.int64)
    for index in range(min(len(windows), batches or len(windows))):
        batch = windows[index]
        found = np.bincount(
            np.asarray(batch.targets)[np.asarray(batch.weights) > 0], minlength=len(counts)
        )
        found[: len(counts)] += counts
        counts = found
    counts, total = counts[counts > 0], int(counts.sum())
    if not total:
        return 0.0, 0
    return float(np.log(total) - (counts * np.log(counts)).sum() / total), total
