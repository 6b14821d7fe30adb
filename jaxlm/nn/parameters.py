"""Parameters with their logical axes. Only here and in `models/` are Flax's boxes known.

Weights name logical axes. `jaxlm.sharding` maps them to mesh axes:

    embed                   the model's width, the dimension that ZeRO splits
    token_embed             the width of the token table where that is another; ZeRO splits it too
    rank                    of adapters, which have no embed there; ZeRO splits it too
    vocabulary              rows of the token table, padded to a multiple of 128
    heads, kv_heads, mlp    split by tensor parallelism
    head, position, norm    never split
    labels                  those of a classifier; never split, and never rounded
    layers                  the leading dimension of everything in the blocks
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from jaxlm.quantization import QuantizedWeight
from jaxlm.types import Axes, Tree


def parameter(
    module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], axes: Axes, dtype: Any
) -> Any:
    """Declare a parameter of `module` with a logical axis for each dimension; return its array."""
    if len(shape) != len(axes):
        raise ValueError(
            f"{name}: shape {shape} has {len(shape)} dimensions, axes {axes} name {len(axes)}"
        )
    if module.has_variable("params", name):
        value = module.get_variable("params", name)
        if isinstance(value, QuantizedWeight):  # its arrays have other shapes
            return value
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, dtype)


def init_params(module: nn.Module, key: jax.Array, inputs: Callable[[], tuple]) -> Tree:
    """Return fresh parameters of the module as a plain nested dict.

    `inputs()` are arguments of its call. They are made inside the trace, where they cost nothing.
    """
    return nn.meta.unbox(module.init(key, *inputs()).get("params", {}))


def param_axes(module: nn.Module, inputs: Callable[[], tuple]) -> Tree:
    """Return the same tree with the logical axes of each parameter, without computing anything."""
    boxed = jax.eval_shape(
        lambda key: module.init(key, *inputs()).get("params", {}), jax.random.key(0)
    )
    return jax.tree.map(
        lambda box: box.names, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
    )
