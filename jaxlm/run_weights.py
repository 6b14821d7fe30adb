"""The weights of a run: those of a checkpoint, and those that it has from its base.

A run with adapters saves these alone. The frozen weights beside them are those of its base, which
base.json of the run directory names: its path, its step and the hash of its weights.
"""

import dataclasses
import json
from collections.abc import Iterable
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxlm import checkpoint, loss_scaling, models, optim
from jaxlm.base_identity import check_base, hash_params
from jaxlm.checkpoint import Checkpoints
from jaxlm.config import Config, NoCheckpointError, PrecisionConfig, UserError, find_moved
from jaxlm.directories import BASE_FILE
from jaxlm.files import write_atomically
from jaxlm.models import Model
from jaxlm.models.adapters import (
    adapter_part,
    attach_adapters,
    base_part,
    merge_adapters,
    with_frozen,
)
from jaxlm.nn.execution import Execution
from jaxlm.parameter_names import drop, merge, name_of
from jaxlm.run import assemble_optimizer
from jaxlm.sharding import Placement
from jaxlm.state import TrainState
from jaxlm.types import Tree

# Parts of a model's parameters that a base may lack, or that may be left out of those of a base.
HEADS = ("head", "pooler", "classifier")
# Whole stacks that a classifier may do without.
STACKS = ("decoder", "generator")
SHOWN = 3  # names in a message


class Place(NamedTuple):
    """The place of weights: a mesh, the ZeRO stage, and how a model runs there."""

    mesh: Mesh
    zero: int
    execution: Execution
    precision: PrecisionConfig


class BaseRecord(NamedTuple):
    """The weights that a run started from."""

    path: str  # the run directory
    step: int
    hash: str  # of `hash_params`


def write_base_record(directory: Path, record: BaseRecord | None) -> None:
    """Write base.json, unless there is nothing new. Raises UserError if it can't be written."""
    if record is None:
        return
    path = directory / BASE_FILE
    try:
        write_atomically(path, json.dumps(record._asdict(), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"run_directory: can't write {path}: {error.strerror}") from error


def read_base_record(directory: Path) -> BaseRecord:
    """Return what a run has on file about its base. Raises UserError if that can't be read."""
    path = directory / BASE_FILE
    try:
        document = json.loads(path.read_text())
        return BaseRecord(str(document["path"]), int(document["step"]), str(document["hash"]))
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: damaged: put it back") from error


def saves_adapters(config: Config) -> bool:
    """Return whether the checkpoints of a run hold its adapters, and not what its base has."""
    return config.adapter.rank > 0 and config.base is not None


def saved_part(config: Config, state: TrainState) -> TrainState:
    """Return the part of a state, or of what stands for it, that checkpoints hold."""
    if not saves_adapters(config):
        return state
    return state._replace(params=adapter_part(state.params))


def read_weights(
    directory: Path,
    config: Config,
    place: Place,
    *,
    step: int | None = None,
    ema: bool = False,
    merged: bool = True,
) -> tuple[Tree, int]:
    """Return the parameters of a run that are evaluated, and the step of their checkpoint.

    It is the newest one unless `step` is given; with `ema` the average of the weights. Adapters are
    merged into the weights, unless `merged` is False. Raises the errors of `Checkpoints.restore`,
    and NoCheckpointError if there is no checkpoint.
    """
    precision = dataclasses.replace(place.precision, params=config.precision.params)
    model = models.build(config.model, precision, place.execution, config.adapter)
    target = abstract_params(model, place)
    saved = adapter_part(target) if saves_adapters(config) else target

    # The checkpoint is restored to where the parameters belong, shard by shard.
    with Checkpoints.of_run(directory, config.checkpoint) as checkpoints:
        step = checkpoints.latest() if step is None else step
        if step is None:
            raise NoCheckpointError(f"{directory / 'checkpoints'}: there is no checkpoint")
        params = restore_weights(checkpoints, step, model, config, saved, ema=ema)

    if saves_adapters(config):
        record, config = read_base_record(directory), find_moved(config, directory)
        frozen, _ = start_from_base(config, model, target, place, record)
        params = merge(frozen, params)
    if not config.adapter.rank or not merged:
        return params, step

    merge_params = partial(merge_adapters, config.adapter, model.axes)
    placement = Placement(place.mesh, base_part(model.axes), place.zero)
    shardings = placement.tree("parameters", jax.eval_shape(merge_params, target))
    return jax.jit(merge_params, out_shardings=shardings)(params), step


def abstract_params(model: Model, place: Place) -> Tree:
    """Return the parameters of a model as ShapeDtypeStructs with their shardings."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        Placement(place.mesh, model.axes, place.zero).tree("parameters", shapes),
    )


def restore_weights(
    checkpoints: Checkpoints, step: int, model: Model, config: Config, target: Tree, *, ema: bool
) -> Tree:
    """Return the parameters of a checkpoint that are evaluated, placed as `target` says.

    With `ema` they are the average that a run keeps. Imported weights, step 0, have no optimizer
    state. Raises the errors of `Checkpoints.restore`.
    """
    mesh = jax.tree.leaves(target)[0].sharding.mesh
    optimizer_config = with_frozen(config.optimizer, config.adapter, model.axes)
    placement = Placement(mesh, model.axes, 0, frozen=optimizer_config.frozen)

    if ema:
        scales_loss = config.precision.compute == "float16"
        path = ("optimizer", *(["inner"] if scales_loss else []), "average")
        average = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding),
            placement.trainable(target),
        )
        average = reduce(getitem, path, checkpoints.restore_parts(step, {path: average}))
        if not optimizer_config.frozen:
            return average
        return merge(checkpoints.restore_params(step, target), average)

    if optimizer_config.kind != "schedule_free" or step == 0:
        return checkpoints.restore_params(step, target)
    optimizer = assemble_optimizer(config, model.axes, placement)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(optimizer.init, target),
        placement.optimizer_state(optimizer, target),
    )
    parts = checkpoints.restore_parts(step, {("params",): target, ("optimizer",): state})
    optimizer_state = loss_scaling.without_scaling(parts["optimizer"])
    return optim.evaluation_params(optimizer_config, parts["params"], optimizer_state)


# From a base


def start_from_base(
    config: Config, model: Model, target: Tree, place: Place, record: BaseRecord | None = None
) -> tuple[Tree, BaseRecord]:
    """Return the parameters of a `model` that starts from `config.base`, and what they came from.

    `target` are its parameters as ShapeDtypeStructs with shardings. Those of a model with adapters
    are the base's, kept as `adapter.base` says, and fresh adapters. The base is read at its newest
    step or, with a `record`, at that of the record. Raises UserError where the base has other
    parameters, or other values than the record says.
    """
    assert config.base is not None
    directory = Path(config.base)
    if not directory.is_dir():
        raise UserError(f"base: {directory}: there is no such directory, and the weights are there")
    base_config, _ = checkpoint.read_run_config(directory)
    step = record and record.step
    base, step = read_weights(directory, base_config, place, step=step)
    found = BaseRecord(config.base, step, hash_params(base))
    if record is not None:
        check_base(config.base, record.hash, found.hash)

    adapter = config.adapter
    if not adapter.rank:
        return complete(config, model, target, base), found

    plain_model = models.build(config.model, place.precision, place.execution)
    plain_target = abstract_params(plain_model, place)
    plain = complete(config, plain_model, plain_target, base)

    def attach(plain: Tree, key: jax.Array) -> Tree:
        return attach_adapters(adapter, model.axes, plain, model.init(key))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    attached = jax.jit(attach, out_shardings=shardings)(plain, jax.random.key(config.seed))
    return attached, found


def complete(config: Config, model: Model, target: Tree, base: Tree) -> Tree:
    """Return the parameters of a model: those of its base, and fresh ones of a head that it lacks.

    They have the dtypes and shardings of `target`. Raises UserError, with the names, where another
    part of the model is lacking, or has another shape.
    """
    wanted = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
    there = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(base)}
    names = list(dict.fromkeys([*wanted, *there]))
    unlike = [
        name
        for name in names
        if not (name in wanted and name in there and wanted[name].shape == there[name].shape)
    ]
    wrong = [name for name in unlike if not is_head(name) and not is_left_out(name, wanted)]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        shown = ", ".join(wrong[:SHOWN]) + more
        raise UserError(f"base: {config.base} has other parameters than the model: {shown}")

    def fresh(key: jax.Array) -> Tree:
        return drop(model.init(key), lambda name: name not in unlike)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    kept = drop(base, lambda name: name in unlike)
    kept_like = drop(target, lambda name: name in unlike)
    params = jax.jit(
        lambda tree: jax.tree.map(lambda x, like: x.astype(like.dtype), tree, kept_like),
        out_shardings=drop(shardings, lambda name: name in unlike),
    )(kept)
    if not any(name in wanted for name in unlike):
        return params

    added = jax.jit(fresh, out_shardings=drop(shardings, lambda name: name not in unlike))
    return merge(merge(target, params), added(jax.random.key(config.seed)))


def is_left_out(name: str, wanted: Iterable[str]) -> bool:
    """Return whether a parameter of a base is in a stack of which the run has nothing."""
    stack = name.partition(".")[0]
    has_stack = any(other.startswith(f"{stack}.") for other in wanted)
    return stack in STACKS and not has_stack


def is_head(name: str) -> bool:
    """Return whether a parameter belongs to a head, which a run may have in place of its base's."""
    return any(part in HEADS for part in name.split("."))
