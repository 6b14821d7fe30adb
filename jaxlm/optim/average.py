"""The average of the weights that a run keeps beside them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.types import Array, Tree


class AveragedState(NamedTuple):
    """The state of an optimizer, and the average of the weights that it has made.

    The names of the fields are paths inside checkpoints.
    """

    count: Array  # int32: weights that the average has seen, beside the first
    average: Tree  # float32, like the parameters
    inner: optax.OptState


def with_average(inner: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Return `inner` with an exponential moving average of the weights in its state.

    After step t the average is d times the last one plus 1 - d times the weights, where d is
    min(decay, (1 + t) / (10 + t)): the first weights, which are random, are soon forgotten. In
    float32, since 1 - decay of a weight is below the rounding of bfloat16.
    """

    def init(params: Tree) -> AveragedState:
        average = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        return AveragedState(jnp.zeros((), jnp.int32), average, inner.init(params))

    def update(
        updates: Tree, state: AveragedState, params: Tree | None = None
    ) -> tuple[Tree, AveragedState]:
        updates, inner_state = inner.update(updates, state.inner, params)
        count = state.count + 1
        moved = 1 - jnp.minimum(decay, (1 + count) / (10 + count)).astype(jnp.float32)

        assert params is not None
        weights = optax.apply_updates(params, updates)
        average = jax.tree.map(
            lambda mean, weight: mean + moved * (weight.astype(jnp.float32) - mean),
            state.average,
            weights,
        )
        return updates, AveragedState(count, average, inner_state)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def averaged_weights(optimizer_state: Tree) -> Tree | None:
    """Return the average of the weights in a run's optimizer state, float32; None without one."""
    return optimizer_state.average if isinstance(optimizer_state, AveragedState) else None
