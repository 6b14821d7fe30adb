"""The figures of an evaluation, by source and in total, as JSON data and as a table."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

INTEGERS = {"documents", "tokens", "bytes", "words", "targets", "pseudo_targets"}


class Sums(NamedTuple):
    """Over targets; float64."""

    targets: int = 0
    nats: float = 0.0
    correct: float = 0.0  # targets that had the highest score

    @property
    def loss(self) -> float | None:
        """Nats per target; None without one, or where it is not finite."""
        value = self.nats / self.targets if self.targets else math.nan
        return value if math.isfinite(value) else None

    @property
    def perplexity(self) -> float | None:
        return (
            None if self.loss is None or self.loss > 700 else math.exp(self.loss)
        )  # beyond that no float64


class Row(NamedTuple):
    """What was scored of a source, and how. None: not known."""

    name: str
    documents: int | None
    tokens: int
    bytes: int
    words: int | None
    sums: Sums
    pseudo: Sums | None = None  # with each token hidden in turn


def total(rows: Sequence[Row]) -> Row:
    """Over all sources."""

    def add(values: Sequence[Any]) -> Any:
        return None if any(value is None for value in values) else sum(values)

    def add_sums(sums: Sequence[Sums | None]) -> Sums | None:
        return (
            None
            if any(one is None for one in sums)
            else Sums(*(sum(column) for column in zip(*sums, strict=True)))
        )  # type: ignore[arg-type]

    columns = list(zip(*rows, strict=True))
    return Row(
        "total",
        *(add(column) for column in columns[1:5]),
        *(add_sums(column) for column in columns[5:]),
    )  # type: ignore[arg-type]


def figures(row: Row, kind: str) -> dict[str, Any]:
    """All that an objective of this `kind` is judged by, under plain names. A figure that is not finite is None."""
    sums, pseudo = row.sums, row.pseudo
    values: dict[str, Any] = {"source": row.name}
    values |= {name: getattr(row, name) for name in ("documents", "tokens", "bytes", "words")}
    values |= {"targets": sums.targets, "loss": sums.loss, "perplexity": sums.perplexity}
    if kind == "causal":
        values |= {
            "bits_per_byte": bits_per(sums, row.bytes),
            "bits_per_word": bits_per(sums, row.words),
        }
    if kind == "masked":
        values["masked_accuracy"] = sums.correct / sums.targets if sums.targets else None
    if pseudo is not None:
        values |= {
            "pseudo_targets": pseudo.targets,
            "pseudo_loss": pseudo.loss,
            "pseudo_perplexity": pseudo.perplexity,
        }
    return values


def bits_per(sums: Sums, units: int | None) -> float | None:
    """Bits of all targets over the bytes or words of their text."""
    return None if sums.loss is None or not units else sums.nats / math.log(2) / units


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Aligned columns: names to the left, numbers to the right. A column that nobody knows is left out."""
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    lines = [
        [name.replace("_", " ") for name in columns],
        *([shown(name, row[name]) for name in columns] for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]
    return "\n".join(text)


def shown(name: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    if name in INTEGERS:
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.3e}"
