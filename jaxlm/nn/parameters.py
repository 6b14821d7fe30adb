"""Parameters with their logical axes. The one place, with `models/`, that knows Flax's boxes.

Logical axes of weights, and what they are sharded over is decided in `jaxlm.sharding`:

    embed       the model's width; the dimension that ZeRO splits
    vocabulary  rows of the token table (padded to a multiple of 128)
    heads, kv_heads, mlp    what tensor parallelism splits
    head, position, norm    never split
    layers      the leading dimension of everything in the blocks
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from jaxlm.types import Axes, Tree


def parameter(
    module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], axes: Axes, dtype: Any
) -> Any:
    """A parameter of `module`, a jax.Array, whose axes are named beside its shape."""
    if len(shape) != len(axes):
        raise ValueError(
            f"{name}: shape {shape} has {len(shape)} dimensions, axes {axes} name {len(axes)}"
        )
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, dtype)


def init_params(module: nn.Module, key: jax.Array, inputs: Callable[[], tuple]) -> Tree:
    """The module's parameters as a plain nested dict. `inputs()` are arguments of its call, made where they cost nothing: in a trace."""
    return nn.meta.unbox(module.init(key, *inputs()).get("params", {}))


def param_axes(module: nn.Module, inputs: Callable[[], tuple]) -> Tree:
    """The same tree with each parameter's logical axes, without computing anything."""
    boxed = jax.eval_shape(
        lambda key: module.init(key, *inputs()).get("params", {}), jax.random.key(0)
    )
    return jax.tree.map(
        lambda box: box.names, boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
    )
