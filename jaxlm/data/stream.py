"""The training data as a function of the step: `stream[t]` is the global batch of step t, and nothing else decides it.

Sample n of a source is the window that the permutation of epoch n // W gives for n % W, out of its W windows. The objective says how
long windows are and how far apart they begin: for causal language modelling L + 1 tokens, L apart, so that neighbours share one
token and every token but the first is a target. From the second epoch on the windows are shifted by a random phase, so that
epochs don't repeat the same cuts. Of pairs, each is a window.
"""

import functools
from collections.abc import Sequence

import numpy as np

from jaxlm import counter_rng
from jaxlm.config.errors import ConfigError
from jaxlm.data.mixture import Mixture
from jaxlm.data.permutation import permute
from jaxlm.data.samples import Samples, read, window_count
from jaxlm.data.schedule import BatchSchedule
from jaxlm.objectives import Objective
from jaxlm.types import Batch

BLOCK = 1024  # samples whose places are computed together
ENDLESS = 1 << 62  # steps: Grain wants a length


class Stream:
    """Random access to the batches of a run."""

    def __init__(
        self,
        store_arrays: Sequence[Samples],
        weights: Sequence[float],
        names: Sequence[str],
        objective: Objective,
        schedule: BatchSchedule,
        seed: int,
    ):
        """One array, weight and name per source. `ConfigError` at `data.sequence_length` if a source holds no window."""
        for name, array in zip(names, store_arrays, strict=True):
            if not array.places(objective):
                reason = f"a window takes {objective.window:,} tokens, but the training split of source {name!r} has {len(array):,}"
                raise ConfigError("data.sequence_length", reason)
        self.arrays, self.objective = tuple(store_arrays), objective
        self.mixture, self.schedule = Mixture(weights), schedule
        self.seed = seed
        # Hashing a thousand samples costs hardly more than hashing ten: the places of the newest blocks are remembered.
        self.block = functools.lru_cache(maxsize=8)(self.places)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Batch:
        """The global batch of step `index`, [B, ...]."""
        return self.rows(index, 0, self.size(index))

    def size(self, index: int) -> int:
        """Rows of the batch of step `index`."""
        return self.schedule.size(int(index))

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of the global batch of `step`: what one process reads of it."""
        samples = self.schedule.first_sample(int(step)) + np.arange(start, stop, dtype=np.int64)
        return self.objective.make(self.windows(samples), samples, self.seed)

    def windows(self, samples: np.ndarray) -> np.ndarray:
        """int32 [n, window]: the tokens of consecutive samples (int64 [n])."""
        first, last = samples[0] // BLOCK, samples[-1] // BLOCK
        blocks = [self.block(number) for number in range(int(first), int(last) + 1)]
        sources, starts = np.concatenate(blocks, axis=1)[:, samples - first * BLOCK]
        return read(self.arrays, sources, starts, self.objective)

    def places(self, block: int) -> np.ndarray:
        """int64 [2, BLOCK]: the source of each sample of a block, and the token at which its window begins."""
        sources, counts = self.mixture(block * BLOCK + np.arange(BLOCK, dtype=np.int64))
        starts = np.empty_like(counts)
        for source in range(len(self.arrays)):
            mine = sources == source
            starts[mine] = self.starts(source, counts[mine])
        return np.stack([sources, starts])

    def starts(self, source: int, numbers: np.ndarray) -> np.ndarray:
        """int64 [n]: where the windows of a source's samples begin, by their number among its own."""
        places, stride = self.arrays[source].places(self.objective), self.objective.stride
        count = window_count(self.arrays[source], self.objective)
        epochs, index = np.divmod(numbers, count)
        phases = counter_rng.random_bits(
            self.seed, epochs, counter_rng.PHASE + source, 0
        ) % np.uint64(stride)
        starts = permute(index, count, self.seed, source, epochs) * stride + np.where(
            epochs, phases.astype(np.int64), 0
        )
        return np.minimum(starts, places - 1)
