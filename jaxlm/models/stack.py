"""A stack of equal blocks with parameters [layers, ...], run unrolled or scanned.

The tree, the initial values and the random numbers don't depend on how the stack is run, so neither
do checkpoints.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxlm.nn.adapter import is_adapter
from jaxlm.nn.attention import AttentionInputs
from jaxlm.nn.blockwise import ATTENTION_OUTPUT
from jaxlm.nn.dot_product import SCORES
from jaxlm.nn.dropout import site_key
from jaxlm.nn.execution import Execution
from jaxlm.nn.kernel_choice import GPUS
from jaxlm.nn.matmul import PRODUCT
from jaxlm.nn.parameters import init_params, param_axes
from jaxlm.parameter_names import drop, merge
from jaxlm.types import Tree, is_axes

Layer = Callable[[Tree, jax.Array, Any], jax.Array]  # (weights, x, index of the layer) -> x


def save_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Keep the results of cuDNN's kernel, which its backward pass reads."""
    return primitive.name.startswith("dot_product_attention_fwd")


# Keep the results of products and attention, in the dtypes in which they are used. The backward
# pass computes again what lies between them (norms, activations, sums, casts), which costs little,
# and gathers weights again. Autodiff by itself would keep all of these, the casts to float32 too.
SAVE_PRODUCTS = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.save_only_these_names(PRODUCT, SCORES, ATTENTION_OUTPUT), save_attention
)

# What the backward pass computes again, from next to nothing to everything but each block's input.
REMAT: dict[str, Callable | None] = {
    "none": None,
    "weights": SAVE_PRODUCTS,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def remat_policy(execution: Execution) -> Callable | None:
    """Return what the forward pass keeps (None: all that autodiff asks for).

    A scan would stack all that autodiff asks for in memory, where unrolled blocks merge most of it
    with other operations, and gathered weights would all be alive at once.
    """
    policy = REMAT[execution.remat]
    if policy is None and (execution.blocks == "scanned" or execution.gathers):
        return SAVE_PRODUCTS
    return policy


def init_stack(block: nn.Module, layers: int, key: jax.Array, inputs: Callable[[], tuple]) -> Tree:
    """Return parameters [layers, ...], those of each layer from a key of its own."""
    return jax.vmap(lambda k: init_params(block, k, inputs))(jax.random.split(key, layers))


def stack_axes(block: nn.Module, inputs: Callable[[], tuple]) -> Tree:
    """Return the logical axes of the parameters of `init_stack`."""
    return jax.tree.map(
        lambda names: ("layers", *names), param_axes(block, inputs), is_leaf=is_axes
    )


def layer_axes(axes: Tree) -> Tree:
    """Return the logical axes of one layer's parameters, given those of the stack."""
    return jax.tree.map(lambda names: names[1:], axes, is_leaf=is_axes)


@jax.custom_vjp
def unstack(tree: Tree) -> list[Tree]:
    """Return a tree of [N, ...] arrays as N trees.

    The gradient is one stack, where that of N slices would be a sum of N padded arrays.
    """
    layers = jax.tree.leaves(tree)[0].shape[0]
    return [jax.tree.map(lambda w: w[i], tree) for i in range(layers)]  # noqa: B023 (called now)


unstack.defvjp(
    lambda tree: (unstack(tree), None),
    lambda _, layers: (jax.tree.map(lambda *w: jnp.stack(w), *layers),),
)


def adapters_of(tree: Tree) -> Tree:
    """Return the adapters in the parameters of blocks."""
    return drop(tree, lambda name: not is_adapter(name))


def unstack_frozen(tree: Tree) -> list[Tree]:
    """Return `unstack(tree)` of blocks with adapters. All else has no gradient."""
    adapters = unstack(adapters_of(tree))
    return [
        merge(jax.tree.map(lambda w: w[i], tree), part)  # noqa: B023 (called now)
        for i, part in enumerate(adapters)
    ]


def take_apart(tree: Tree) -> list[Tree]:
    """Return `unstack(tree)`, and delete the arrays of the tree, each before the next is cut."""
    stacks, structure = jax.tree.flatten(tree)
    layers_by_stack = []
    for stack in stacks:
        layers_by_stack.append(jax.block_until_ready([stack[i] for i in range(len(stack))]))
        stack.delete()
    return [structure.unflatten(layer) for layer in zip(*layers_by_stack, strict=True)]


@jax.custom_vjp
def in_turn(weights: Tree, x: jax.Array) -> tuple[Tree, jax.Array]:
    """Return both as they are. The backward pass computes their gradients before it uses any.

    Left alone XLA puts off the gradients of the weights of all layers to the end of the backward
    pass, and keeps what they are computed from until then: of BERT-base, recomputed in full, 4 GB.
    In a scan a layer ends with its iteration.
    """
    return weights, x


in_turn.defvjp(
    lambda weights, x: ((weights, x), None),
    lambda _, gradients: jax.lax.optimization_barrier(gradients),
)


def run_stack(
    block: nn.Module,
    inputs: Sequence[AttentionInputs],
    params: Tree,
    axes: Tree,
    x: jax.Array,
    dropout_key: jax.Array | None,
    execution: Execution,
    *,
    adapts: bool = False,
) -> jax.Array:
    """Apply `block` with every layer of `params` [layers, ...] in turn.

    Layer i reads `inputs[i % len(inputs)]`, and its dropout key is folded from i. `axes` are the
    logical axes of `params`. With `adapts` the adapters among these alone have gradients.
    """
    weight_axes = layer_axes(axes)
    layers, period = jax.tree.leaves(params)[0].shape[0], len(inputs)

    def build_layer(layer_inputs: AttentionInputs) -> Layer:
        def layer(weights: Tree, x: jax.Array, index: Any) -> jax.Array:
            weights = execution.gather(weights, weight_axes)
            if execution.platform in GPUS and execution.blocks == "unrolled":
                trained, x = in_turn(adapters_of(weights) if adapts else weights, x)
                weights = merge(weights, trained) if adapts else trained
            key = site_key(dropout_key, index)
            x, _ = block.apply({"params": weights}, x, layer_inputs, key, None, index == 0)
            return x

        policy = remat_policy(execution)
        if policy is None:
            return layer
        # The barrier against merging the recomputation with the forward pass is only a cost inside
        # a scan: nothing can be merged across the loop.
        return jax.checkpoint(layer, policy=policy, prevent_cse=execution.blocks != "scanned")

    period_layers = [build_layer(layer_inputs) for layer_inputs in inputs]
    scanned = layers - layers % period if execution.blocks == "scanned" else 0

    if execution.blocks == "scanned":

        def run_period(x: jax.Array, item: tuple[list[Tree], jax.Array]) -> tuple[jax.Array, None]:
            weights, start = item
            for offset, layer in enumerate(period_layers):
                x = layer(weights[offset], x, start + offset)
            return x, None

        # Scan over the layers of each place in the period by themselves: a strided slice of an axis
        # that is never split.
        weights = [
            jax.tree.map(lambda w: w[offset:scanned:period], params)  # noqa: B023 (called at once)
            for offset in range(period)
        ]
        x, _ = jax.lax.scan(run_period, x, (weights, jnp.arange(0, scanned, period)))

    # All layers where the stack is unrolled; where it is scanned, those of a last, shorter period.
    if scanned < layers:
        rest = jax.tree.map(lambda w: w[scanned:], params) if scanned else params
        for index, weights in enumerate(unstack_frozen(rest) if adapts else unstack(rest), scanned):
            x = period_layers[index % period](weights, x, index)
    return x
