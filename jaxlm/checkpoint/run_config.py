"""config.json of a run directory, and what may differ from it when the run is resumed."""

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

from jaxlm.config import Config, ConfigError, TokenizerConfig, UserError, load, to_dict
from jaxlm.config.urls import hide_credentials
from jaxlm.data.schedule import BatchSchedule
from jaxlm.directories import CONFIG_FILE as FILE
from jaxlm.directories import check_run_directory
from jaxlm.files import read_utf8, write_atomically

# Keys and sections that the numbers of a checkpoint depend on, and the exceptions.
FIXED = (
    "model",
    "objective",
    "tokenizer",
    "data",
    "seed",
    "precision.params",
    "optimizer.kind",
    "optimizer.frozen",
    "optimizer.first_moment",
    "optimizer.second_moment",
)
# Keys without which the state of the optimizer has fewer arrays: whether they are set is fixed.
ADDS_STATE = ("optimizer.ema_decay",)
FREE = ("data.store", "data.prefetch_batches", "data.prefetch_threads")
# How much is read of each source. It may change, and is recorded once the sizes of the sources are
# known (`data/mixture_plan.py`).
MIXTURE = re.compile(
    r"data\.mixture_(temperature|schedule)|data\.sources\.\d+\.(weight|tokens|max_epochs)"
)

# The same for imported weights, which have seen no step of the run yet.
FIXED_AT_START = ("model", "tokenizer", "precision.params")
FREE_AT_START = (
    "model.dropout",
    "model.attention_dropout",
    "model.initializer",
    "model.initializer_std",
    "tokenizer.chat_template",
)


def write_run_config(
    run_directory: Path, config: Config, store_hash: str | None, versions: dict[str, str]
) -> None:
    """Write config.json: the config's sections, the hash of the token store, library versions.

    `store_hash` is None where there is no data yet. Raises UserError if the file can't be written.
    """
    document = {**to_dict(config), "store": {"hash": store_hash}, "versions": versions}
    path = run_directory / FILE
    try:
        write_atomically(path, json.dumps(document, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"run_directory: can't write {path}: {error.strerror}") from error


def read_run_config(run_directory: Path) -> tuple[Config, str | None]:
    """Return the saved config and the hash of its token store (None: no data yet).

    Raises UserError naming the file if it is missing, damaged, or not that of a run.
    """
    check_run_directory(run_directory)
    path = run_directory / FILE
    try:
        document = json.loads(read_utf8(path))
    except FileNotFoundError:
        reason = "is missing, and it says which run the checkpoints belong to"
        advice = "put it back, or choose another run_directory"
        raise ConfigError(str(path), f"{reason}: {advice}") from None
    except OSError as error:
        raise ConfigError(str(path), f"can't be read: {error.strerror}") from error
    except (ValueError, RecursionError):
        document = {}  # `load` says what is wrong with the JSON
    if isinstance(document, dict) and "model_type" in document:
        raise UserError(
            f"{path}: is not the config.json of a run: {run_directory} is a Hugging Face directory"
        )

    config = load(path)
    store = document.get("store")
    if not isinstance(store, dict) or "hash" not in store:
        raise ConfigError(str(path), "has no store.hash: it is not the config.json of a run")
    return config, store["hash"]


def resume_config(run_directory: Path, config: Config, step: int) -> tuple[Config, list[str]]:
    """Return the config that holds from `step` on, and one note per change.

    Before `step` the batch schedule is the saved one, from there on that of `config`. The mixture
    is that of `config`: `plan_mixture` brings it together with the saved one. Raises
    UserError if `config` would make another run of the saved one: another model, objective,
    tokenizer, data, seed, dtype of the parameters, kind of optimizer, or arrays of its state. A run
    of imported weights (step 0) may still choose all but the model, the tokenizer and the dtype.
    """
    saved, _ = read_run_config(run_directory)
    config = keep_unbounded(saved, config)
    schedule = batch_schedule(saved).merged(batch_schedule(config), step)
    training = dataclasses.replace(
        config.training, batch_size=schedule.batch_size, batch_schedule=schedule.changes
    )
    resumed = dataclasses.replace(config, training=training)

    changes = differences(saved, resumed)
    before, after = flatten_config(saved), flatten_config(resumed)
    added = {key for key in ADDS_STATE if step and (before[key] is None) != (after[key] is None)}
    if step and (saved.precision.compute == "float16") != (config.precision.compute == "float16"):
        added.add("precision.compute")  # the state of float16 holds the scale of its loss
    refused = [note for key, note in changes.items() if is_fixed(key, step) or key in added]
    refuse_changes(run_directory, refused)
    silent = {"run_directory", *(key for key in changes if step and MIXTURE.fullmatch(key))}
    return resumed, [note for key, note in changes.items() if key not in silent]


def keep_unbounded(saved: Config, config: Config) -> Config:
    """Return the config without the default bound of words if the saved one has none.

    The tokenizers of earlier versions had none, and no config file said so.
    """
    tokenizer = config.tokenizer
    is_default = tokenizer.longest_piece == TokenizerConfig().longest_piece
    if saved.tokenizer.longest_piece is not None or not is_default:
        return config
    unbounded = dataclasses.replace(tokenizer, longest_piece=None)
    return dataclasses.replace(config, tokenizer=unbounded)


def check_store(run_directory: Path, config: Config, store_hash: str) -> None:
    """Raise UserError if the text or the tokenizer's file is not that of the steps before."""
    saved, saved_hash = read_run_config(run_directory)
    if saved_hash == store_hash:
        return

    paths = [note for key, note in differences(saved, config).items() if is_path(key)]
    refuse_changes(run_directory, [*paths, f"prepared data: {saved_hash} -> {store_hash}"])


def refuse_changes(run_directory: Path, changes: list[str]) -> None:
    """Raise UserError if there are `changes`, and propose a directory that is still free."""
    if not changes:
        return

    names = (f"{run_directory}-{number}" for number in itertools.count(2))
    free_name = next(name for name in names if not Path(name).exists())
    raise UserError(
        f"{run_directory} holds a run that differs in {'; '.join(changes)}: "
        f"for a new run set run_directory={free_name}"
    )


def batch_schedule(config: Config) -> BatchSchedule:
    """Return the batch sizes of a config, by step."""
    return BatchSchedule(config.training.batch_size, config.training.batch_schedule)


def is_path(key: str) -> bool:
    """Return whether a key says where text or a tokenizer lies.

    It may change as long as the content, and so the store's hash, stays the same.
    """
    return key.endswith(".path") and key.startswith(("data.", "tokenizer."))


def is_fixed(key: str, step: int) -> bool:
    """Return whether a key may not change when a run is resumed after `step`."""
    fixed, free = (FIXED, FREE) if step else (FIXED_AT_START, FREE_AT_START)
    if key in free or is_path(key) or MIXTURE.fullmatch(key):
        return False
    return any(key == name or key.startswith(f"{name}.") for name in fixed)


def differences(old: Config, new: Config) -> dict[str, str]:
    """Return a note 'key: old -> new' for each value that differs, by its dotted key."""
    before, after = flatten_config(old), flatten_config(new)
    keys = [*before, *(key for key in after if key not in before)]

    notes = {}
    for key in keys:
        old_value, new_value = before.get(key), after.get(key)
        if old_value != new_value:
            notes[key] = f"{key}: {format_value(old_value)} -> {format_value(new_value)}"
    return notes


def flatten_config(config: Config) -> dict[str, Any]:
    """Return the values of a config by dotted key, such as 'data.sources.0.name'."""
    return flatten_value(to_dict(config), "")


def flatten_value(value: Any, key: str) -> dict[str, Any]:
    """Return the values below `key`. Sections in a list are numbered, other lists stay values."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = enumerate(value)
    else:
        return {key: value}

    values = {}
    for name, item in items:
        values |= flatten_value(item, f"{key}.{name}" if key else str(name))
    return values


def format_value(value: Any) -> str:
    """Return a value as an edit on the command line would write it."""
    if value is None:
        return "none"
    return hide_credentials(value) if isinstance(value, str) and value else json.dumps(value)
