"""The validation of a training run: the same windows each time, and the figures they give."""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from jaxlm.config import Config
from jaxlm.config.errors import ConfigError
from jaxlm.data import Store
from jaxlm.data.loader import LocalBatches
from jaxlm.data.samples import SampleArray, gather_samples, window_count
from jaxlm.evaluation import scoring
from jaxlm.models import Model
from jaxlm.objectives import Objective
from jaxlm.sharding import Placement
from jaxlm.step import eval_step
from jaxlm.types import Batch, Batches, Tree


class EvaluationWindows:
    """A list of batches of `batch_size` samples over each array in turn, the same each time.

    All batches have the same shape; the last one is filled up with samples of weight 0.

    Causal: neighbouring windows share a token, and every token but an array's first is a target
    exactly once; the last window of an array is padded. An objective that hides text at random sees
    whole windows only, each `draws` times and hidden anew; its choices depend on `seed` and on the
    numbers of the window and the draw alone. Pairs are seen once.
    """

    def __init__(
        self,
        arrays: Sequence[SampleArray],
        objective: Objective,
        batch_size: int,
        draws: int,
        seed: int,
    ):
        """Raise ConfigError at `data.sequence_length` if windows must be whole and none is."""
        self.arrays = tuple(arrays)
        self.objective = objective
        self.batch_size = batch_size
        self.seed = seed
        self.pads = not objective.random and objective.window == objective.stride + 1
        self.draws = draws if objective.random else 1

        if self.pads:
            counts = [-(-max(len(array) - 1, 0) // objective.stride) for array in arrays]
        else:
            counts = [window_count(array, objective) for array in arrays]
        self.ends = np.cumsum(counts, dtype=np.int64)  # windows up to and including each array
        self.windows = sum(counts)

        if not self.windows and not self.pads:
            longest = max(map(len, arrays), default=0)
            raise ConfigError(
                "data.sequence_length",
                f"a window takes {objective.window:,} tokens, but the validation split has at most "
                f"{longest:,} in a row",
            )

    def __len__(self) -> int:
        return -(-self.draws * self.windows // self.batch_size)

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
        numbers = first + np.arange(start, stop)

        # Rows beyond the last window repeat one, at weight 0.
        is_window = numbers < self.draws * self.windows
        numbers = np.where(is_window, numbers, first)
        rows, lengths = self.read(numbers % self.windows)

        batch = self.objective.make_batch(rows, numbers, self.seed)
        weights = np.asarray(batch.weights) * is_window[:, None]
        if self.pads:
            weights *= np.arange(1, self.objective.window) < lengths[:, None]
        return batch._replace(weights=weights)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

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
    if not total:
        return 0.0, 0
    return float(np.log(total) - (counts * np.log(counts)).sum() / total), total


class Evaluator:
    """Score a model on the validation split of its run, on the same windows each time."""

    def __init__(
        self,
        config: Config,
        model: Model,
        placement: Placement,
        store: Store,
        objective: Objective,
        params: Tree,
        *,
        steps_in_flight: int,
        leads: bool,
    ):
        """`params` are read for their shapes alone. `leads` is False in all processes but 0."""
        self.config = config
        self.placement = placement
        self.store = store
        self.steps_in_flight = steps_in_flight
        self.leads = leads

        # The default is the batch size of the training, which may have been chosen for fewer
        # devices than those of a resumed run: round it up to what they divide.
        batch_size = config.evaluation.batch_size or config.training.batch_size
        batch_size += -batch_size % (placement.mesh.shape["data"] * placement.mesh.shape["fsdp"])

        self.windows = EvaluationWindows(
            store.validation, objective, batch_size, config.evaluation.draws, config.seed
        )
        self.process_windows = LocalBatches(self.windows, placement.rows)
        self.step = eval_step(model, config.training, placement, params)

    @cached_property
    def unigram_entropy(self) -> float:
        """Return the loss by the targets' frequencies: the yardstick where there are no bytes."""
        return unigram_entropy(self.windows, self.config.evaluation.steps)[0]

    def evaluate(self, params: Tree) -> dict[str, float]:
        """Return eval/loss, eval/perplexity and the other figures of the objective, by tag."""
        objective = self.config.objective.kind
        score = scoring.evaluate(
            self.step,
            params,
            self.process_windows,
            self.config.evaluation.steps,
            self.placement.put,
            self.steps_in_flight,
        )
        values = {"eval/loss": score.loss, "eval/perplexity": score.perplexity}

        if objective == "causal":
            # The loss stands for that of the whole split, also where only some windows were scored.
            targets = sum(len(array) - 1 for array in self.store.validation)
            values["eval/bits_per_byte"] = scoring.bits_per_byte(
                score.loss, targets, self.store.validation_bytes
            )
            return values

        if objective == "masked":
            values["eval/masked_accuracy"] = score.accuracy
        if self.leads:  # the entropy takes the rows of all processes, and only process 0 shows it
            values["eval/unigram_entropy"] = self.unigram_entropy
            values["eval/targets"] = score.targets
        return values

    def describe(self, scores: dict[str, float]) -> str:
        """Return the figures of `evaluate` as a line for the terminal."""
        text = f"loss {scores['eval/loss']:.4f}"
        if "eval/masked_accuracy" in scores:
            text += f", {scores['eval/masked_accuracy']:.1%} right"

        if "eval/unigram_entropy" in scores:
            entropy, targets = scores["eval/unigram_entropy"], int(scores["eval/targets"])
            share = scores["eval/loss"] / entropy
            text += (
                f" (unigram entropy of the {targets:,} targets {entropy:.4f}: {share:.3f} of it)"
            )

        if "eval/bits_per_byte" in scores:
            text += f", {scores['eval/bits_per_byte']:.4f} bits per byte"
            sizes = {"gzip -9": self.store.gzip_bytes, "xz -9": self.store.xz_bytes}
            compressors = [
                f"{name} {8 * size / self.store.validation_bytes:.4f}"
                for name, size in sizes.items()
                if size
            ]
            if compressors:
                text += f" ({', '.join(compressors)})"
        return text
