"""Compare models on the texts of several domains: what was gained here and lost there."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxlm.columns import align_columns
from jaxlm.config import UserError


class ModelFigures(NamedTuple):
    """The figures of one model: those of `report.compute_metrics` for each domain."""

    name: str
    objective: str
    tokenizer: str  # its hash
    rows: Sequence[Mapping[str, Any]]


class Change(NamedTuple):
    """The figure of a model in a domain beside that of the base. Lower is better."""

    domain: str
    model: str
    value: float
    base: float

    @property
    def difference(self) -> float:
        return self.value - self.base

    @property
    def percent(self) -> float:
        return 100 * self.difference / self.base


def choose_figure(base: ModelFigures, models: Sequence[ModelFigures]) -> str:
    """Return the key of the figure that is compared: bits per byte of decoders, else the loss.

    UserError where the figures of two models don't compare: a loss per token means something else
    with another tokenizer, or with another objective.
    """
    for model in models:
        if model.objective != base.objective:
            raise UserError(
                f"--against {base.name}: its objective is {base.objective}, and that of "
                f"{model.name} is {model.objective}"
            )
        if base.objective != "causal" and model.tokenizer != base.tokenizer:
            raise UserError(
                f"--against {base.name}: {model.name} has another tokenizer; losses per token "
                "compare with the same one only (bits per byte of decoders do with any)"
            )
    if base.objective == "causal":
        return "bits_per_byte"
    return "generator_loss" if base.objective == "replaced_tokens" else "loss"


def compare_models(base: ModelFigures, models: Sequence[ModelFigures]) -> list[Change]:
    """Return the change of each model in each domain, by domain. Raises as `choose_figure` does."""
    figure = choose_figure(base, models)
    changes = []
    for number, base_row in enumerate(base.rows):
        for model in models:
            domain, value, before = (
                base_row["source"],
                model.rows[number][figure],
                base_row[figure],
            )
            if value is None or not before:
                raise UserError(f"--data {domain}: has no {figure.replace('_', ' ')}")
            changes.append(Change(domain, model.name, value, before))
    return changes


def format_comparison(changes: Sequence[Change], base: str, figure: str) -> str:
    """Return the table: under each domain the base and the models."""
    lines = [["domain", "model", figure.replace("_", " "), "change", "percent"]]
    last = None
    for change in changes:
        if change.domain != last:
            lines.append([change.domain, base, f"{change.base:.4f}", "", ""])
        last = change.domain
        difference, percent = f"{change.difference:+.4f}", f"{change.percent:+.2f}"
        lines.append([change.domain, change.model, f"{change.value:.4f}", difference, percent])

    names = max(len(line[1]) for line in lines)
    return align_columns([[line[0], line[1].ljust(names), *line[2:]] for line in lines])


def changes_as_data(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """Return the changes as JSON data."""
    return [
        change._asdict() | {"change": change.difference, "percent": change.percent}
        for change in changes
    ]
