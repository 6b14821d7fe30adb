"""The dtype policy: the dtypes in which a stored weight travels to a layer and is used by it."""

import jax.numpy as jnp

from jaxlm.config import PrecisionConfig
from jaxlm.quantization import QuantizedWeight
from jaxlm.types import Array, Axes

# Norms and biases along the width have these axes alone. They are small, and are used and summed in
# float32.
VECTOR_AXES = {"norm", "labels", "layers", None}


def cast_for_gather(axes: Axes, weight: Array, precision: PrecisionConfig) -> Array:
    """Cast a weight to the compute dtype, in which it travels between devices.

    Norms and biases along the width stay as they are, and so do weights that are stored rounded.
    """
    if set(axes) <= VECTOR_AXES or isinstance(weight, QuantizedWeight):
        return weight
    return weight.astype(jnp.dtype(precision.compute))


def cast_for_compute(axes: Axes, weight: Array, precision: PrecisionConfig) -> Array:
    """Cast a gathered weight to the dtype in which its gradient is reduced.

    A weight's gradient has the weight's dtype. With float32 gradients the layer therefore gets the
    values of the compute dtype, held as float32. With bfloat16 gradients it gets them as they are:
    weights are never rounded to the gradients' dtype.
    """
    if set(axes) <= VECTOR_AXES:
        return weight
    is_float32 = precision.gradients == "float32"
    return weight.astype(jnp.float32 if is_float32 else jnp.dtype(precision.compute))
