"""Predict what a preparation yields, and how long it takes, from a sample of the files.

The sample is an evenly spread choice of the files of each source. Of a large file the first part is
taken; so compressed files count with the size that they have on the disk. The sample is prepared as
the whole would be, in a temporary folder, and what comes out is scaled by the size of the files.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxlm.columns import align_columns
from jaxlm.config import (
    ConfigError,
    CurationConfig,
    DataConfig,
    TokenizerConfig,
    UserError,
)
from jaxlm.data.building.label_counts import KEY as LABELS
from jaxlm.data.building.units import UNIT_BYTES
from jaxlm.data.documents import RECORD_SHAPES
from jaxlm.data.examples import ExampleSpec
from jaxlm.data.file_samples import Sample, take_samples
from jaxlm.data.preparation import prepare
from jaxlm.data.report import describe_store, show_bytes
from jaxlm.data.rules import Predicate
from jaxlm.data.store import TOKENIZER, Store
from jaxlm.hardware import count_cores
from jaxlm.progress import format_duration

OFFSET_BYTES = 8  # of a document in a store
UNREADABLE = "unreadable"


def estimate_preparation(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    vocabulary_size: int,
    needs: tuple[str, ...],
    megabytes: float,
    predicate: Predicate | None = None,
    examples: ExampleSpec | None = None,
) -> dict[str, Any]:
    """Return the estimated yield, size and time of a preparation as JSON data.

    `megabytes` (10^6 bytes of files) is the size of the sample. `sources` has for each name the
    keys of `describe_store`, scaled, and `files`, `file_bytes`, `sample_bytes`; `total` has the
    sums and `store_bytes`, `seconds`, `tokenizer_seconds`. Nothing is left on the disk. Raises what
    `prepare` raises.
    """
    with tempfile.TemporaryDirectory(prefix="jaxlm-dry-run-") as name:
        folder = Path(name)
        sampled, samples = take_samples(data, folder, megabytes * 1e6)
        store, seconds, training = time_preparation(
            sampled, tokenizer, vocabulary_size, needs, folder, predicate, examples
        )
        facts = describe_store(store)

    by_name = {sample.config.name: sample for sample in samples}
    sources = {
        name: scale_source(source, by_name[name]) for name, source in facts["sources"].items()
    }
    total = {
        key: sum(source[key] for source in sources.values())
        for key in ("files", "file_bytes", "sample_bytes", "documents", "kept", "bytes", "tokens")
    }
    read = sum(source["bytes"] for source in facts["sources"].values())
    itemsize = 4 if store.manifest["dtype"] == "uint32" else 2
    total |= {
        "store_bytes": total["tokens"] * itemsize + total["kept"] * OFFSET_BYTES,
        "tokenizer_seconds": scale_training(tokenizer, training, read, total["bytes"]),
    }
    # The sample is prepared by one process; of more text each core takes a part.
    workers = min(count_cores(), total["file_bytes"] // UNIT_BYTES + 1)
    passes = seconds * total["file_bytes"] / max(total["sample_bytes"], 1) / workers
    total["seconds"] = passes + total["tokenizer_seconds"]
    return {
        "sources": sources,
        "total": total,
        "sample_seconds": seconds,
        "duplicates": data.curation != CurationConfig(),
        "fails": data.on_error == "fail"
        and any(source["dropped"].get(UNREADABLE) for source in sources.values()),
    }


# --- the preparation ---


def time_preparation(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    vocabulary_size: int,
    needs: tuple[str, ...],
    folder: Path,
    predicate: Predicate | None,
    examples: ExampleSpec | None,
) -> tuple[Store, float, float]:
    """Return the store of a sample, the seconds that it took, and those of training a tokenizer.

    A tokenizer that is trained makes it two preparations: the second one loads it.
    """
    started = time.monotonic()
    store = prepare_sample(data, tokenizer, vocabulary_size, needs, predicate, examples)
    seconds = time.monotonic() - started
    if tokenizer.kind != "bpe":
        return store, seconds, 0.0

    loaded = replace(tokenizer, kind="file", path=str(store.path / TOKENIZER), vocabulary_size=None)
    data = replace(data, store=str(folder / "again"))
    started = time.monotonic()
    store = prepare_sample(data, loaded, vocabulary_size, needs, predicate, examples)
    passes = time.monotonic() - started
    return store, passes, max(seconds - passes, 0.0)


def prepare_sample(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    vocabulary_size: int,
    needs: tuple[str, ...],
    predicate: Predicate | None,
    examples: ExampleSpec | None,
) -> Store:
    """Return the store of a sample. One of too few documents is divided by its tail."""

    def prepare_data(data: DataConfig) -> Store:
        return prepare(
            data,
            tokenizer,
            vocabulary_size,
            ignore_line,
            needs=needs,
            workers=1,
            predicate=predicate,
            examples=examples,
        )

    try:
        return prepare_data(data)
    except ConfigError as error:
        if error.path == LABELS:
            raise UserError(f"--sample-megabytes: {error.reason}: raise it") from error
        if data.validation.method != "hash" or not error.path.startswith("data.validation"):
            raise
        if any(source.format in RECORD_SHAPES for source in data.sources):
            reason = "the sample has too few pairs or examples to hold some out"
            raise UserError(f"--sample-megabytes: {reason}: raise it") from error

    validation = replace(data.validation, method="tail")
    return prepare_data(replace(data, validation=validation))


def ignore_line(line: str) -> None:
    """Leave out what a preparation reports: it is about the sample."""


# --- the estimate ---


def scale_source(source: dict[str, Any], sample: Sample) -> dict[str, Any]:
    """Return what `describe_store` says of a sample, scaled to its source."""
    dropped = dict(source["dropped"])
    # The end of a file that was cut is no fault of the file.
    faults = max(dropped.pop(UNREADABLE, 0) - sample.cuts, 0)
    if faults:
        dropped[UNREADABLE] = faults
    documents = source["kept"] + sum(dropped.values())

    factor = sample.factor
    if sample.config.documents is not None:
        factor = min(factor, sample.config.documents / max(documents, 1))
    scaled = {
        key: round(value * factor)
        for key, value in {**source, "documents": documents}.items()
        if key in ("documents", "kept", "bytes", "tokens")
    }
    return {
        **scaled,
        "dropped": {reason: round(count * factor) for reason, count in dropped.items()},
        "files": sample.files,
        "file_bytes": sample.total_bytes,
        "sample_bytes": sample.sample_bytes,
    }


def scale_training(
    tokenizer: TokenizerConfig, seconds: float, sample_bytes: int, total_bytes: int
) -> float:
    """Return the seconds that a tokenizer is trained for on the text of all files."""
    limit = tokenizer.training_megabytes * 1e6
    return seconds * min(limit, total_bytes) / max(min(limit, sample_bytes), 1)


def format_estimate(estimate: dict[str, Any]) -> str:
    """Return the table of an estimate, and lines on what it says and what it can't."""
    lines: list[tuple[str, ...]] = [
        ("source", "files", "of it read", "documents", "kept", "bytes", "tokens")
    ]
    for name, source in estimate["sources"].items():
        read = source["sample_bytes"] / max(source["file_bytes"], 1)
        counts = [round_count(source[key]) for key in ("documents", "kept", "bytes", "tokens")]
        lines.append((name, show_bytes(source["file_bytes"]), f"{100 * read:.3g}%", *counts))

    total = estimate["total"]
    notes = [
        f"estimate from {show_bytes(total['sample_bytes'])} of {show_bytes(total['file_bytes'])} "
        f"in files: a store of about {show_bytes(total['store_bytes'])} with "
        f"{round_count(total['tokens'])} tokens, in about {format_duration(total['seconds'])} "
        "on this machine",
    ]
    if total["sample_bytes"] < total["file_bytes"]:
        notes.append(
            "it holds as far as the rest of the files is like the sample; a larger one "
            "(--sample-megabytes) shows how much it varies"
        )
    if estimate["duplicates"]:
        notes.append(
            "duplicates are compared within the sample alone: the whole has more of them, so less "
            "is kept"
        )
    if estimate["fails"]:
        notes.append(
            "warning: the sample has records that can't be read, at which the preparation ends "
            "(data.on_error=skip leaves them out)"
        )
    return "\n".join([align_columns(lines), *notes])


def round_count(value: int) -> str:
    """Return a number with three digits that count: 1234567 as '1,230,000'."""
    digits = len(str(value)) - 3
    return f"{round(value, -digits) if digits > 0 else value:,}"
