"""training.json of a run directory: what only the training process knows.

    {"starts": [{"began", "first_step", "step", "seconds", "devices", "device_kind",
                 "processes"}, ...],
     "data": what the store's manifest says of documents, tokens and bytes,
     "imported": "llama"}       where the first weights came from a Hugging Face directory

Every start of the trainer has an entry, which is rewritten at each save.
"""

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm import files
from jaxlm.config import UserError
from jaxlm.directories import BASE_FILE

RECORD_FILE = "training.json"
HASH_DIGITS = 16  # of the hash of a base, in a card


class TrainingStart(NamedTuple):
    """One start of the trainer: what ran the steps after `first_step` up to `step`."""

    began: str  # UTC
    first_step: int
    step: int
    seconds: float  # of the loop, everything included
    devices: int
    device_kind: str
    processes: int


def new_start(first_step: int, devices: Sequence[Any], processes: int) -> TrainingStart:
    """Return the entry of a start that has just begun on these jax devices."""
    return TrainingStart(
        began=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        first_step=first_step,
        step=first_step,
        seconds=0.0,
        devices=len(devices),
        device_kind=devices[0].device_kind,
        processes=processes,
    )


def record_progress(
    run_directory: Path,
    start: TrainingStart,
    step: int,
    seconds: float,
    manifest: Mapping[str, Any],
) -> None:
    """Record that `start` has reached `step` after `seconds`.

    The counts of the store's `manifest` are recorded with it. Raises UserError if the file can't
    be written.
    """
    document = read_record(run_directory)
    earlier = [
        entry
        for entry in recorded_starts(document)
        if (entry.began, entry.first_step) != (start.began, start.first_step)
    ]
    current = start._replace(step=step, seconds=round(seconds, 3))

    document["starts"] = [entry._asdict() for entry in (*earlier, current)]
    document["data"] = data_counts(manifest)
    write_record(run_directory, document)


def record_import(run_directory: Path, model_type: str) -> None:
    """Record that the run's first weights are those of a Hugging Face directory."""
    write_record(run_directory, read_record(run_directory) | {"imported": model_type})


def read_base(run_directory: Path) -> dict[str, Any]:
    """Return name, step and hash of the base of a run, from base.json; {} where it has none."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        document = json.loads(files.read_utf8(run_directory / BASE_FILE))
        return {
            "name": Path(document["path"]).absolute().name,
            "step": int(document["step"]),
            "hash": str(document["hash"])[:HASH_DIGITS],
        }
    return {}


def read_record(run_directory: Path) -> dict[str, Any]:
    """Return the document; an empty one if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        document = json.loads(files.read_utf8(run_directory / RECORD_FILE))
        return document if isinstance(document, dict) else {}
    return {}


def write_record(run_directory: Path, document: Mapping[str, Any]) -> None:
    write_card_file(run_directory / RECORD_FILE, json.dumps(document, indent=1) + "\n")


def write_card_file(path: Path, text: str) -> None:
    """Write a file, all of it or nothing. Raises UserError naming it."""
    try:
        files.write_atomically(path, text)
    except OSError as error:
        raise UserError(f"{path}: can't be written: {error.strerror}") from error


def recorded_starts(document: Mapping[str, Any]) -> list[TrainingStart]:
    """Return the undamaged entries, in order."""
    entries = document.get("starts")
    if not isinstance(entries, list):
        return []
    return [TrainingStart(**entry) for entry in entries if is_start(entry)]


def is_start(entry: Any) -> bool:
    """Whether the entry has the fields of a TrainingStart, of the right types."""
    types = TrainingStart.__annotations__
    return (
        isinstance(entry, dict)
        and entry.keys() == types.keys()
        and all(isinstance(entry[name], types[name]) for name in types)
    )


def data_counts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts of a store's manifest, without its files."""
    kept = ("source", "documents", "pairs", "examples", "tokens", "bytes")
    splits = {
        split: [{key: entry[key] for key in kept if key in entry} for entry in entries]
        for split, entries in manifest["splits"].items()
    }
    return {
        "splits": splits,
        "dropped": {name: dict(counts) for name, counts in manifest.get("dropped", {}).items()},
        "validation": dict(manifest["validation"]),
        "tokenizer": dict(manifest["tokenizer"]),
    }
