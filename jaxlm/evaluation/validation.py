"""The windows of the validation split: the same each time, and the size of their text."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxlm.config import Config
from jaxlm.config.errors import ConfigError
from jaxlm.data import Store, Tokenizer
from jaxlm.data.samples import SampleArray, gather_samples, window_count
from jaxlm.data.tokenizer import keeps_bytes
from jaxlm.objectives import Objective
from jaxlm.types import Batch, Batches

# Without evaluation.steps the windows of an evaluation are bounded: by tokens that are always
# allowed, or by a share of the time of the steps between two evaluations, whichever is more.
ALLOWED_TOKENS = 1 << 20
TIME_SHARE = 0.05
STEP_COST = 3  # time of a training step on a sample, in evaluations of it
READ_AT_ONCE = 4096  # windows whose bytes are counted together


class EvaluationWindows:
    """A list of batches of `batch_size` samples over each array in turn, the same each time.

    All batches have the same shape; the last one is filled up with samples of weight 0.

    Causal: neighbouring windows share a token, and every token but an array's first is a target
    exactly once; the last window of an array is padded. An objective that hides text at random sees
    whole windows only, each `draws` times and hidden anew; its choices depend on `seed` and on the
    numbers of the window and the draw alone. Pairs are seen once.

    Of more than `most` samples (windows, of each draw) that many are read, drawn evenly over all.
    With `source` only those of that array are read, which are the same ones.
    """

    def __init__(
        self,
        arrays: Sequence[SampleArray],
        objective: Objective,
        batch_size: int,
        draws: int,
        seed: int,
        most: int | None = None,
        source: int | None = None,
    ):
        """Raise ConfigError at `data.sequence_length` if windows must be whole and none is."""
        self.arrays = tuple(arrays)
        self.objective = objective
        self.batch_size = batch_size
        self.seed = seed
        self.pads = not (objective.random or objective.source_length or objective.examples)
        self.draws = draws if objective.random else 1

        if self.pads:
            counts = [-(-max(len(array) - 1, 0) // objective.stride) for array in arrays]
        else:
            counts = [window_count(array, objective) for array in arrays]
        self.ends = np.cumsum(counts, dtype=np.int64)  # windows up to and including each array
        self.windows = sum(counts)

        if not self.windows and objective.examples is not None:
            reason = "no example of the validation split fits into a sample"
            raise ConfigError("data.sequence_length", reason)
        if not self.windows and not self.pads:
            longest = max(map(len, arrays), default=0)
            raise ConfigError(
                "data.sequence_length",
                f"a window takes {objective.window:,} tokens, but the validation split has at most "
                f"{longest:,} in a row",
            )

        self.total = self.draws * self.windows
        self.drawn = self.total if most is None else min(most, self.total)
        ranges = [(0, self.drawn)]
        if source is not None:
            first, end = [0, *self.ends.tolist()][source : source + 2]
            begins = [draw * self.windows for draw in range(self.draws)]
            ranges = [(self._rank(begin + first), self._rank(begin + end)) for begin in begins]
        self.range_starts = np.array([start for start, _ in ranges], np.int64)
        self.range_ends = np.cumsum([end - start for start, end in ranges], dtype=np.int64)
        self.samples = int(self.range_ends[-1])

    def _rank(self, number: int) -> int:
        """Return how many of the drawn samples have a lower number."""
        return -(-2 * self.drawn * number // max(self.total, 1)) // 2

    @property
    def is_whole(self) -> bool:
        """Return whether every window of the arrays is read."""
        return self.samples == self.total

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        """Return batch `index`, [batch_size, ...]."""
        return self.rows(index, 0, self.batch_size)

    def size(self, index: int) -> int:
        """Return the number of rows of batch `index`."""
        return self.batch_size

    def rows(self, index: int, start: int, stop: int) -> Batch:
        """Return the rows from `start` up to `stop` of batch `index`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * self.batch_size
        places = first + np.arange(start, stop)

        # Rows beyond the last sample repeat one, at weight 0.
        is_sample = places < self.samples
        numbers = self.sample_numbers(np.where(is_sample, places, first))
        rows, lengths = self.read(numbers % self.windows)

        batch = self.objective.make_batch(rows, numbers, self.seed)
        weights = np.asarray(batch.weights)
        weights = weights * is_sample.reshape(-1, *[1] * (weights.ndim - 1))
        if self.pads:
            weights *= np.arange(1, self.objective.window) < lengths[:, None]
        return batch._replace(weights=weights)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    def of_source(self, source: int) -> "EvaluationWindows":
        """Return those of these windows that are of one array."""
        most = self.drawn
        return EvaluationWindows(
            self.arrays, self.objective, self.batch_size, self.draws, self.seed, most, source
        )

    def by_source(self) -> "list[EvaluationWindows]":
        """Return the windows of each array in turn; these, where there is one."""
        count = len(self.arrays)
        return [self] if count == 1 else [self.of_source(source) for source in range(count)]

    def sample_numbers(self, places: np.ndarray) -> np.ndarray:
        """Return the numbers, among all samples, of those that are read at `places` (int64 [n])."""
        ranges = np.searchsorted(self.range_ends, places, side="right")
        within = places - np.concatenate([[0], self.range_ends])[ranges]
        place = self.range_starts[ranges] + within

        # The middle of each of `drawn` equal parts; without a bound this is `place` itself.
        odd = 2 * place + 1
        quotient, remainder = divmod(self.total, 2 * self.drawn)
        return odd * quotient + odd * remainder // (2 * self.drawn)

    def text_bytes(self, token_bytes: np.ndarray) -> int:
        """Return the size in bytes of the targets; `token_bytes` has that of each token.

        An array's first token, which is no target, counts with its first window. So all windows
        together have all bytes.
        """
        total = 0
        columns = np.arange(self.objective.window)
        for start in range(0, self.samples, READ_AT_ONCE):
            places = np.arange(start, min(start + READ_AT_ONCE, self.samples))
            numbers = self.sample_numbers(places) % self.windows
            rows, lengths = self.read(numbers)
            counted = (columns < lengths[:, None]) & ((columns > 0) | self.is_first(numbers))
            total += int(token_bytes[rows][counted].sum())
        return total

    def is_first(self, numbers: np.ndarray) -> np.ndarray:
        """Return which windows (int64 [n]) are the first of their array; bool [n, 1]."""
        return np.isin(numbers, np.concatenate([[0], self.ends]))[:, None]

    def read(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return windows by number (int64 [n]) as int32 [n, window], and the tokens left.

        The second array, int64 [n], counts the tokens from the start of a window to the end of its
        array, which may be less than a window.
        """
        sources = np.searchsorted(self.ends, numbers, side="right")
        first_windows = np.concatenate([[0], self.ends])[sources]
        starts = (numbers - first_windows) * self.objective.stride

        tokens_left = np.array([len(array) for array in self.arrays])[sources] - starts
        return gather_samples(self.arrays, sources, starts, self.objective), tokens_left


def unigram_entropy(windows: Batches, batches: int | None) -> tuple[float, int]:
    """Return the loss of a model that knew only the targets' frequencies, and their number.

    It is the entropy of the empirical distribution of the targets in the first `batches` of
    `windows`, or in all of them, in nats. Targets of weight 0 don't count.
    """
    counts = np.zeros(0, np.int64)
    for index in range(min(len(windows), batches or len(windows))):
        batch = windows[index]
        targets = np.asarray(batch.targets)[np.asarray(batch.weights) > 0]
        batch_counts = np.bincount(targets, minlength=len(counts))
        batch_counts[: len(counts)] += counts
        counts = batch_counts

    counts, total = counts[counts > 0], int(counts.sum())
    if len(counts) < 2:
        return 0.0, total
    return float(np.log(total) - (counts * np.log(counts)).sum() / total), total


def evaluation_batch_size(config: Config) -> int:
    """Return how many samples are scored at once.

    By default they are those of a microbatch, so that an evaluation takes no more memory than the
    training does.
    """
    microbatch = max(1, config.training.batch_size // config.training.microbatches)
    return config.evaluation.batch_size or microbatch


def most_samples(config: Config, objective: Objective) -> int | None:
    """Return how many samples an evaluation reads at most; None: all of them.

    That is evaluation.steps batches, or else a share of what the steps between two evaluations
    take. It depends on the config alone, so that it is the same on any devices. Classifiers read
    all samples by default: their figures are compared with those of others on the same split.
    """
    if config.evaluation.steps is not None:
        batch_size = config.evaluation.batch_size or config.training.batch_size
        return config.evaluation.steps * batch_size
    if config.model.classifier.kind != "none":
        return None

    steps_between = config.evaluation.every_steps or config.training.steps
    samples_between = steps_between * config.training.batch_size
    share = int(TIME_SHARE * STEP_COST * samples_between)
    return max(ALLOWED_TOKENS // objective.tokens, share, 1)


def token_bytes(tokenizer: Tokenizer) -> np.ndarray | None:
    """Return the bytes that each token stands for, int64 [V]; None where that is not known.

    It is known where every token is a stretch of the bytes of the text. Special tokens are no text.
    """
    if not tokenizer.is_bytes and not keeps_bytes(tokenizer.inner):
        return None

    sizes = np.zeros(tokenizer.size, np.int64)
    # These tokens are written with one character per byte.
    for text, token in tokenizer.inner.get_vocab(with_added_tokens=True).items():
        sizes[token] = len(text)
    for token, added in tokenizer.inner.get_added_tokens_decoder().items():
        sizes[token] = 0 if added.special else len(added.content.encode())
    return sizes


def count_bytes(store: Store, windows: EvaluationWindows) -> int:
    """Return the size in bytes of the text that `windows` score.

    It is exact where all of the split is scored, and where the bytes of each token are known.
    Elsewhere the targets of a source have the bytes per token of that source.
    """
    if windows.is_whole:
        return store.validation_bytes
    sizes = token_bytes(store.tokenizer)
    if sizes is not None:
        return windows.text_bytes(sizes)

    entries = [entry for entry in store.manifest["splits"]["validation"] if entry["tokens"]]
    total = 0.0
    for source, entry in enumerate(entries):
        part = windows.of_source(source)
        targets = part.text_bytes(np.ones(store.tokenizer.size, np.int64))
        total += targets * entry["bytes"] / entry["tokens"]
    return round(total)
