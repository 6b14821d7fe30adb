"""A stack of equal blocks with parameters [layers, ...], run unrolled or scanned: twins with one interface.

The tree, the initial values and the random numbers don't depend on how the stack is run, so neither do checkpoints.
"""

from collections.abc import Callable, Sequence
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


Layer = Callable[
    [Tree, jax.Array, jax.Array | None, Any], jax.Array
]  # (weights, x, dropout key, number) -> x

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
    return jax.tree.map(
        lambda names: ("layers", *names), param_axes(block, inputs), is_leaf=is_axes
    )


@jax.custom_vjp
def unstack(tree: Tree) -> list[Tree]:
    """[N, ...] arrays -> N trees. Its gradient is one stack, where that of N slices would be N padded arrays and their sum."""
    layers = jax.tree.leaves(tree)[0].shape[0]
    return [jax.tree.map(lambda w: w[i], tree) for i in range(layers)]  # noqa: B023 (called at once)


unstack.defvjp(
    lambda tree: (unstack(tree), None),
    lambda _, layers: (jax.tree.map(lambda *w: jnp.stack(w), *layers),),
)


def run_stack(
    kinds: Sequence[Layer],
    params: Tree,
    axes: Tree,
    x: Any,
    dropout_key: jax.Array | None,
    execution: Execution,
) -> jax.Array:
    """Applies `kinds[i % len(kinds)](layer_params, x, layer_key, i)` for every layer i of `params` [layers, ...] in turn."""
    layer_axes = jax.tree.map(lambda names: names[1:], axes, is_leaf=is_axes)
    layers, period = jax.tree.leaves(params)[0].shape[0], len(kinds)

    def runner(apply: Layer) -> Callable[[Tree, jax.Array, Any], jax.Array]:
        def layer(weights: Tree, x: jax.Array, index: Any) -> jax.Array:
            return apply(
                execution.gather(weights, layer_axes), x, site_key(dropout_key, index), index
            )

        policy = REMAT[execution.remat]
        # Inside a scan nothing can be merged across the loop, so the barrier that prevents it is only cost.
        return (
            layer
            if policy is None
            else jax.checkpoint(layer, policy=policy, prevent_cse=execution.blocks != "scanned")
        )

    runners, done = [runner(apply) for apply in kinds], 0
    if execution.blocks == "scanned":
        done = layers - layers % period

        def body(x: jax.Array, item: tuple[list[Tree], jax.Array]) -> tuple[jax.Array, None]:
            for kind, run in enumerate(runners):
                x = run(item[0][kind], x, item[1] + kind)
            return x, None

        # The layers of each kind by themselves: a strided slice of an axis that is never split.
        by_kind = [jax.tree.map(lambda w: w[kind:done:period], params) for kind in range(period)]  # noqa: B023 (called at once)
        x, _ = jax.lax.scan(body, x, (by_kind, jnp.arange(0, done, period)))
    if done < layers:  # not scanned, or the last period is cut short
        rest = jax.tree.map(lambda w: w[done:], params) if done else params
        for index, weights in enumerate(unstack(rest), done):
            x = runners[index % period](weights, x, index)
    return x
