"""How a model is run, as opposed to what it computes.

Sharding constraints, gathering of weights, the loop over layers, the attention kernel. The layers
see only functions and names, never a mesh: `jaxlm.mesh_execution` builds an `Execution` for a mesh,
and the default one is plain single-device JAX.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxlm.types import Array, Axes, Tree


def no_constraint(x: Array, axes: Axes) -> Array:
    """Return x as it is."""
    del axes
    return x


def no_gathering(weights: Tree, axes: Tree) -> Tree:
    """Return weights that are whole already."""
    del axes
    return weights


def whole_call(
    function: Callable[..., Array],
    operands: dict[str, Array],
    axes: dict[str, Axes],
    result_axes: Axes,
) -> Array:
    """Return `function(**operands)`: the only device has all of them."""
    del axes, result_axes
    return function(**operands)


def whole_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """Return the shape as it is: the only device has all of the array."""
    del axes
    return shape


class Execution(NamedTuple):
    """Execution choices; none of them changes the maths."""

    # (activation, its logical axes) -> the activation with its sharding
    constrain: Callable[[Array, Axes], Array] = no_constraint
    # (weights, their logical axes) -> whole weights; called right before a layer uses them
    gather: Callable[[Tree, Tree], Tree] = no_gathering
    # (kernel, its operands, their logical axes, those of the result) -> the result, from a call of
    # the kernel on each device
    per_device: Callable[..., Array] = whole_call
    # (shape of an activation, its logical axes) -> the shape of a device's part of it
    local_shape: Callable[[tuple[int, ...], Axes], tuple[int, ...]] = whole_shape
    gathers: bool = False  # `gather` brings weights from other devices (ZeRO 3)
    head_shards: int = 1  # devices over which the heads are split
    blocks: str = "unrolled"  # or "scanned"
    remat: str = "none"  # a name in models.stack.REMAT
    attention: str = "auto"  # "auto", "xla", "cudnn" or "blockwise"
    platform: str = "cpu"  # of the devices that will run it
    compute_capability: float = 0.0  # of CUDA devices
    deterministic: bool = False  # the same bits in every run, on GPUs too
