"""The state of a run: one pytree, abstract first, arrays last."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.models import Model
from jaxlm.sharding import Placement
from jaxlm.types import Array, Tree


class TrainState(NamedTuple):
    """All that changes from step to step. The config and this are a checkpoint."""

    step: Array  # int32: optimizer steps done
    params: Tree
    optimizer: Tree  # optax state


def state_shapes(model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """The state as ShapeDtypeStructs."""
    return jax.eval_shape(lambda key: initial_state(model, optimizer, key), jax.random.key(0))


def initial_state(model: Model, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """The state before the first step, as a pure function of the key."""
    params = model.init(key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def state_shardings(
    model: Model, optimizer: optax.GradientTransformation, placement: Placement
) -> TrainState:
    """Where each part of the state lives."""
    abstract = state_shapes(model, optimizer)
    return TrainState(
        placement.replicated(),
        placement.tree("parameters", abstract.params),
        placement.optimizer_state(optimizer, abstract.params),
    )


def abstract_state(
    model: Model, optimizer: optax.GradientTransformation, placement: Placement
) -> TrainState:
    """ShapeDtypeStructs with shardings: the target of a restore."""
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        state_shapes(model, optimizer),
        state_shardings(model, optimizer, placement),
    )


def state_from_params(
    model: Model, optimizer: optax.GradientTransformation, placement: Placement, params: Tree
) -> TrainState:
    """A new state around parameters that are there already, placed as `abstract` says."""
    where = state_shardings(model, optimizer, placement)
    moments = jax.jit(optimizer.init, out_shardings=where.optimizer)(params)
    return TrainState(jax.device_put(jnp.zeros((), jnp.int32), where.step), params, moments)


def create_state(
    model: Model, optimizer: optax.GradientTransformation, placement: Placement, seed: int
) -> TrainState:
    """A new state, each shard made on its own device; the values don't depend on the mesh."""
    make = jax.jit(
        lambda key: initial_state(model, optimizer, key),
        out_shardings=state_shardings(model, optimizer, placement),
    )
    return make(jax.random.key(seed))
