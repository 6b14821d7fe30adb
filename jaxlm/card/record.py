"""training.json of a run directory: what only the training process knows. An entry for each start, renewed as it goes on.

{"starts": [{"began", "first_step", "step", "seconds", "devices", "device_kind", "processes"}, ...],
 "data": what the store's manifest says of documents, tokens and bytes,
 "imported": "llama"}       of a run that began with the weights of a Hugging Face directory
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.config import UserError

FILE = "training.json"


class Start(NamedTuple):
    """One start of the trainer: what ran the steps after `first_step` up to `step`."""

    began: str  # UTC
    first_step: int
    step: int
    seconds: float  # of the loop, everything included
    devices: int
    device_kind: str
    processes: int


def start(first_step: int, devices: Sequence[Any], processes: int) -> Start:
    """A start that has just begun on these jax devices."""
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Start(
        began, first_step, first_step, 0.0, len(devices), devices[0].device_kind, processes
    )


def record(
    run_directory: Path, start: Start, step: int, seconds: float, manifest: Mapping[str, Any]
) -> None:
    """Notes that `start` has come to `step` after `seconds`, on the data of the store's `manifest`. UserError if it can't be written."""
    document = read(run_directory)
    now = start._replace(step=step, seconds=round(seconds, 3))
    earlier = [
        entry
        for entry in starts(document)
        if (entry.began, entry.first_step) != (start.began, start.first_step)
    ]
    document |= {"starts": [entry._asdict() for entry in (*earlier, now)], "data": digest(manifest)}
    replace(run_directory / FILE, json.dumps(document, indent=1) + "\n")


def imported(run_directory: Path, model_type: str) -> None:
    """Notes that the run's first weights are those of a Hugging Face directory. UserError if it can't be written."""
    replace(
        run_directory / FILE,
        json.dumps(read(run_directory) | {"imported": model_type}, indent=1) + "\n",
    )


def read(run_directory: Path) -> dict[str, Any]:
    """The document; an empty one if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((run_directory / FILE).read_text())
        return found if isinstance(found, dict) else {}
    return {}


def starts(document: Mapping[str, Any]) -> list[Start]:
    """The sound entries, in order."""
    found = document.get("starts")
    return [
        Start(**entry) for entry in (found if isinstance(found, list) else []) if is_start(entry)
    ]


def is_start(entry: Any) -> bool:
    kinds = Start.__annotations__
    return (
        isinstance(entry, dict)
        and entry.keys() == kinds.keys()
        and all(isinstance(entry[name], kinds[name]) for name in kinds)
    )


def digest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of a store's manifest, without its files."""
    kept = ("source", "documents", "pairs", "tokens", "bytes")
    splits = {
        split: [{key: entry[key] for key in kept if key in entry} for entry in of]
        for split, of in manifest["splits"].items()
    }
    return {
        "splits": splits,
        "validation": dict(manifest["validation"]),
        "tokenizer": dict(manifest["tokenizer"]),
    }


def replace(path: Path, text: str) -> None:
    """Writes a file, whole or not at all. UserError names it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: can't be written: {error.strerror}") from error
