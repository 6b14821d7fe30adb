"""The state from which a process trains: fresh, of a base, imported or resumed."""

import dataclasses
import enum
from pathlib import Path

from jaxlm.checkpoint import Checkpoints
from jaxlm.parameter_names import merge
from jaxlm.run import Run
from jaxlm.run_weights import (
    BaseRecord,
    Place,
    read_base_record,
    saved_part,
    saves_adapters,
    start_from_base,
)
from jaxlm.state import TrainState, abstract_state, create_state, state_from_params

TUNES = ("instruction", "classify", "preference")  # objectives that are usually given a base


class Origin(enum.Enum):
    """The source of the state from which this process trains."""

    FRESH = "random weights"
    BASE = "the weights of another run"
    IMPORTED = "weights without an optimizer state, saved as step 0 by an import"
    RESUMED = "a whole state, saved after a step"


@dataclasses.dataclass(frozen=True)
class Start:
    """The point from which this process trains: the origin of its state, and the steps done."""

    origin: Origin
    step: int


def find_start(newest: int | None, base: str | None = None) -> Start:
    """Return where a run starts whose newest checkpoint is of step `newest` (None: it has none).

    `base` is the run that a new one takes its weights from.
    """
    if newest is None:
        return Start(Origin.FRESH if base is None else Origin.BASE, 0)
    return Start(Origin.RESUMED if newest else Origin.IMPORTED, newest)


def build_state(
    run: Run, start: Start, checkpoints: Checkpoints, directory: Path
) -> tuple[TrainState, BaseRecord | None]:
    """Return the state before the first step, each shard on its own device.

    The second result is what to record of the base of a new run; None where there is nothing new.
    `directory` is that of the run, which has the record of an earlier start.
    """
    parts, config = (run.model, run.optimizer, run.placement), run.config
    if start.origin is Origin.FRESH:
        if config.objective.kind in TUNES:
            print("warning: base is not set: the model starts from random weights", flush=True)
        return create_state(*parts, config.seed), None

    place = Place(run.placement.mesh, run.placement.zero, run.execution, config.precision)
    target = abstract_state(*parts)
    if start.origin is Origin.BASE:
        params, record = start_from_base(config, run.model, target.params, place)
        print(f"base: {config.base} after step {record.step}", flush=True)
        return state_from_params(*parts, params), record

    frozen, saved = None, saved_part(config, target)
    if saves_adapters(config):
        record = read_base_record(directory)
        frozen, _ = start_from_base(config, run.model, target.params, place, record)

    if start.origin is Origin.RESUMED:
        state = checkpoints.restore(start.step, saved)
        if frozen is not None:
            state = state._replace(params=merge(frozen, state.params))
        return state, None

    # An import saves weights alone: the optimizer starts anew.
    params = checkpoints.restore_params(start.step, saved.params)
    if frozen is not None:
        params = merge(frozen, params)
    return state_from_params(*parts, params), None
