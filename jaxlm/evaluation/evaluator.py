"""The evaluation of a training run: the figures of a model on the validation split."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import Config
from jaxlm.data import Store
from jaxlm.data.example_array import ExampleArray
from jaxlm.data.loader import LocalBatches
from jaxlm.evaluation import scoring
from jaxlm.evaluation.validation import (
    EvaluationWindows,
    count_bytes,
    evaluation_batch_size,
    most_samples,
    unigram_entropy,
)
from jaxlm.models import Model
from jaxlm.objectives import Objective
from jaxlm.sharding import Placement
from jaxlm.step import eval_step
from jaxlm.types import Batch, Batches, Tree

# Each source has batches of its own as long as they are at most MOST_BATCHES times as many as all
# windows fill, and SPARE_BATCHES: the last one of a source is not full.
MOST_BATCHES, SPARE_BATCHES = 3, 8


class EvaluationStopped(Exception):
    """A stop signal has come between two batches of an evaluation."""


class StoppableBatches:
    """Batches that raise EvaluationStopped once `stop` returns True; it is asked before each."""

    def __init__(self, batches: Batches, stop: Callable[[], bool]):
        self.batches, self.stop = batches, stop

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        if self.stop():
            raise EvaluationStopped
        return self.batches[index]


class SourceWindows(NamedTuple):
    """The windows of one source, and the rows of their batches that this process reads."""

    name: str
    windows: EvaluationWindows
    process_windows: LocalBatches


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
        compiler_options: dict[str, Any] | None = None,
    ):
        """`params` are read for their shapes alone."""
        self.config = config
        self.placement = placement
        self.store = store
        self.steps_in_flight = steps_in_flight

        # It may have been chosen for fewer devices than those of a resumed run: round it up to what
        # they divide.
        batch_size, most = evaluation_batch_size(config), most_samples(config, objective)
        batch_size += -batch_size % (placement.mesh.shape["data"] * placement.mesh.shape["fsdp"])

        self.windows = EvaluationWindows(
            store.validation, objective, batch_size, config.evaluation.draws, config.seed, most
        )
        names, parts = source_names(config, store), self.windows.by_source()
        self.by_source = fills_batches(parts, self.windows)
        if not self.by_source:
            names, parts = ["all"], [self.windows]
        self.sources = [
            SourceWindows(name, part, LocalBatches(part, placement.rows))
            for name, part in zip(names, parts, strict=True)
        ]
        self.step = self.build_step(model, params, compiler_options)

    def build_step(self, model: Model, params: Tree, compiler_options: dict | None) -> Callable:
        """Build the jitted `step(params, batch) -> LossSums`."""
        return eval_step(
            model, self.config.training, self.placement, params, compiler_options=compiler_options
        )

    @cached_property
    def unigram_entropy(self) -> float:
        """Return the loss by the targets' frequencies: the yardstick where there are no bytes."""
        return unigram_entropy(self.windows, None)[0]

    @cached_property
    def text_bytes(self) -> int:
        """Return the size in bytes of the text that is scored."""
        return count_bytes(self.store, self.windows)

    def notes(self) -> list[str]:
        """Return lines on what the evaluations leave out, and on what they can't show."""
        notes = []
        windows = self.windows
        if not windows.is_whole:
            how = "" if self.config.evaluation.steps else " (evaluation.steps=N reads N batches)"
            notes.append(
                f"evaluation: {windows.samples:,} of {windows.total:,} windows of the validation "
                f"split, drawn evenly{how}"
            )
        for array in self.windows.arrays:
            if isinstance(array, ExampleArray) and (
                found := array.describe(self.windows.objective)
            ):
                notes.append(f"evaluation: {found}")
        if not self.by_source:
            notes.append(
                f"evaluation: no losses by source, since {len(windows):,} batches can't be cut by "
                "their sources without many that are nearly empty"
            )
        if len(windows) and not np.asarray(windows[0].weights).any():
            notes.append(f"warning: validation {self._no_targets()}")
        return notes

    def evaluate(
        self, params: Tree, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Return eval/loss, eval/perplexity and the other figures of the objective, by tag.

        Returns eval/targets alone where there are none, None once `stop` returns True.
        """
        objective = self.config.objective.kind
        try:
            parts = [self._score(params, source, stop) for source in self.sources]
        except EvaluationStopped:
            return None

        score = scoring.combine(parts)
        if not score.targets:
            return {"eval/targets": 0}
        if score.rewards is not None:
            margin = score.rewards.chosen - score.rewards.rejected
            values = {
                "eval/loss": score.loss,
                "eval/reward_accuracy": score.accuracy,
                "eval/reward_margin": margin / score.targets,
                "eval/targets": score.targets,
            }
        elif score.detection is None:
            values = {"eval/loss": score.loss, "eval/perplexity": score.perplexity}
        else:
            figures = scoring.detection_means(score.detection)
            values = {
                "eval/loss": self._loss(score),
                **{f"eval/{name}": value for name, value in figures.items()},
                "eval/generator_loss": score.loss,
                "eval/generator_perplexity": score.perplexity,
            }

        if objective == "causal":
            values["eval/bits_per_byte"] = scoring.bits_per_byte(
                score.loss, score.targets, self.text_bytes
            )
        elif self.config.model.family == "encoder":
            values["eval/masked_accuracy"] = score.accuracy
        if objective not in ("causal", "preference"):
            values["eval/unigram_entropy"] = self.unigram_entropy
            values["eval/targets"] = score.targets

        if len(parts) > 1:
            for source, part in zip(self.sources, parts, strict=True):
                if part.targets:
                    values[f"eval/loss/{source.name}"] = self._loss(part)
        return values

    def _loss(self, score: scoring.Score) -> float:
        """Return the loss that training makes small, per target; without its z-loss."""
        if score.detection is None:
            return score.loss
        weight = self.config.training.detection_weight
        return score.loss + weight * scoring.detection_means(score.detection)["detection_loss"]

    def probe(self, params: Tree) -> float:
        """Return the loss of the first batch, which shows whether the parameters still work."""
        first = next((source for source in self.sources if source.windows.samples), None)
        if first is None:
            return 0.0
        return self._loss(self._score(params, first, lambda: False, batches=1))

    def _score(
        self,
        params: Tree,
        source: SourceWindows,
        stop: Callable[[], bool],
        batches: int | None = None,
    ) -> scoring.Score:
        return scoring.evaluate(
            self.step,
            params,
            StoppableBatches(source.process_windows, stop),
            batches,
            self.placement.put,
            self.steps_in_flight,
        )

    def is_ranked(self, scores: dict[str, float]) -> bool:
        """Return whether a loss says anything: not without targets, or if all are the same."""
        return "eval/loss" in scores and scores.get("eval/unigram_entropy", math.inf) > 0

    def describe(self, scores: dict[str, float]) -> str:
        """Return the figures of `evaluate` as a line for the terminal."""
        if "eval/loss" not in scores:
            return self._no_targets()

        text = f"loss {scores['eval/loss']:.4f}"
        if "eval/ema_loss" in scores:
            text += f" ({scores['eval/ema_loss']:.4f} with the average of the weights)"
        masked_loss = scores.get("eval/generator_loss", scores["eval/loss"])
        if "eval/generator_loss" in scores:
            text += (
                f", {scores['eval/detection_accuracy']:.2%} of the tokens judged right with "
                f"{scores['eval/replaced_share']:.2%} replaced (loss "
                f"{scores['eval/detection_loss']:.4f}); generator {masked_loss:.4f}"
            )
        if "eval/reward_accuracy" in scores:
            text += (
                f", {scores['eval/reward_accuracy']:.1%} of {int(scores['eval/targets']):,} pairs "
                f"right, margin {scores['eval/reward_margin']:.4f}"
            )
        if "eval/masked_accuracy" in scores:
            text += f", {scores['eval/masked_accuracy']:.1%} right"

        if "eval/unigram_entropy" in scores:
            entropy, targets = scores["eval/unigram_entropy"], int(scores["eval/targets"])
            if entropy > 0:
                share = f"{masked_loss / entropy:.3f} of it"
                text += f" (unigram entropy of the {targets:,} targets {entropy:.4f}: {share})"
            else:
                text += f" (the {targets:,} targets are all the same token: this says nothing)"

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

        return text + self._losses_by_source(scores)

    def _losses_by_source(self, scores: dict[str, float]) -> str:
        tags = {source.name: f"eval/loss/{source.name}" for source in self.sources}
        losses = [f"{name} {scores[tag]:.4f}" for name, tag in tags.items() if tag in scores]
        return f"; by source {', '.join(losses)}" if losses else ""

    def _no_targets(self) -> str:
        reason = "without targets"
        masks = self.config.objective.kind in ("masked", "replaced_tokens")
        if masks and self.config.objective.whole_words:
            share = self.config.objective.noise
            reason += (
                f": no whole word fits the share that is hidden (objective.noise_share={share:g}); "
                "objective.whole_words=false hides parts of words"
            )
        return reason


def fills_batches(parts: Sequence[Batches], together: Batches) -> bool:
    """Return whether each source can have batches of its own without too many that are not full."""
    return sum(map(len, parts)) <= MOST_BATCHES * len(together) + SPARE_BATCHES


def source_names(config: Config, store: Store) -> list[str]:
    """Return the names of the sources that have validation text, in the order of the store."""
    entries = store.manifest["splits"]["validation"]
    names = [entry["source"] for entry in entries]
    # A store that runs share has the names of the run that built it.
    if len(entries) == len(config.data.sources) and config.data.validation.path is None:
        names = [source.name for source in config.data.sources]
    return [name for name, entry in zip(names, entries, strict=True) if entry["tokens"]]
