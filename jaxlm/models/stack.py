"""A stack of equal blocks with parameters [layers, ...], run unrolled or scanned: twins with one interface.

The tree, the initial values and the random numbers don't depend on how the stack is run, so neither do checkpoints.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxlm.nn.dropout import site_key
from jaxlm.nn.execution import Execution
from jaxlm.nn.matmul import PRODUCT
from jaxlm.nn.parameters import init_params, param_axes
from jaxlm.types import Tree, is_axes


def save_all_but_weights(primitive: Any, *_: Any, **__: Any) -> bool:
    """Keeps what the forward pass computed, but not the gathered weights: they are gathered again.

    Gathering has a gradient of its own, and so have matrix products: what tells them apart is that products are named, and names are kept.
    """
    return primitive.name not in ("custom_vjp_call", "sharding_constraint", "convert_element_type")


# What the backward pass recomputes, from nothing to everything but each block's input.
REMAT: dict[str, Callable | None] = {
    "none": None,
    "weights": save_all_but_weights,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def init_stack(block: nn.Module, layers: int, key: jax.Array, inputs: Callable[[], tuple]) -> Tree:
    """Parameters [layers, ...]: every layer from its own key."""
    return jax.vmap(lambda k: init_params(block, k, inputs))(jax.random.split(key, layers))


def stack_axes(block: nn.Module, inputs: Callable[[], tuple]) -> Tree:
    return jax.tree.map(lambda names: ("layers", *names), param_axes(block, inputs), is_leaf=is_axes)


@jax.custom_vjp
def unstack(tree: Tree) -> list[Tree]:
    """[N, ...] arrays -> N trees. Its gradient is one stack, where that of N slices would be N padded arrays and their sum."""
    layers = jax.tree.leaves(tree)[0].shape[0]
    return [jax.tree.map(lambda w: w[i], tree) for i in range(layers)]  # noqa: B023 (called at once)


unstack.defvjp(lambda tree: (unstack(tree), None), lambda _, layers: (jax.tree.map(lambda *w: jnp.stack(w), *layers),))


def run_stack(
    apply: Callable[[Tree, jax.Array, jax.Array | None], jax.Array],
    params: Tree,
    axes: Tree,
    x: Any,
    dropout_key: jax.Array | None,
    execution: Execution,
) -> jax.Array:
    """Applies `apply(layer_params, x, layer_key)` for every layer of `params` [layers, ...] in turn."""
    layer_axes = jax.tree.map(lambda names: names[1:], axes, is_leaf=is_axes)
    layers = jax.tree.leaves(params)[0].shape[0]

    def layer(weights: Tree, x: jax.Array, index: Any) -> jax.Array:
        return apply(execution.gather(weights, layer_axes), x, site_key(dropout_key, index))

    policy = REMAT[execution.remat]
    if policy is not None:
        # Inside a scan nothing can be merged across the loop, so the barrier that prevents it is only cost.
        layer = jax.checkpoint(layer, policy=policy, prevent_cse=execution.blocks != "scanned")
    if execution.blocks == "scanned":
        x, _ = jax.lax.scan(lambda x, item: (layer(item[0], x, item[1]), None), x, (params, jnp.arange(layers)))
        return x
    for index, weights in enumerate(unstack(params)):
        x = layer(weights, x, index)
    return x
