"""The facts of a card, gathered from a run's config.json, metrics.jsonl and training.json."""

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm import flops, objectives
from jaxlm.card.training_record import (
    TrainingStart,
    data_counts,
    read_base,
    read_record,
    recorded_starts,
)
from jaxlm.config import Config, SourceConfig
from jaxlm.config.objective import SOURCE_FORMATS
from jaxlm.data.mixture import Mixture, MixtureStages
from jaxlm.data.schedule import BatchSchedule, MixtureSchedule
from jaxlm.files import read_utf8
from jaxlm.objectives import Objective, Vocabulary

LIBRARIES = ("jaxlm", "transformers")  # of a run directory's card, of an export's
COMPRESSORS = {"gzip -9": "gzip_bytes", "xz -9": "xz_bytes"}  # name -> key of the manifest


class SourceFacts(NamedTuple):
    """One source of the training split; None is what is not known."""

    name: str
    format: str
    share: float  # of the samples, exact
    documents: int | None
    examples: int | None  # pairs, texts with labels and the like
    tokens: int | None
    bytes: int | None
    samples: int  # read from it so far
    epochs: float | None  # how often all of it was read so far


class ValidationFacts(NamedTuple):
    """The validation split."""

    documents: int | None
    tokens: int
    bytes: int
    compressed: dict[str, float]  # compressor -> bits per byte of the text


class Facts(NamedTuple):
    """Everything a card says. None, "" and {} are what is not known."""

    name: str
    run_directory: Path
    config: Config
    parameters: int
    step: int
    curves: dict[str, dict[int, float]]  # tag -> step -> value, in order of steps; finite only
    starts: tuple[TrainingStart, ...]
    data: Mapping[str, Any]  # training.json's
    store: str  # hash
    versions: dict[str, str]
    base: Mapping[str, Any]  # base.json's: name, step and hash of the weights it starts from
    imported: str  # model_type of the Hugging Face directory that the first weights come from
    exported: str  # model_type, where the card is of an exported directory

    @property
    def library(self) -> str:
        return LIBRARIES[bool(self.exported)]

    @property
    def shown_directory(self) -> str:
        """The run directory as the config has it, but of an absolute path the name alone."""
        path = Path(self.config.run_directory or self.name)
        return self.name if path.is_absolute() or ".." in path.parts else str(path)

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
        return sample_lengths(self.config)

    def samples(self, step: int) -> int:
        return self.schedule.first_sample(step)

    def tokens(self, step: int) -> int:
        """Return the tokens read up to a step, both stacks together: what train/tokens says."""
        return self.samples(step) * self.objective.tokens

    @property
    def flops_per_sample(self) -> int:
        lengths = self.objective
        return flops.training_flops(
            self.config.model, lengths.length, lengths.source_length, lengths.predictions
        )

    @property
    def compute(self) -> int:
        """The FLOPs of the training so far."""
        return self.flops_per_sample * self.samples(self.step)

    @property
    def sources(self) -> list[SourceFacts]:
        """The sources of the config, with what the store counted."""
        sources = self.config.data.sources
        data = self.config.data
        schedule = MixtureSchedule(data.weights, data.mixture_schedule)
        mixture = MixtureStages(schedule, self.schedule)
        samples_read = self.samples(self.step)
        counts = samples_by_source(mixture, samples_read)
        shares = mixture.shares(samples_read)

        # By place: a store that runs share has the names of the run that built it.
        entries = self.data.get("splits", {}).get("train", [])
        entries = entries if len(entries) == len(sources) else [{}] * len(sources)

        return [
            source_facts(source, share, samples, entry, self.objective)
            for source, share, samples, entry in zip(sources, shares, counts, entries, strict=True)
        ]

    @property
    def validation(self) -> ValidationFacts | None:
        """The validation split, if it is known."""
        counts = self.data.get("validation")
        if not counts or not counts.get("bytes"):
            return None

        entries = self.data.get("splits", {}).get("validation", [])
        documents = [entry.get("documents") for entry in entries]
        return ValidationFacts(
            documents=sum(documents) if documents and None not in documents else None,
            tokens=counts["tokens"],
            bytes=counts["bytes"],
            compressed={
                name: 8 * counts[key] / counts["bytes"]
                for name, key in COMPRESSORS.items()
                if counts.get(key) is not None
            },
        )

    @property
    def evaluated_steps(self) -> list[int]:
        """The steps with an evaluation, in order."""
        return list(self.curves.get("eval/loss", {}))

    @property
    def best_step(self) -> int | None:
        """The evaluated step of the lowest eval/loss, or the highest other `checkpoint.best`."""
        best = self.config.checkpoint.best
        values, sign = self.curves.get(best, {}), 1 if best == "eval/loss" else -1
        return min(values, key=lambda step: sign * values[step]) if values else None

    def scores(self, step: int) -> dict[str, float]:
        """Return tag -> value of the evaluation at a step."""
        return {
            tag: values[step]
            for tag, values in self.curves.items()
            if tag.startswith("eval/") and step in values
        }

    def median(self, tag: str) -> float | None:
        return statistics.median(self.curves[tag].values()) if self.curves.get(tag) else None


def gather_facts(
    run_directory: Path,
    config: Config,
    parameters: int,
    step: int | None = None,
    exported: str = "",
) -> Facts:
    """Gather what is known of the model after `step` (None: the last step on record).

    `parameters` is their number. `exported` is the `model_type` of the Hugging Face directory that
    the card is for. What is missing or damaged in the run directory is left out of the card.
    """
    record, saved = read_record(run_directory), read_saved_config(run_directory)
    store = (saved.get("store") or {}).get("hash") or ""
    starts = recorded_starts(record)
    curves = read_metrics(run_directory / "metrics.jsonl")

    if step is None:
        recorded = [start.step for start in starts]
        recorded += [row_step for values in curves.values() for row_step in values]
        step = max(recorded, default=0)

    kept = {}
    for tag, values in curves.items():
        rows = {row_step: values[row_step] for row_step in sorted(values) if row_step <= step}
        if rows:
            kept[tag] = rows

    return Facts(
        name=run_directory.absolute().name,
        run_directory=run_directory,
        config=config,
        parameters=parameters,
        step=step,
        curves=kept,
        starts=tuple(start for start in starts if start.first_step < step),
        data=counts_or_nothing(record.get("data"))
        or counts_or_nothing(read_store_manifest(config, store)),
        store=store,
        versions=saved.get("versions") or {},
        base=read_base(run_directory),
        imported=record.get("imported") or "",
        exported=exported,
    )


def read_saved_config(run_directory: Path) -> dict[str, Any]:
    """Return config.json, with what it holds beside the config; {} if it is missing or damaged."""
    try:
        document = json.loads(read_utf8(run_directory / "config.json"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def read_store_manifest(config: Config, store: str) -> Any:
    """Return the manifest of the store itself, for a run that recorded none; None if it is gone."""
    if not store:
        return None
    try:
        folder = Path(config.data.store).expanduser() / store
        return json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return None


def counts_or_nothing(manifest: Any) -> dict[str, Any]:
    """Return the counts of a manifest; {} if it is none."""
    try:
        return data_counts(manifest)
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}


def read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """Return tag -> step -> value.

    Where a step was run again the later row counts. Damaged rows and values that are not finite
    are left out.
    """
    curves: dict[str, dict[int, float]] = {}

    try:
        with path.open("rb") as lines:
            for row in map(parse_row, lines):
                for tag, value in finite_values(row):
                    curves.setdefault(tag, {})[row["step"]] = value
    except OSError:
        return {}

    return curves


def parse_row(line: bytes) -> dict[str, Any]:
    """Return a row; {} for a damaged one, such as the last row of a killed process."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) and type(row.get("step")) is int else {}


def finite_values(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for tag, value in row.items():
        if tag == "step" or isinstance(value, bool):
            continue
        if isinstance(value, (int, float)) and math.isfinite(value):
            yield tag, value


def sample_lengths(config: Config) -> Objective:
    """Build the objective for a vocabulary of special tokens alone.

    The lengths of its samples depend on nothing else.
    """
    count = config.tokenizer.sentinels
    vocabulary = Vocabulary(
        size=count + 4,
        end_of_text=0,
        special=np.ones(count + 4, bool),
        begin_of_text=None if config.tokenizer.begin_of_text is None else 3,
        pad=1,
        mask=2,
        sentinels=np.arange(4, count + 4, dtype=np.int32),
        denoiser_r=0,
        denoiser_s=0,
        denoiser_x=0,
    )

    return objectives.build(config.objective, config.data.sequence_length, vocabulary, config.model)


def samples_by_source(mixture: Mixture | MixtureStages, samples: int) -> list[int]:
    """Return how many of the first `samples` came from each source, exactly."""
    return mixture.count_samples(samples)


def source_facts(
    source: SourceConfig,
    share: float,
    samples: int,
    entry: Mapping[str, Any],
    objective: Objective,
) -> SourceFacts:
    """Put together what the config and the store's `entry` say of a source."""
    examples, tokens = entry.get("examples", entry.get("pairs")), entry.get("tokens")
    if source.format in SOURCE_FORMATS.values():
        epochs = samples / examples if examples else None
    else:
        epochs = samples * objective.stride / tokens if tokens else None

    return SourceFacts(
        name=source.name,
        format=source.format,
        share=share,
        documents=entry.get("documents"),
        examples=examples,
        tokens=tokens,
        bytes=entry.get("bytes"),
        samples=samples,
        epochs=epochs,
    )
