"""config.json of a run directory, and what may differ from it when the run is resumed. Plain data."""

import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any

from jaxlm.config import Config, ConfigError, UserError, load, to_dict
from jaxlm.data.schedule import BatchSchedule

FILE = "config.json"
FIXED = (
    "model",
    "objective",
    "tokenizer",
    "data",
    "seed",
    "precision.params",
    "optimizer.kind",
)  # what a checkpoint's numbers depend on
FREE = ("data.store", "data.prefetch_batches", "data.prefetch_threads")
# Of a run that has weights but no step yet, as an import leaves it: what the weights are of.
FIXED_AT_START = ("model", "tokenizer", "precision.params")
FREE_AT_START = (
    "model.dropout",
    "model.attention_dropout",
    "model.initializer",
    "model.initializer_std",
)


def write_run_config(
    run_directory: Path, config: Config, store_hash: str | None, versions: dict[str, str]
) -> None:
    """Writes config.json: the config's sections, the hash of the token store (None: no data yet) and library versions. Replaces it
    atomically."""
    document = {**to_dict(config), "store": {"hash": store_hash}, "versions": versions}
    partial = run_directory / f".{FILE}.{os.getpid()}"
    try:
        with partial.open("w") as file:
            file.write(json.dumps(document, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(run_directory / FILE)
    except OSError as error:
        raise UserError(
            f"run_directory: can't write {run_directory / FILE}: {error.strerror}"
        ) from error


def read_run_config(run_directory: Path) -> tuple[Config, str | None]:
    """The saved config and its store's hash (None: no data yet). Raises ConfigError naming the file if it is missing or damaged."""
    path = run_directory / FILE
    try:
        config = load(path)
        return config, json.loads(path.read_text())["store"]["hash"]
    except OSError as error:
        raise ConfigError(str(path), f"can't be read: {error.strerror}") from error
    except (KeyError, TypeError) as error:
        raise ConfigError(
            str(path), "has no store.hash: it is not the config.json of a run"
        ) from error


def resume_config(run_directory: Path, config: Config, step: int) -> tuple[Config, list[str]]:
    """(the config that holds from `step` on, one note per change) for a run saved in `run_directory`.

    Before `step` the batch schedule is the saved one, from there on the asked-for one. Raises UserError if `config` would make
    another run of it: another model, objective, tokenizer, data, seed, dtype of the parameters or kind of optimizer. A run that
    has only begun (step 0) may still choose all but the model, the tokenizer and the dtype.
    """
    saved, _ = read_run_config(run_directory)
    effective = with_schedule(config, schedule(saved).merged(schedule(config), step))
    changes = differences(to_dict(saved), to_dict(effective))
    refuse(run_directory, [change for key, change in changes.items() if is_fixed(key, step)])
    return effective, [change for key, change in changes.items() if key != "run_directory"]


def check_store(run_directory: Path, config: Config, store_hash: str) -> None:
    """UserError if the run was trained on another token store: the text or the tokenizer's file has changed."""
    saved, saved_hash = read_run_config(run_directory)
    if saved_hash != store_hash:
        changes = differences(to_dict(saved), to_dict(config))
        refuse(
            run_directory,
            [
                *(change for key, change in changes.items() if is_path(key)),
                f"prepared data: {saved_hash} -> {store_hash}",
            ],
        )


def refuse(run_directory: Path, changes: list[str]) -> None:
    if changes:
        fresh = fresh_name(run_directory)
        raise UserError(
            f"{run_directory} holds a run that differs in {'; '.join(changes)}: for a new run set run_directory={fresh}"
        )


def schedule(config: Config) -> BatchSchedule:
    return BatchSchedule(config.training.batch_size, config.training.batch_schedule)


def with_schedule(config: Config, schedule: BatchSchedule) -> Config:
    training = dataclasses.replace(
        config.training, batch_size=schedule.batch_size, batch_schedule=schedule.changes
    )
    return dataclasses.replace(config, training=training)


def is_path(key: str) -> bool:
    """Where text or a tokenizer lies: free to change as long as the content, and so the store's hash, is the same."""
    return key.endswith(".path") and key.startswith(("data.", "tokenizer."))


def is_fixed(key: str, step: int) -> bool:
    fixed, free = (FIXED, FREE) if step else (FIXED_AT_START, FREE_AT_START)
    return (
        key not in free
        and not is_path(key)
        and any(key == name or key.startswith(name + ".") for name in fixed)
    )


def differences(old: dict, new: dict) -> dict[str, str]:
    """Dotted key -> 'key: old -> new' of every value that differs."""
    before, after = flat(old), flat(new)
    keys = [*before, *(key for key in after if key not in before)]
    pairs = {key: (before.get(key), after.get(key)) for key in keys}
    return {key: f"{key}: {shown(a)} -> {shown(b)}" for key, (a, b) in pairs.items() if a != b}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys; sections in a list are numbered, other lists stay values."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = enumerate(value)
    else:
        return {path: value}
    return {
        key: leaf
        for name, item in items
        for key, leaf in flat(item, f"{path}.{name}" if path else str(name)).items()
    }


def shown(value: Any) -> str:
    """A value as an edit on the command line would write it."""
    if value is None:
        return "none"
    return value if isinstance(value, str) and value else json.dumps(value)


def fresh_name(run_directory: Path) -> str:
    """The first of DIR-2, DIR-3, ... that doesn't exist."""
    names = (f"{run_directory}-{number}" for number in itertools.count(2))
    return next(name for name in names if not Path(name).exists())
