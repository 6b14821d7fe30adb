"""Describe a store that is built: its manifest, and what the reading of its sources found."""

import gzip
import lzma
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config import DataConfig, SourceConfig
from jaxlm.data.building.extraction import Extract, merge_notes
from jaxlm.data.building.judging import Judgement
from jaxlm.data.building.units import Unit
from jaxlm.data.corpus import numbered_sources
from jaxlm.data.documents import EXAMPLE_FORMATS, record_shape
from jaxlm.data.reading_notes import ReadingNotes
from jaxlm.data.split import SPLITS, TRAIN, VALIDATION, SourceSplit, SplitSize, total_size
from jaxlm.data.store import count_tokens
from jaxlm.data.tokenizer import Tokenizer

COMPRESSED_BYTES = 16_000_000  # largest validation text that is compressed, as a yardstick


def describe_manifest(
    dtype: str,
    tokenizer: Tokenizer,
    entries: Mapping[SourceSplit, dict[str, Any]],
    curation: dict[str, Any],
    fertility: dict[str, Any],
    validation: dict[str, Any],
) -> dict[str, Any]:
    """Return the manifest of a store, but for its inputs."""
    return {
        "dtype": dtype,
        "tokenizer": {
            "hash": tokenizer.hash,
            "size": tokenizer.size,
            "end_of_text": tokenizer.end_of_text,
        },
        "splits": {
            split: [entry for (_, name), entry in entries.items() if name == split]
            for split in SPLITS
        },
        "dropped": {
            name: {reason: size["documents"] for reason, size in source["dropped"].items()}
            for name, source in curation["sources"].items()
        },
        "curation": curation,
        "fertility": fertility,
        "validation": validation,
    }


def describe_parts(
    data: DataConfig, units: Sequence[Unit], judgement: Judgement
) -> list[dict[str, Any]]:
    """Return what is known of the training split of each source before its tokens are there."""
    return [
        describe_text(data, source, judgement.sizes[source, TRAIN])
        | {
            "documents": judgement.sizes[source, TRAIN].documents,
            "units": [unit.name for unit in units if unit.source == source],
        }
        for source in range(len(data.sources))
    ]


def report_notes(
    data: DataConfig,
    notes: Sequence[ReadingNotes],
    extracts: Sequence[Extract],
    report: Callable[[str], None],
) -> None:
    """Report what reading each source found; the `notes` get it."""
    for number, (source, _) in enumerate(numbered_sources(data)):
        of_source = [extract for extract in extracts if extract.unit.source == number]
        merge_notes(notes[number], of_source)
        for line in notes[number].lines(source.name):
            report(line)


def describe_text(data: DataConfig, source: int, size: SplitSize) -> dict[str, Any]:
    """Return what the manifest says of a source's text.

    A record with several parts counts as so many documents.
    """
    config: SourceConfig = numbered_sources(data)[source].config
    entry: dict[str, Any] = {"source": config.name, "bytes": size.bytes}
    if config.format == "pairs":
        entry["pairs"] = size.documents
    elif config.format in EXAMPLE_FORMATS:
        entry |= {
            "examples": size.documents,
            "parts": record_shape(config).parts,
            "format": config.format,
        }
    return entry


def count_text(folder: Path, entry: dict[str, Any]) -> dict[str, int]:
    """Return the tokens of the texts of examples, whose parts end with one more."""
    if "examples" not in entry:
        return {}
    offsets = np.fromfile(folder / entry["offsets"], "<i8")
    lengths = np.diff(offsets).reshape(-1, entry["parts"]) - 1
    has_numbers = entry["format"] != "preferences"
    return {"text_tokens": int(lengths[:, : entry["parts"] - has_numbers].sum())}


def is_compressed(judgement: Judgement) -> bool:
    """Return whether the validation text is small enough to be compressed."""
    return total_size(judgement.sizes, VALIDATION).bytes <= COMPRESSED_BYTES


def read_validation_text(folder: Path, units: Sequence[Unit], judgement: Judgement) -> bytes | None:
    """Return the validation text; None for a large one."""
    if not is_compressed(judgement):
        return None
    return b"".join((folder / f"part-{unit.name}.validation").read_bytes() for unit in units)


def measure_validation(
    folder: Path,
    units: Sequence[Unit],
    judgement: Judgement,
    entries: Mapping[SourceSplit, dict[str, Any]],
) -> dict[str, Any]:
    """Return tokens and bytes of the validation split, and its size after common compressors."""
    size = total_size(judgement.sizes, VALIDATION)
    text = read_validation_text(folder, units, judgement)
    held_out = [entry for (_, split), entry in entries.items() if split == VALIDATION]
    return {
        "bytes": size.bytes,
        "tokens": sum(map(count_tokens, held_out)),
        "gzip_bytes": None if text is None else len(gzip.compress(text, 9, mtime=0)),
        "xz_bytes": None if text is None else len(lzma.compress(text, preset=9)),
    }
