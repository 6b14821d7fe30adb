"""The evaluation of a classifier in training: its figures on the whole validation split."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.config import ClassifierConfig, Config
from jaxlm.evaluation import scoring
from jaxlm.evaluation.evaluator import (
    EvaluationStopped,
    Evaluator,
    SourceWindows,
    StoppableBatches,
)
from jaxlm.evaluation.label_scores import LabelPredictions, describe_figures, score_labels
from jaxlm.losses import LABEL_LOSSES, LossSums, label_loss, loss_sums
from jaxlm.models import Model
from jaxlm.sharding import Placement
from jaxlm.step import score_step
from jaxlm.types import Array, Batch, Tree


class LabelSums(NamedTuple):
    """The sums and the predictions of some batches, on the host."""

    loss: float
    weights: float
    predictions: list[LabelPredictions]


class LabelEvaluator(Evaluator):
    """Score a classifier on the validation split of its run, the same samples each time."""

    def build_step(self, model: Model, params: Tree, compiler_options: dict | None) -> Callable:
        """Build the jitted `step(params, batch) -> (LossSums, LabelPredictions)`."""
        return label_step(model, self.placement, params, compiler_options=compiler_options)

    def evaluate(
        self, params: Tree, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Return eval/loss and the figures of the classifier, by tag.

        Returns eval/targets alone where there are none, None once `stop` returns True.
        """
        try:
            parts = [self._predict(params, source, stop) for source in self.sources]
        except EvaluationStopped:
            return None

        weights = sum(part.weights for part in parts)
        if not weights:
            return {"eval/targets": 0}
        predictions = [batch for part in parts for batch in part.predictions]
        figures = score_labels(self.config.model.classifier, predictions)
        values = {"eval/loss": sum(part.loss for part in parts) / weights}
        values |= {f"eval/{name}": value for name, value in figures.items()}

        if len(parts) > 1:
            for source, part in zip(self.sources, parts, strict=True):
                if part.weights:
                    values[f"eval/loss/{source.name}"] = part.loss / part.weights
        return values

    def probe(self, params: Tree) -> float:
        """Return the loss of the first batch, which shows whether the parameters still work."""
        first = next((source for source in self.sources if source.windows.samples), None)
        if first is None:
            return 0.0
        sums = self._predict(params, first, lambda: False, batches=1)
        return sums.loss / max(sums.weights, 1e-30)

    def describe(self, scores: dict[str, float]) -> str:
        """Return the figures of `evaluate` as a line for the terminal."""
        if "eval/loss" not in scores:
            return self._no_targets()

        text = f"loss {scores['eval/loss']:.4f}"
        if "eval/ema_loss" in scores:
            text += f" ({scores['eval/ema_loss']:.4f} with the average of the weights)"
        figures = {tag.removeprefix("eval/"): value for tag, value in scores.items()}
        what = "tokens" if self.config.model.classifier.kind == "token" else "texts"
        text += f", {describe_figures(figures)} (of {int(scores['eval/targets']):,} {what})"
        return text + self._losses_by_source(scores)

    def _predict(
        self,
        params: Tree,
        source: SourceWindows,
        stop: Callable[[], bool],
        batches: int | None = None,
    ) -> LabelSums:
        """Return the sums over the first `batches` of a source, or over all of them."""
        loss, weights, predictions = 0.0, 0.0, []
        results = scoring.fetch_results(
            self.step,
            params,
            StoppableBatches(source.process_windows, stop),
            batches,
            self.placement.put,
            self.steps_in_flight,
        )
        for sums, predicted in results:
            loss += float(sums.loss)
            weights += float(sums.count)
            predictions.append(predicted)
        return LabelSums(loss, weights, predictions)


def label_step(
    model: Model,
    placement: Placement,
    params: Tree,
    *,
    compiler_options: dict[str, Any] | None = None,
) -> Callable[[Tree, Batch], tuple[LossSums, LabelPredictions]]:
    """Build the jitted `step(params, batch)` of a classifier, without dropout.

    It returns the sums of the loss and the predictions of all rows, the same on every device and in
    every process. Only the shapes of `params` are read.
    """
    scores_of = score_step(model, placement, params)
    classifier = model.config.classifier

    def step(params: Tree, batch: Batch) -> tuple[LossSums, LabelPredictions]:
        targets, weights_BP = jnp.asarray(batch.targets), jnp.asarray(batch.weights)
        scores_BPC = scores_of(params, batch).reshape(*weights_BP.shape, -1)
        if classifier.problem in LABEL_LOSSES:
            _, sums = label_loss(classifier.problem, scores_BPC, targets, weights_BP)
        else:
            sums = loss_sums(scores_BPC, targets, weights_BP)
        predicted = predict_labels(classifier, scores_BPC)
        return sums, LabelPredictions(predicted, targets, weights_BP)

    return jax.jit(
        step,
        in_shardings=(placement.tree("parameters", params), placement.batch()),
        out_shardings=placement.replicated(),
        compiler_options=compiler_options,
    )


def predict_labels(classifier: ClassifierConfig, scores_BPC: Array) -> Array:
    """Return the label with the highest score, the labels above one half, or the values."""
    if classifier.problem == "regression":
        return scores_BPC
    if classifier.problem == "multi_label":
        return scores_BPC > 0
    return jnp.argmax(scores_BPC, axis=-1).astype(jnp.int32)


def evaluator_type(config: Config) -> type[Evaluator]:
    """Return the class of a run's evaluator."""
    return Evaluator if config.model.classifier.kind == "none" else LabelEvaluator
