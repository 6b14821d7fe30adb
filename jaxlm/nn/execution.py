"""How a model is run, as opposed to what it computes: sharding constraints, weight gathering, the stack, the attention kernel.

The layers see only functions and words, never a mesh: `jaxlm.sharding` makes an `Execution` for a mesh, and the default one is plain
single-device JAX.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxlm.types import Array, Axes, Tree


def keep(x: Array, axes: Axes) -> Array:
    """No constraint."""
    del axes
    return x


def keep_tree(tree: Tree, axes: Tree) -> Tree:
    """The weights are whole already."""
    del axes
    return tree


class Execution(NamedTuple):
    """Execution choices; none of them changes the maths."""

    constrain: Callable[[Array, Axes], Array] = (
        keep  # (activation, logical axes) -> the same, placed
    )
    gather: Callable[[Tree, Tree], Tree] = (
        keep_tree  # (weights, axes) -> whole, as a layer uses them; called just before it does
    )
    blocks: str = "unrolled"  # or "scanned"
    remat: str = "none"  # a name in models.stack.REMAT
    attention: str = "auto"  # "auto", "xla" or "cudnn"
    platform: str = "cpu"  # of the devices that will run it
    compute_capability: float = 0.0  # of CUDA devices
