"""The metrics of an evaluation, by source and in total, as JSON data and as a table."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlm.columns import align_columns

LARGEST_EXPONENT = 700  # beyond it exp() overflows a float64
INTEGERS = {"documents", "tokens", "bytes", "words", "targets", "pseudo_targets"}


class ScoreSums(NamedTuple):
    """Sums over targets, float64."""

    targets: int = 0
    nats: float = 0.0
    correct: float = 0.0  # targets that had the highest score
    # Sums over the tokens that a detection judges
    detection_nats: float = 0.0
    detected: float = 0.0  # tokens that are judged right
    replaced: float = 0.0
    judged: float = 0.0

    @property
    def loss(self) -> float | None:
        """The nats per target; None without a target, or where it is not finite."""
        value = self.nats / self.targets if self.targets else math.nan
        return value if math.isfinite(value) else None

    @property
    def perplexity(self) -> float | None:
        if self.loss is None or self.loss > LARGEST_EXPONENT:
            return None
        return math.exp(self.loss)


class SourceScores(NamedTuple):
    """The size of a source and its scores. None: not known."""

    name: str
    documents: int | None
    tokens: int
    bytes: int
    words: int | None
    sums: ScoreSums
    pseudo: ScoreSums | None = None  # with each token hidden in turn


def total_scores(rows: Sequence[SourceScores]) -> SourceScores:
    """Add up all sources."""

    def add(values: Sequence[Any]) -> Any:
        return None if any(value is None for value in values) else sum(values)

    def add_sums(sums: Sequence[ScoreSums | None]) -> ScoreSums | None:
        if any(source is None for source in sums):
            return None
        columns = (sum(column) for column in zip(*sums, strict=True))  # type: ignore[arg-type]
        return ScoreSums(*columns)

    columns = list(zip(*rows, strict=True))
    return SourceScores(
        "total",
        *(add(column) for column in columns[1:5]),
        *(add_sums(column) for column in columns[5:]),
    )  # type: ignore[arg-type]


def compute_metrics(row: SourceScores, kind: str) -> dict[str, Any]:
    """Return the metrics of an objective of this `kind`; one that is not finite is None."""
    sums, pseudo = row.sums, row.pseudo

    values: dict[str, Any] = {"source": row.name}
    values |= {name: getattr(row, name) for name in ("documents", "tokens", "bytes", "words")}
    of = "generator_" if kind == "replaced_tokens" else ""  # whose loss it is
    values |= {
        "targets": sums.targets,
        f"{of}loss": sums.loss,
        f"{of}perplexity": sums.perplexity,
    }

    if kind == "causal":
        values |= {
            "bits_per_byte": bits_per(sums, row.bytes),
            "bits_per_word": bits_per(sums, row.words),
        }
    if kind in ("masked", "replaced_tokens"):
        values["masked_accuracy"] = sums.correct / sums.targets if sums.targets else None
    if kind == "replaced_tokens":
        judged = sums.judged or math.nan
        detection = {
            "detection_loss": sums.detection_nats / judged,
            "detection_accuracy": sums.detected / judged,
            "replaced_share": sums.replaced / judged,
        }
        values |= {k: v if math.isfinite(v) else None for k, v in detection.items()}
    if pseudo is not None:
        values |= {
            "pseudo_targets": pseudo.targets,
            "pseudo_loss": pseudo.loss,
            "pseudo_perplexity": pseudo.perplexity,
        }
    return values


def bits_per(sums: ScoreSums, units: int | None) -> float | None:
    """Return the bits of all targets per byte or word of their text."""
    return None if sums.loss is None or not units else sums.nats / math.log(2) / units


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Align names to the left and numbers to the right; leave out columns without a value."""
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    lines = [
        [name.replace("_", " ") for name in columns],
        *([format_metric(name, row[name]) for name in columns] for row in rows),
    ]
    return align_columns(lines)


def format_metric(name: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    if name in INTEGERS:
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.3e}"
