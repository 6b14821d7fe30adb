"""What a card says, gathered from a run directory: config.json, metrics.jsonl, training.json."""

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm import config, flops, objectives
from jaxlm.card import record
from jaxlm.card.record import Start
from jaxlm.data.mixture import PERIOD, Mixture
from jaxlm.data.schedule import BatchSchedule
from jaxlm.objectives import Objective, Vocabulary

LIBRARIES = ("jaxlm", "transformers")  # that a card is made for


class SourceFacts(NamedTuple):
    """One corpus of the training split; None is what is not known."""

    name: str
    format: str
    share: float  # of the samples, exact
    documents: int | None
    pairs: int | None
    tokens: int | None
    bytes: int | None
    samples: int  # of it, so far
    seen: float | None  # times that all of it was read so far


class Held(NamedTuple):
    """The validation split."""

    documents: int | None
    tokens: int
    bytes: int
    packed: dict[str, float]  # compressor -> bits per byte that it makes of the text


class Facts(NamedTuple):
    """All that a card says. None, "" and {} are what is not known."""

    name: str
    run_directory: Path
    config: config.Config
    parameters: int
    step: int
    curves: dict[
        str, dict[int, float]
    ]  # tag -> step -> value, in order of steps; finite values alone
    starts: tuple[Start, ...]
    data: Mapping[str, Any]  # training.json's
    store: str  # hash
    versions: dict[str, str]
    imported: str  # model_type of the Hugging Face directory that the first weights come from
    exported: str  # model_type, where the card is of an exported directory

    @property
    def library(self) -> str:
        return LIBRARIES[bool(self.exported)]

    @property
    def trained(self) -> bool:
        return self.step > 0

    @property
    def schedule(self) -> BatchSchedule:
        training = self.config.training
        return BatchSchedule(training.batch_size, training.batch_schedule)

    @property
    def objective(self) -> Objective:
        """The lengths of its samples; it makes no batches of text."""
        return sizes(self.config)

    def samples(self, step: int) -> int:
        return self.schedule.first_sample(step)

    def tokens(self, step: int) -> int:
        """Tokens that the model has read up to a step, both stacks together; what train/tokens says."""
        return self.samples(step) * self.objective.tokens

    @property
    def flops_per_sample(self) -> int:
        of = self.objective
        return flops.training_flops(self.config.model, of.length, of.source_length, of.predictions)

    @property
    def compute(self) -> int:
        """FLOPs of the training so far."""
        return self.flops_per_sample * self.samples(self.step)

    @property
    def sources(self) -> list[SourceFacts]:
        """The sources of the config, with what the store counted."""
        found = self.config.data.sources
        mixture = Mixture([source.weight for source in found])
        counts = samples_of_sources(mixture, self.samples(self.step))
        # By place: a store that runs share has the names of the run that built it.
        entries = self.data.get("splits", {}).get("train", [])
        entries = entries if len(entries) == len(found) else [{}] * len(found)
        parts = zip(found, mixture.slots.tolist(), counts, entries, strict=True)
        return [
            described(source, slots / PERIOD, samples, entry, self.objective)
            for source, slots, samples, entry in parts
        ]

    @property
    def held(self) -> Held | None:
        """The validation split, if it is known."""
        found = self.data.get("validation")
        if not found or not found.get("bytes"):
            return None
        packed = {
            name: found.get(key) for name, key in (("gzip -9", "gzip_bytes"), ("xz -9", "xz_bytes"))
        }
        documents = [
            entry.get("documents") for entry in self.data.get("splits", {}).get("validation", [])
        ]
        whole = sum(documents) if documents and None not in documents else None
        return Held(
            whole,
            found["tokens"],
            found["bytes"],
            {name: 8 * size / found["bytes"] for name, size in packed.items() if size is not None},
        )

    @property
    def evaluated(self) -> list[int]:
        """Steps with an evaluation, in order."""
        return list(self.curves.get("eval/loss", {}))

    @property
    def best(self) -> int | None:
        """The step of the lowest eval/loss."""
        return (
            min(self.evaluated, key=self.curves["eval/loss"].__getitem__, default=None)
            if self.evaluated
            else None
        )

    def scores(self, step: int) -> dict[str, float]:
        """tag -> value of the evaluation at a step."""
        return {
            tag: values[step]
            for tag, values in self.curves.items()
            if tag.startswith("eval/") and step in values
        }

    def median(self, tag: str) -> float | None:
        return statistics.median(self.curves[tag].values()) if self.curves.get(tag) else None


def gather(
    run_directory: Path,
    settings: config.Config,
    parameters: int,
    step: int | None = None,
    exported: str = "",
) -> Facts:
    """The facts of the model with so many `parameters` after `step` (None: the last one that was recorded).

    `exported` is the `model_type` of the Hugging Face directory that the card is for. What is missing or damaged in the run directory
    is left out of the card.
    """
    document, saved = record.read(run_directory), saved_config(run_directory)
    store = (saved.get("store") or {}).get("hash") or ""
    curves = read_metrics(run_directory / "metrics.jsonl")
    starts = tuple(record.starts(document))
    newest = max(
        [0, *(start.step for start in starts), *(at for values in curves.values() for at in values)]
    )
    last = newest if step is None else step
    return Facts(
        name=run_directory.absolute().name,
        run_directory=run_directory,
        config=settings,
        parameters=parameters,
        step=last,
        curves={
            tag: kept
            for tag, values in curves.items()
            if (kept := {at: values[at] for at in sorted(values) if at <= last})
        },
        starts=tuple(start for start in starts if start.first_step < last),
        data=counted(document.get("data")) or counted(stored(settings, store)),
        store=store,
        versions=saved.get("versions") or {},
        imported=document.get("imported") or "",
        exported=exported,
    )


def saved_config(run_directory: Path) -> dict[str, Any]:
    """What config.json holds beside the config."""
    try:
        found = json.loads((run_directory / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def stored(settings: config.Config, store: str) -> Any:
    """The manifest of the store itself, for a run that recorded none; None if the store is gone."""
    try:
        return (
            json.loads(
                (Path(settings.data.store).expanduser() / store / "manifest.json").read_text()
            )
            if store
            else None
        )
    except (OSError, ValueError):
        return None


def counted(manifest: Any) -> dict[str, Any]:
    """Its counts; {} if it is no manifest."""
    try:
        return record.digest(manifest)
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}


def read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """tag -> step -> value. Of a step that was run again the later row counts; damaged rows and what is not finite are left out."""
    curves: dict[str, dict[int, float]] = {}
    try:
        with path.open("rb") as lines:
            for row in map(parsed, lines):
                for tag, value in finite(row):
                    curves.setdefault(tag, {})[row["step"]] = value
    except OSError:
        return {}
    return curves


def parsed(line: bytes) -> dict[str, Any]:
    """A row; {} for one that is damaged, such as the last of a killed process."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) and type(row.get("step")) is int else {}


def finite(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for tag, value in row.items():
        if (
            tag != "step"
            and isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
        ):
            yield tag, value


def sizes(settings: config.Config) -> Objective:
    """The objective, built for a vocabulary of special tokens alone: the lengths of its samples depend on nothing else."""
    count = settings.tokenizer.sentinels
    vocabulary = Vocabulary(
        size=count + 4,
        end_of_text=0,
        special=np.ones(count + 4, bool),
        begin_of_text=None if settings.tokenizer.begin_of_text is None else 3,
        pad=1,
        mask=2,
        sentinels=np.arange(4, count + 4, dtype=np.int32),
    )
    return objectives.build(settings.objective, settings.data.sequence_length, vocabulary)


def samples_of_sources(mixture: Mixture, samples: int) -> list[int]:
    """How many of the first `samples` came from each source, exactly."""
    periods, slot = divmod(samples, PERIOD)
    return [
        periods * int(slots) + int(before)
        for slots, before in zip(mixture.slots, mixture.before[slot], strict=True)
    ]


def described(
    source: config.SourceConfig,
    share: float,
    samples: int,
    entry: Mapping[str, Any],
    objective: Objective,
) -> SourceFacts:
    documents, pairs, tokens = entry.get("documents"), entry.get("pairs"), entry.get("tokens")
    read, whole = (
        (samples, pairs) if source.format == "pairs" else (samples * objective.stride, tokens)
    )
    seen = read / whole if whole else None
    return SourceFacts(
        source.name,
        source.format,
        share,
        documents,
        pairs,
        tokens,
        entry.get("bytes"),
        samples,
        seen,
    )
