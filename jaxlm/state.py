"""The state of a run: one pytree, whose shapes and shardings are known before its arrays exist."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.models import Model
from jaxlm.sharding import Placement
from jaxlm.types import Array, Tree


class TrainState(NamedTuple):
    """Everything that changes from step to step. A checkpoint is this and the config.

    The names of the fields are paths inside checkpoints.
    """

    step: Array  # int32: optimizer steps done
    params: Tree
    optimizer: Tree  # optax state


def initial_state(model: Model, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """Return the state before the first step, as a pure function of the key."""
    params = model.init(key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def state_shapes(model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state as ShapeDtypeStructs."""
    return jax.eval_shape(lambda key: initial_state(model, optimizer, key), jax.random.key(0))


def state_shardings(
    model: Model, optimizer: optax.GradientTransformation, placement: Placement
) -> TrainState:
    """Return the sharding of each array of the state."""
    shapes = state_shapes(model, optimizer)
    return TrainState(
        step=placement.replicated(),
        params=placement.tree("parameters", shapes.params),
        optimizer=placement.optimizer_state(optimizer, shapes.params),
    )


def abstract_state(
    model: Model, optimizer: optax.GradientTransformation, placement: Placement
) -> TrainState:
    """Return the state as ShapeDtypeStructs with shardings: the target of a restore."""
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        state_shapes(model, optimizer),
        state_shardings(model, optimizer, placement),
    )


def create_state(
    model: Model, optimizer: optax.GradientTransformation, placement: Placement, seed: int
) -> TrainState:
    """Create a new state, each shard on its own device. The values don't depend on the mesh."""
    create = jax.jit(
        lambda key: initial_state(model, optimizer, key),
        out_shardings=state_shardings(model, optimizer, placement),
    )
    return create(jax.random.key(seed))


def state_from_params(
    model: Model, optimizer: optax.GradientTransformation, placement: Placement, params: Tree
) -> TrainState:
    """Create a new state around existing parameters, which are placed as `abstract_state` says."""
    shardings = state_shardings(model, optimizer, placement)
    optimizer_state = jax.jit(optimizer.init, out_shardings=shardings.optimizer)(params)
    step = jax.device_put(jnp.zeros((), jnp.int32), shardings.step)
    return TrainState(step, params, optimizer_state)
