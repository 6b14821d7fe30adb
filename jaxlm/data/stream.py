"""The training data as a function of the step: `stream[t]` is the global batch of step t.

Sample n of a source with W windows is the window that the permutation of epoch n // W gives for
n % W. The objective decides how long windows are and how far apart they start. For causal language
modelling they take L + 1 tokens and start L apart, so that neighbours share one token and every
token but the first is a target. From the second epoch on a random phase shifts the windows, so
that epochs do not repeat the same cuts. In a source of pairs each pair is a window.

Rows of whole documents (`data.sequences`) take the place of windows where they are asked for: they
stay the same in all epochs, in another order.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from jaxlm import counter_rng, objectives
from jaxlm.config import ConfigError, DataConfig
from jaxlm.data.mixture import MixtureStages
from jaxlm.data.mixture_plan import SourceSize
from jaxlm.data.packing import RowArray, open_rows, read_pieces
from jaxlm.data.permutation import permute
from jaxlm.data.samples import SampleArray, gather_samples, window_count
from jaxlm.data.schedule import BatchSchedule, MixtureSchedule
from jaxlm.data.shards import TokenArray
from jaxlm.data.store import Store
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
        sequences: str = "windows",
        log: Callable[[str], None] = lambda line: None,
    ):
        """Take one array, weight and name per source.

        `sequences` is `data.sequences`. `log` is told the number of rows, and where a packing can't
        be kept in a file.
        Raises `ConfigError` at `data.sequence_length` if a source holds no window, at
        `data.sequences` if the objective has no rows of documents.
        """
        self.packed = objectives.packed_rows(objective, sequences)
        self.row_arrays: list[RowArray] = []
        for name, array in zip(names, arrays, strict=True):
            if self.packed is not None:
                assert isinstance(array, TokenArray), "an objective of pairs has no packed rows"
                rows = open_rows(array, self.packed, shares_rows=sequences == "packed", log=log)
                if not len(rows):
                    reason = f"the training split of source {name!r} has no document to learn from"
                    raise ConfigError("data.sequences", reason)
                self.row_arrays.append(rows)
                log(f"source {name!r}: {rows.describe()}")
            elif not array.start_count(objective):
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
        if self.packed is not None:
            return len(self.row_arrays[source])
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
        return self.make_batch(samples)

    def has_targets(self) -> bool:
        """Return whether one of the first samples has a token to predict."""
        samples = np.arange(FIRST_SAMPLES, dtype=np.int64)
        batch = self.make_batch(samples)
        return batch.weights is None or bool(np.any(batch.weights))

    def make_batch(self, samples: np.ndarray) -> Batch:
        """Return the batch of consecutive samples (int64 [n])."""
        if self.packed is None:
            return self.objective.make_batch(self.read_windows(samples), samples, self.seed)
        sources, numbers = self.locate(samples)
        pieces = read_pieces(self.row_arrays, sources, numbers)
        return self.packed.make_batch(pieces, samples, self.seed)

    def read_windows(self, samples: np.ndarray) -> np.ndarray:
        """Return the tokens of consecutive samples (int64 [n]); int32 [n, window]."""
        sources, starts = self.locate(samples)
        return gather_samples(self.arrays, sources, starts, self.objective)

    def locate(self, samples: np.ndarray) -> np.ndarray:
        """Return the source of consecutive samples (int64 [n]) and their start; int64 [2, n]."""
        first, last = samples[0] // BLOCK, samples[-1] // BLOCK
        blocks = [self.block(number) for number in range(int(first), int(last) + 1)]
        return np.concatenate(blocks, axis=1)[:, samples - first * BLOCK]

    def locate_block(self, block: int) -> np.ndarray:
        """Return the source of each sample of a block and the start of its window.

        The start counts tokens (pairs in a source of pairs, rows of documents where these are the
        samples); int64 [2, BLOCK].
        """
        sources, numbers = self.mixture(block * BLOCK + np.arange(BLOCK, dtype=np.int64))
        starts = np.empty_like(numbers)
        for source in range(len(self.arrays)):
            of_source = sources == source
            starts[of_source] = self.window_starts(source, numbers[of_source])
        return np.stack([sources, starts])

    def window_starts(self, source: int, numbers: np.ndarray) -> np.ndarray:
        """Return where the samples `numbers` (int64 [n]) of a source start; int64 [n]."""
        count = self.epoch_samples(source)
        epochs, index = np.divmod(numbers, count)
        if self.packed is not None:
            return permute(index, count, self.seed, source, epochs)

        array, stride = self.arrays[source], self.objective.stride

        stream = counter_rng.PHASE + source
        phases = counter_rng.random_bits(self.seed, epochs, stream, 0) % np.uint64(stride)
        phases = np.where(epochs, phases.astype(np.int64), 0)

        starts = permute(index, count, self.seed, source, epochs) * stride + phases
        return np.minimum(starts, array.start_count(self.objective) - 1)


def open_stream(
    store: Store,
    data: DataConfig,
    objective: Objective,
    schedule: BatchSchedule,
    seed: int,
    log: Callable[[str], None] = lambda line: None,
) -> Stream:
    """Return the training data of a store: the sources of `data`, mixed by their weights."""
    return Stream(
        store.train,
        weights=data.weights,
        names=[source.name for source in data.sources],
        objective=objective,
        schedule=schedule,
        seed=seed,
        sequences=data.sequences,
        log=log,
    )


def source_sizes(stream: Stream, store: Store, data: DataConfig) -> list[SourceSize]:
    """Return the tokens of each source, and the samples of an epoch."""
    entries = store.manifest["splits"]["train"]
    return [
        SourceSize(source.name, entry["tokens"], stream.epoch_samples(number))
        for number, (source, entry) in enumerate(zip(data.sources, entries, strict=True))
    ]
