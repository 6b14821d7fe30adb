"""The training data as a function of the step: `stream[t]` is the global batch of step t.

Sample n of a source with W windows is the window that the permutation of epoch n // W gives for
n % W. The objective decides how long windows are and how far apart they start. For causal language
modelling they take L + 1 tokens and start L apart, so that neighbours share one token and every
token but the first is a target. From the second epoch on a random phase shifts the windows, so
that epochs do not repeat the same cuts. In a source of pairs each pair is a window.

With `data.shuffle_block` the permutation stays within blocks of the text, which follow one another.
So a stream can be read while its store is built, with the same batches.

Rows of whole documents (`data.sequences`) take the place of windows where they are asked for: they
stay the same in all epochs, in another order.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxlm import counter_rng, objectives
from jaxlm.config import ConfigError, DataConfig
from jaxlm.data.example_array import ExampleArray
from jaxlm.data.example_rows import ExampleRows, make_rows
from jaxlm.data.growing import ALL_TOKENS, GrowingArray
from jaxlm.data.mixture import MixtureStages
from jaxlm.data.mixture_plan import SourceSize
from jaxlm.data.packing import RowArray, open_rows, read_pieces
from jaxlm.data.permutation import permute, permute_blocks
from jaxlm.data.samples import SampleArray, gather_samples, window_count
from jaxlm.data.schedule import BatchSchedule, MixtureSchedule
from jaxlm.data.shards import TokenArray
from jaxlm.data.store import Store, count_tokens
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
        shuffle_block: int | None = None,
        log: Callable[[str], None] = lambda line: None,
    ):
        """Take one array, weight and name per source.

        `sequences` and `shuffle_block` are those of `data`. `log` is told the number of rows, and
        where a packing can't be kept in a file.
        Raises `ConfigError` at `data.sequence_length` if a source holds no window, at
        `data.sequences` if the objective has no rows of documents.
        """
        self.packed = objectives.packed_rows(objective, sequences)
        self.row_arrays: list[RowArray] = []
        self.example_rows: list[ExampleRows] = []  # where examples share rows
        self.block_samples = shuffle_block and max(shuffle_block // objective.tokens, 1)
        for name, array in zip(names, arrays, strict=True):
            if isinstance(array, ExampleArray):
                self.open_examples(name, array, objective, sequences, log)
            elif self.packed is not None:
                assert isinstance(array, TokenArray), "an objective of pairs has no packed rows"
                rows = open_rows(array, self.packed, shares_rows=sequences == "packed", log=log)
                if not len(rows):
                    reason = f"the training split of source {name!r} has no document to learn from"
                    raise ConfigError("data.sequences", reason)
                self.row_arrays.append(rows)
                log(f"source {name!r}: {rows.describe()}")
            elif isinstance(array, GrowingArray) and not array.wait(objective.window):
                continue  # there is a window
            elif not array.start_count(objective):
                raise ConfigError(
                    "data.sequence_length",
                    f"a window takes {objective.window:,} tokens, but the training split of "
                    f"source {name!r} has {len(array):,}",
                )

        self.arrays, self.objective = tuple(arrays), objective
        self.growing_arrays = [
            (source, array)
            for source, array in enumerate(arrays)
            if isinstance(array, GrowingArray)
        ]
        self.schedule, self.seed = schedule, seed
        self.set_mixture(MixtureSchedule(tuple(weights)))

    def open_examples(
        self,
        name: str,
        array: ExampleArray,
        objective: Objective,
        sequences: str,
        log: Callable[[str], None],
    ) -> None:
        """Pack the examples of a source where they share rows, and report what is left out.

        Raises `ConfigError` where nothing is left.
        """
        if found := array.describe(objective):
            log(f"source {name!r}: {found}")
        if not array.start_count(objective):
            reason = f"no example of the training split of source {name!r} fits into a sample"
            raise ConfigError("data.sequence_length", reason)
        if sequences == "packed":
            self.example_rows.append(ExampleRows(array, objective))
            log(f"source {name!r}: {self.example_rows[-1].describe()}")

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
        if self.example_rows:
            return len(self.example_rows[source])
        return window_count(self.arrays[source], self.objective)

    def examples(self, source: int) -> int | None:
        """Return how many examples of a source are read; None for running text."""
        array = self.arrays[source]
        return array.start_count(self.objective) if isinstance(array, ExampleArray) else None

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

    def sample_examples(self, source: int, start: int) -> list[int]:
        """Return the numbers of the examples of a sample, among those that are kept."""
        if self.example_rows:
            return self.example_rows[source].row_examples(start).tolist()
        return [start]

    def make_batch(self, samples: np.ndarray) -> Batch:
        """Return the batch of consecutive samples (int64 [n])."""
        if self.example_rows:
            sources, rows = self.locate(samples)
            return make_rows(self.example_rows, sources, rows, self.objective)
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
        if not len(numbers):
            return numbers
        count = self.known_samples(source, int(numbers.max()))
        epochs, index = (
            (np.zeros_like(numbers), numbers) if count is None else np.divmod(numbers, count)
        )
        if self.block_samples is None:
            assert count is not None, "a store grows for samples in blocks alone"
            places = permute(index, count, self.seed, source, epochs)
        else:
            places = permute_blocks(index, count, self.block_samples, self.seed, source, epochs)
        if self.packed is not None or self.example_rows:
            return places

        array, stride = self.arrays[source], self.objective.stride
        stream = counter_rng.PHASE + source
        phases = counter_rng.random_bits(self.seed, epochs, stream, 0) % np.uint64(stride)
        phases = np.where(epochs, phases.astype(np.int64), 0)
        return np.minimum(places * stride + phases, array.start_count(self.objective) - 1)

    # While the store is built

    def known_samples(self, source: int, number: int) -> int | None:
        """Return the samples of an epoch of a source.

        None if they are not known yet, and the block of sample `number` is there: waits for that.
        """
        array = self.arrays[source]
        if isinstance(array, GrowingArray) and not array.wait(self.tokens_of_block(number)):
            return None
        return self.epoch_samples(source)

    def tokens_of_block(self, number: int) -> int:
        """Return how many tokens a source has at the end of the block of sample `number`.

        It is that of a first epoch.
        """
        assert self.block_samples is not None, "a store grows for samples in blocks alone"
        samples = (number // self.block_samples + 1) * self.block_samples
        return (samples - 1) * self.objective.stride + self.objective.window

    @property
    def is_growing(self) -> bool:
        """Whether tokens are still to come."""
        return not all(array.has(ALL_TOKENS) for _, array in self.growing_arrays)

    def is_ready(self, step: int) -> bool:
        """Return whether the tokens of the batch of `step` are there."""
        if not self.is_growing:
            return True
        # Samples are located by whole blocks.
        samples = -(-self.schedule.first_sample(step + 1) // BLOCK) * BLOCK
        last = self.mixture.count_samples(samples)
        return all(
            array.has(self.tokens_of_block(last[source] - 1))
            for source, array in self.growing_arrays
            if last[source]
        )


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
        shuffle_block=data.shuffle_block,
        log=log,
    )


def source_sizes(stream: Stream, store: Store, data: DataConfig) -> list[SourceSize]:
    """Return the tokens of each source, and the samples of an epoch.

    While the store is built they are estimated from its bytes.
    """
    if store.construction is not None:
        return [
            estimate_size(part, store.manifest["fertility"][source.name], stream.objective)
            for source, part in zip(data.sources, store.manifest["parts"], strict=True)
        ]
    entries = store.manifest["splits"]["train"]
    return [
        SourceSize(
            source.name, count_tokens(entry), stream.epoch_samples(number), stream.examples(number)
        )
        for number, (source, entry) in enumerate(zip(data.sources, entries, strict=True))
    ]


def estimate_size(
    part: dict[str, Any], fertility: dict[str, float], objective: Objective
) -> SourceSize:
    """Return the size of a source whose tokens are not all there, by its first texts."""
    text = part["bytes"] / max(fertility["bytes_per_token"], 1e-9)
    tokens = round(text) + part["documents"]
    return SourceSize(part["source"], tokens, max(tokens // objective.stride, 1))
