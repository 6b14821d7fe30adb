"""The dtype policy: how a stored weight is carried to the layer that uses it."""

import jax.numpy as jnp

from jaxlm import config
from jaxlm.types import Array, Axes

VECTORS = {"norm", "layers", None}  # along the width: small, used and summed in float32


def cast_for_gather(names: Axes, weight: Array, precision: config.PrecisionConfig) -> Array:
    """What travels over the links: the weight in the compute dtype; norms and biases along the width as they are."""
    return weight if set(names) <= VECTORS else weight.astype(jnp.dtype(precision.compute))


def cast_for_compute(names: Axes, weight: Array, precision: config.PrecisionConfig) -> Array:
    """What the layer gets. With float32 gradients it is the same values held as float32: a weight's gradient has the weight's dtype."""
    return weight if set(names) <= VECTORS else weight.astype(jnp.dtype(precision.gradients))
