"""Share the building of a store among machines: each does its part of a stage.

files       the hashes of the files, which name the store, on one machine
read        the first pass over every n-th unit
tokenizer   duplicates, splits and the tokenizer, on one machine
tokens      the second pass over every n-th unit

A preparation without stages then finds all of that done, and joins it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from jaxlm.config import UserError
from jaxlm.data.building import (
    StoreInputs,
    encode_units,
    extract_units,
    judge_units,
    make_tokenizer,
)
from jaxlm.data.building.extraction import is_extracted
from jaxlm.data.building.judging import read_judgement
from jaxlm.data.building.units import Unit, plan_units
from jaxlm.data.building.workers import Pool
from jaxlm.data.corpus import new_notes, numbered_sources
from jaxlm.data.store import TOKENIZER
from jaxlm.hardware import count_cores

Stage = Literal["files", "read", "tokenizer", "tokens"]


class Part(NamedTuple):
    """The share of one machine: every `count`-th unit, from `number` (of 1 to `count`) on."""

    number: int = 1
    count: int = 1


def run_stage(
    folder: Path,
    inputs: StoreInputs,
    stage: Stage,
    part: Part,
    workers: int | None,
    report: Callable[[str], None],
) -> None:
    """Do a part of a stage. Raises UserError where an earlier stage is not complete."""
    if stage == "files":  # the hashes are there, since the store has a name
        return
    data = inputs.data
    notes = [new_notes(data) for _ in numbered_sources(data)]
    units = plan_units(data, inputs.newlines, notes)
    own = units[part.number - 1 :: part.count]
    with Pool(workers or count_cores()) as pool:
        if stage == "read":
            extract_units(pool, folder, inputs, own)
            report(f"read: {len(own):,} of {len(units):,} units are done")
            return

        if stage == "tokenizer":
            check_extracted(folder, units)
            judged = judge_units(folder, data, units, notes, report)
            make_tokenizer(folder, inputs, judged, report)
            return

        judgement = read_judgement(folder)
        if judgement is None or not (folder / TOKENIZER).exists():
            raise UserError("--stage tokens: the stage before it, --stage tokenizer, is not done")
        encode_units(pool, folder, inputs, own, judgement)
        report(f"tokens: {len(own):,} of {len(units):,} units are done")


def check_extracted(folder: Path, units: Sequence[Unit]) -> None:
    """Raise UserError unless all units have been read."""
    missing = [unit.number for unit in units if not is_extracted(folder, unit)]
    if missing:
        raise UserError(
            f"--stage tokenizer: {len(missing):,} of {len(units):,} units have not been read: "
            "all parts of --stage read come first"
        )
