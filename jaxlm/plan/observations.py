"""Trained runs as a scaling law sees them: parameters, tokens, FLOPs and the final loss of each.

They are read from a CSV, or from run directories by the exact counts of tokens and FLOPs.
"""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm import flops
from jaxlm.card.facts import read_metrics, sample_lengths
from jaxlm.card.training_record import data_counts, read_record
from jaxlm.config import Config, UserError, load
from jaxlm.config.fields import suggestion
from jaxlm.data.schedule import BatchSchedule
from jaxlm.directories import CONFIG_FILE, check_directory
from jaxlm.files import read_utf8

COLUMNS = ("name", "parameters", "tokens", "flops", "loss")
FLOPS_PER_PARAMETER = 6  # and token, where a CSV has no FLOPs: C = 6 N D (arXiv 2001.08361)
FINAL_LOSS = "eval/loss"
REPEATED_EPOCHS = 4  # up to which repeated text is worth nearly as much as new (arXiv 2305.16264)
SMALL_VALIDATION = 2**16  # tokens


class Observation(NamedTuple):
    """One trained run."""

    name: str
    parameters: float
    tokens: float  # read in training
    flops: float  # of the training
    loss: float  # at the end


class Observations(NamedTuple):
    """Trained runs, one in each place of the arrays, which are float64 [n]."""

    names: tuple[str, ...]
    parameters: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray

    @property
    def count(self) -> int:
        return len(self.names)

    def select(self, mask: np.ndarray) -> "Observations":
        """Return the runs whose place in `mask`, bool [n], is true."""
        names = tuple(name for name, kept in zip(self.names, mask, strict=True) if kept)
        return Observations(names, *(array[mask] for array in self[1:]))

    def flops_per_pair(self, parameters: np.ndarray) -> np.ndarray:
        """Return C / (N D) of models with so many parameters, which is 6 by the usual rule.

        It is interpolated over log N between the runs, and beyond them that of the last one.
        """
        x = np.log(self.parameters)
        sizes, places = np.unique(x, return_inverse=True)
        ratios = np.log(self.flops / self.parameters / self.tokens)
        means = np.bincount(places, ratios) / np.bincount(places)
        return np.exp(np.interp(np.log(parameters), sizes, means))


def read_observations(paths: Sequence[str | Path]) -> tuple[Observations, list[str]]:
    """Return the runs of CSV files and directories, and a note on each run that is left out.

    A directory is a run, or holds runs. Raises UserError naming the file and line of a mistake.
    """
    rows: list[Observation] = []
    notes: list[str] = []

    for path in map(Path, paths):
        if path.is_dir():
            found, left_out = read_directory(path)
            rows += found
            notes += left_out
        else:
            rows += read_csv(path)

    return stack_observations(rows), notes


def stack_observations(rows: Sequence[Observation]) -> Observations:
    """Return the arrays of at least one run."""
    names, *columns = zip(*rows, strict=True)
    return Observations(tuple(names), *(np.array(column, np.float64) for column in columns))


# CSV


def read_csv(path: Path) -> list[Observation]:
    """Return the runs of a CSV.

    Its header names `parameters`, `loss`, and `tokens` or `flops` or both; `name` may be there. A
    missing one of tokens and FLOPs follows from C = 6 N D.
    """
    try:
        text = read_utf8(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file or directory") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a CSV in UTF-8") from error

    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    header: list[str] | None = None
    rows = []
    try:
        for cells in reader:
            place = f"{path}:{reader.line_num}"
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if header is None:
                header = check_header(cells, place)
            else:
                rows.append(parse_observation(header, cells, place))
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: is not CSV: {error}") from error

    if header is None:
        raise UserError(f"{path}: is empty: the first line names the columns parameters, ...")
    if not rows:
        raise UserError(f"{path}: has no runs below its header")
    return rows


def check_header(cells: list[str], place: str) -> list[str]:
    """Return the names of the columns. Raises UserError for unknown, doubled and missing ones."""
    names = [cell.lower() for cell in cells]
    for name in names:
        if name not in COLUMNS:
            known = suggestion(name, COLUMNS) or f" (it reads {', '.join(COLUMNS)})"
            raise UserError(f"{place}: unknown column {name!r}{known}")
        if names.count(name) > 1:
            raise UserError(f"{place}: two columns are called {name!r}")

    for name in ("parameters", "loss"):
        if name not in names:
            raise UserError(f"{place}: there is no column {name!r}")
    if "tokens" not in names and "flops" not in names:
        raise UserError(f"{place}: there is no column 'tokens' or 'flops': one of them is needed")
    return names


def parse_observation(header: Sequence[str], cells: Sequence[str], place: str) -> Observation:
    """Return the run of a line at `place` (FILE:LINE)."""
    if len(cells) != len(header):
        raise UserError(f"{place}: has {len(cells)} values, but the header {len(header)} columns")

    text = dict(zip(header, cells, strict=True))
    name = text.pop("name", "") or f"line {place.rpartition(':')[2]}"
    values = {column: parse_number(cell, column, place) for column, cell in text.items()}

    pair = FLOPS_PER_PARAMETER * values["parameters"]
    tokens = values["tokens"] if "tokens" in values else values["flops"] / pair
    compute = values["flops"] if "flops" in values else pair * tokens
    return Observation(name, values["parameters"], tokens, compute, values["loss"])


def parse_number(text: str, column: str, place: str) -> float:
    """Return a finite number above 0. Raises UserError naming the column."""
    if not text:
        raise UserError(f"{place}: {column} is missing")
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{place}: {column} must be a number, got {text!r}") from None
    if not math.isfinite(value) or value <= 0:
        raise UserError(f"{place}: {column} must be a finite number above 0, got {text}")
    return value


# Run directories


def read_directory(path: Path) -> tuple[list[Observation], list[str]]:
    """Return the finished runs in a directory, and notes on the others.

    It is a run itself, or holds runs. Raises UserError where there is none.
    """
    check_directory(path)
    if (path / CONFIG_FILE).exists():
        folders = [path]
    else:
        folders = sorted(file.parent for file in path.glob(f"*/{CONFIG_FILE}"))
    if not folders:
        raise UserError(f"{path}: holds no run: no {CONFIG_FILE} in it or in a folder of it")

    rows, notes = [], []
    for folder in folders:
        run_config = load(folder / CONFIG_FILE)
        loss, problem = read_final_loss(folder, run_config)
        if loss is None:
            notes.append(f"{folder}: left out: {problem}")
        else:
            rows.append(Observation(folder.name, *count_run(run_config), loss))

    if not rows:
        raise UserError(f"{path}: no run is finished ({notes[0].partition(': left out: ')[2]})")
    return rows, [*notes, *note_text(path, {row.name: row.tokens for row in rows})]


def note_text(path: Path, tokens: dict[str, float]) -> list[str]:
    """Return notes on runs that repeat their text often, and on a small validation split.

    `tokens` are those that each run in the directory has read.
    """
    notes, repeating, held_out = [], [], []
    for name, count in tokens.items():
        folder = path if (path / CONFIG_FILE).exists() else path / name
        data = gather_counts(folder)
        distinct = sum(entry["tokens"] for entry in data["splits"]["train"]) if data else 0
        if distinct and count > REPEATED_EPOCHS * distinct:
            repeating.append(f"{name} ({count / distinct:.0f} times)")
        if data and data["validation"]["tokens"]:
            held_out.append(data["validation"]["tokens"])

    if repeating:
        notes.append(
            f"{path}: some runs read their text more than {REPEATED_EPOCHS} times, which is worth "
            f"less than new text (arXiv 2305.16264): {', '.join(repeating)}"
        )
    if held_out and min(held_out) < SMALL_VALIDATION:
        notes.append(
            f"{path}: the validation split has {min(held_out):,} tokens: losses on so little text "
            "scatter; data.validation.share, or method=tail, holds out more"
        )
    return notes


def gather_counts(folder: Path) -> dict[str, Any]:
    """Return the counts of a run's text in training.json; {} where they are missing or damaged."""
    data = read_record(folder).get("data")
    try:
        return data_counts(data) if isinstance(data, dict) else {}
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}


def read_final_loss(folder: Path, run_config: Config) -> tuple[float | None, str]:
    """Return (eval/loss after the last step, ""), or (None, why it is not there).

    A loss before the last step is not final: the learning rate has not come down yet.
    """
    file, steps = folder / "metrics.jsonl", run_config.training.steps
    if not file.exists():
        return None, "it has not been trained"
    if run_config.model.is_classifier:
        return None, "it is a classifier, whose loss is not one per token"
    curves = read_metrics(file)

    loss = curves.get(FINAL_LOSS, {}).get(steps)
    if loss is None:
        last = max((step for values in curves.values() for step in values), default=0)
        return None, f"no {FINAL_LOSS} after its {steps} steps (the last row is of step {last})"
    if loss <= 0:
        raise UserError(f"{file}: {FINAL_LOSS} of step {steps} must be above 0, got {loss}")
    return loss, ""


def count_run(run_config: Config) -> tuple[float, float, float]:
    """Return the parameters, tokens and training FLOPs of a config.

    Tokens are those of both stacks of an encoder-decoder; FLOPs count every matrix product.
    """
    return (
        float(count_parameters(run_config)),
        float(count_samples(run_config) * sample_lengths(run_config).tokens),
        float(count_samples(run_config) * sample_flops(run_config)),
    )


def count_parameters(run_config: Config) -> int:
    """Return the parameters of the model, embeddings included (jax builds its shapes)."""
    from jaxlm import models

    return models.build(run_config.model).parameter_count()


def count_samples(run_config: Config) -> int:
    """Return the samples that a config trains on."""
    training = run_config.training
    schedule = BatchSchedule(training.batch_size, training.batch_schedule)
    return schedule.first_sample(training.steps)


def sample_flops(run_config: Config) -> int:
    """Return the training FLOPs of a sample: every matrix product, forward and backward."""
    lengths = sample_lengths(run_config)
    return flops.training_flops(
        run_config.model, lengths.length, lengths.source_length, lengths.predictions
    )
