"""States of random numbers, placed as a run places its own: nothing has to be compiled."""

import jax
import numpy as np

from jaxlm import state
from support import tiny


def abstract_state_of(parts: tiny.Parts) -> state.TrainState:
    return state.abstract_state(
        parts.model,
        parts.optimizer,  # type: ignore[arg-type]
        parts.placement,
    )


def random_state(parts: tiny.Parts) -> state.TrainState:
    random = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = random.integers(1, 100, leaf.shape).astype(leaf.dtype)
        return jax.device_put(values, leaf.sharding)

    return jax.tree.map(draw, abstract_state_of(parts))
