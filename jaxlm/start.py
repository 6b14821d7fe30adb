"""The state from which a process trains: fresh, of a base, imported or resumed."""

import dataclasses
import enum
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import jax

from jaxlm import checkpoint, models
from jaxlm.checkpoint import Checkpoints
from jaxlm.config import NoCheckpointError, UserError
from jaxlm.load_model import restore_weights
from jaxlm.models.adapters import attach_adapters, base_part, merge_adapters
from jaxlm.parameter_names import drop, merge, name_of
from jaxlm.run import Run
from jaxlm.sharding import Placement
from jaxlm.state import TrainState, abstract_state, create_state, state_from_params
from jaxlm.types import Tree

# Parts of a model's parameters that a base may lack, or that may be left out of those of a base.
HEADS = ("head", "pooler", "classifier")
# Whole stacks that a classifier may do without.
STACKS = ("decoder", "generator")
SHOWN = 3  # names in a message


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


def build_state(run: Run, start: Start, checkpoints: Checkpoints) -> TrainState:
    """Return the state before the first step, each shard on its own device."""
    parts = run.model, run.optimizer, run.placement

    if start.origin is Origin.FRESH:
        return create_state(*parts, run.config.seed)
    if start.origin is Origin.RESUMED:
        return checkpoints.restore(start.step, abstract_state(*parts))
    if start.origin is Origin.BASE:
        return state_from_params(*parts, base_params(run))

    # An import saves weights alone: the optimizer starts anew.
    params = checkpoints.restore_params(start.step, abstract_state(*parts).params)
    return state_from_params(*parts, params)


def base_params(run: Run) -> Tree:
    """Return the parameters of a run that starts from its base, on the run's mesh.

    Those of a run with adapters are the base's, kept as `adapter.base` says, and fresh adapters.
    """
    config, adapter = run.config, run.config.adapter
    if not adapter.rank:
        return complete(run, read_base(run))

    plain_model = models.build(config.model, config.precision, run.execution)
    placement = run.placement._replace(axes=plain_model.axes)
    plain_run = run._replace(model=plain_model, placement=placement)
    plain = complete(plain_run, read_base(run))

    def attach(plain: Tree, key: jax.Array) -> Tree:
        return attach_adapters(adapter, run.model.axes, plain, run.model.init(key))

    shapes = abstract_state(run.model, run.optimizer, run.placement).params
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    return jax.jit(attach, out_shardings=shardings)(plain, jax.random.key(config.seed))


def read_base(run: Run) -> Tree:
    """Return the parameters of the run's base that are evaluated, on the run's mesh.

    Raises UserError if `config.base` is no run, NoCheckpointError if it has no sound checkpoint.
    """
    assert run.config.base is not None
    directory = Path(run.config.base)
    config, _ = checkpoint.read_run_config(directory)
    precision = dataclasses.replace(run.config.precision, params=config.precision.params)
    model = models.build(config.model, precision, run.execution, config.adapter)
    placement = Placement(run.placement.mesh, model.axes, run.placement.zero)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        placement.tree("parameters", shapes),
    )
    with Checkpoints.of_run(directory, config.checkpoint) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise NoCheckpointError(f"base: {directory / 'checkpoints'}: there is no checkpoint")
        print(f"base: {directory} after step {step}", flush=True)
        params = restore_weights(checkpoints, step, model, config, target, ema=False)
    if not config.adapter.rank:
        return params

    # The adapters of the base become a part of its weights.
    merge_params = partial(merge_adapters, config.adapter, model.axes)
    plain = placement._replace(axes=base_part(model.axes))
    shardings = plain.tree("parameters", jax.eval_shape(merge_params, shapes))
    return jax.jit(merge_params, out_shardings=shardings)(params)


def complete(run: Run, base: Tree) -> Tree:
    """Return the parameters of a run: those of its base, and fresh ones of a head that it lacks.

    They have the run's dtype and shardings. Raises UserError, with the names, where another part of
    the model is lacking, or has another shape.
    """
    abstract = abstract_state(run.model, run.optimizer, run.placement).params
    wanted = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
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
        raise UserError(f"base: {run.config.base} has other parameters than the model: {shown}")

    def fresh(key: jax.Array) -> Tree:
        return drop(run.model.init(key), lambda name: name not in unlike)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    kept = drop(base, lambda name: name in unlike)
    kept_like = drop(abstract, lambda name: name in unlike)
    params = jax.jit(
        lambda tree: jax.tree.map(lambda x, like: x.astype(like.dtype), tree, kept_like),
        out_shardings=drop(shardings, lambda name: name in unlike),
    )(kept)
    if not any(name in wanted for name in unlike):
        return params

    added = jax.jit(fresh, out_shardings=drop(shardings, lambda name: name not in unlike))
    return merge(merge(abstract, params), added(jax.random.key(run.config.seed)))


def is_left_out(name: str, wanted: Iterable[str]) -> bool:
    """Return whether a parameter of a base is in a stack of which the run has nothing."""
    stack = name.partition(".")[0]
    has_stack = any(other.startswith(f"{stack}.") for other in wanted)
    return stack in STACKS and not has_stack


def is_head(name: str) -> bool:
    """Return whether a parameter belongs to a head, which a run may have in place of its base's."""
    return any(part in HEADS for part in name.split("."))
