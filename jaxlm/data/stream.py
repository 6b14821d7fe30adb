"""The training data as a function of the step: `stream[t]` is the global batch of step t.

Sample n of a source with W windows is the window that the permutation of epoch n // W gives for
n % W. The objective decides how long windows are and how far apart they start. For causal language
modelling they take L + 1 tokens and start L apart, so that neighbours share one token and every
token but the first is a target. From the second epoch on a random phase shifts the windows, so
that epochs do not repeat the same cuts. In a source of pairs each pair is a window.
"""

import functools
from collections.abc import Sequence

import numpy as np

from jaxlm import counter_rng
from jaxlm.config import ConfigError
from jaxlm.data.mixture import MixtureStages
from jaxlm.data.permutation import permute
from jaxlm.data.samples import SampleArray, gather_samples, window_count
from jaxlm.data.schedule import BatchSchedule, MixtureSchedule
from jaxlm.objectives import Objective
from jaxlm.types import Batch

BLOCK = 1024  # samples that are located together
FIRST_SAMPLES = 64  # that are searched for targets
ENDLESS = 1 << 62  # steps; Grain wants a length


class Stream:
    """Random access to the batches of a run."""

    def __init__(
        self,
        arrays: Sequence[SampleArray],
        *,
        weights: Sequence[float],
        names: Sequence[str],
        objective: Objective,
        schedule: BatchSchedule,
        seed: int,
    ):
        """Take one array, weight and name per source.

        Raises `ConfigError` at `data.sequence_length` if a source holds no window.
        """
        for name, array in zip(names, arrays, strict=True):
            if not array.start_count(objective):
                raise ConfigError(
                    "data.sequence_length",
                    f"a window takes {objective.window:,} tokens, but the training split of "
                    f"source {name!r} has {len(array):,}",
                )

        self.arrays, self.objective = tuple(arrays), objective
        self.schedule, self.seed = schedule, seed
        self.set_mixture(MixtureSchedule(tuple(weights)))

    def set_mixture(self, mixture: MixtureSchedule) -> None:
        """Take the weights of the sources by step. No batch has been read yet."""
        self.mixture = MixtureStages(mixture, self.schedule)
        # Hashing a thousand samples costs hardly more than hashing ten, so the newest blocks are
        # kept.
        self.block = functools.lru_cache(maxsize=8)(self.locate_block)

    def epoch_samples(self, source: int) -> int:
        """Return how many samples an epoch of a source has."""
        return window_count(self.arrays[source], self.objective)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Batch:
        """Return the global batch of step `index`, [B, ...]."""
        return self.rows(index, 0, self.size(index))

    def size(self, index: int) -> int:
        """Return the number of rows in the batch of step `index`."""
        return self.schedule.size(int(index))

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Return the rows [start, stop) of the global batch of `step`."""
        samples = self.schedule.first_sample(int(step)) + np.arange(start, stop, dtype=np.int64)
        return self.objective.make_batch(self.read_windows(samples), samples, self.seed)

    def has_targets(self) -> bool:
        """Return whether one of the first samples has a token to predict."""
        samples = np.arange(FIRST_SAMPLES, dtype=np.int64)
        batch = self.objective.make_batch(self.read_windows(samples), samples, self.seed)
        return batch.weights is None or bool(np.any(batch.weights))

    def read_windows(self, samples: np.ndarray) -> np.ndarray:
        """Return the tokens of consecutive samples (int64 [n]); int32 [n, window]."""
        first, last = samples[0] // BLOCK, samples[-1] // BLOCK
        blocks = [self.block(number) for number in range(int(first), int(last) + 1)]
        sources, starts = np.concatenate(blocks, axis=1)[:, samples - first * BLOCK]
        return gather_samples(self.arrays, sources, starts, self.objective)

    def locate_block(self, block: int) -> np.ndarray:
        """Return the source of each sample of a block and the start of its window.

        The start counts tokens (pairs in a source of pairs); int64 [2, BLOCK].
        """
        sources, numbers = self.mixture(block * BLOCK + np.arange(BLOCK, dtype=np.int64))
        starts = np.empty_like(numbers)
        for source in range(len(self.arrays)):
            of_source = sources == source
            starts[of_source] = self.window_starts(source, numbers[of_source])
        return np.stack([sources, starts])

    def window_starts(self, source: int, numbers: np.ndarray) -> np.ndarray:
        """Return where the samples `numbers` (int64 [n]) of a source start; int64 [n]."""
        array, stride = self.arrays[source], self.objective.stride
        count = self.epoch_samples(source)
        epochs, index = np.divmod(numbers, count)

        stream = counter_rng.PHASE + source
        phases = counter_rng.random_bits(self.seed, epochs, stream, 0) % np.uint64(stride)
        phases = np.where(epochs, phases.astype(np.int64), 0)

        starts = permute(index, count, self.seed, source, epochs) * stride + phases
        return np.minimum(starts, array.start_count(self.objective) - 1)
