"""The matrices and vectors of each layer in stacked parameters."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from jaxlm.sharding import Placement
from jaxlm.types import Array, Axes, Tree, is_axes


def matrix_view(axes: Axes, weight: Array) -> Array:
    """Return the weight as the matrix or vector that multiplies, its layers in front.

    Heads and the width of each are one dimension: [N, D, H, K] -> [N, D, H * K],
    [N, H, K, D] -> [N, H * K, D] and [N, H, K] -> [N, H * K]. Other weights keep their shape.
    """
    shape: list[int] = []
    for axis, size in zip(axes, weight.shape, strict=True):
        if axis == "head":
            shape[-1] *= size
        else:
            shape.append(size)
    return weight.reshape(shape)


def is_transposed(axes: Axes) -> bool:
    """Return whether a weight maps to the width of the model, and not from it."""
    return axes[-1] == "embed"


def width_first(axes: Axes, weight: Array) -> Array:
    """Return the matrices of a weight [N, D, X]: the model's width, which ZeRO splits, first."""
    matrices = matrix_view(axes, weight)
    return jnp.swapaxes(matrices, 1, 2) if is_transposed(axes) else matrices


def as_weight(axes: Axes, matrices: Array, shape: tuple[int, ...]) -> Array:
    """Return matrices [N, D, X] in the shape of the weight."""
    matrices = jnp.swapaxes(matrices, 1, 2) if is_transposed(axes) else matrices
    return matrices.reshape(shape)


def on_shares(
    function: Callable[[Array], Array], stack: Array, spec: P, placement: Placement | None
) -> Array:
    """Return `function` of a stack of matrices [n, ...], each device its share of the n.

    The stack lies as `spec` says, and so does the result, which has its shape. Zeros fill up a
    stack that the devices don't divide.
    """
    if placement is None or placement.mesh.size == 1:
        return function(stack)

    count, shardings = len(stack), placement.spread(spec)
    filling = [(0, -count % placement.mesh.size), *[(0, 0)] * (stack.ndim - 1)]
    stack = jnp.pad(stack, filling)
    for sharding in shardings:
        stack = jax.lax.with_sharding_constraint(stack, sharding)

    share = shardings[-1].spec
    stack = jax.shard_map(
        function, mesh=placement.mesh, in_specs=share, out_specs=share, check_vma=False
    )(stack)
    for sharding in reversed(shardings):
        stack = jax.lax.with_sharding_constraint(stack, sharding)
    return stack[:count]


def per_matrix(inner: optax.GradientTransformation, axes: Tree) -> optax.GradientTransformation:
    """Apply `inner`, whose maths is tensor by tensor, to every layer's matrices and vectors alone.

    `axes` are the logical axes of the parameters. The state has the tree of `inner`'s state: its
    tensors belong to the matrix views with the layers in front, its counters are shared.
    """
    axes_by_path = dict(jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes))

    def matrices(tree: Tree) -> Tree:
        # By path, since optax's tree_map_params calls `init` with a tree without leaves. In
        # float32, as in `adam`.
        return jax.tree_util.tree_map_with_path(
            lambda path, x: matrix_view(axes_by_path[path], x).astype(jnp.float32), tree
        )

    def layer_axes(params: Tree) -> Iterator[tuple[Tree, Tree]]:
        """Yield vmap's axes of (parameters, state), once for each number of layers.

        The stacks of an encoder-decoder may differ in their number of layers.
        """
        depths = jax.tree_util.tree_map_with_path(
            lambda path, x: x.shape[0] if axes_by_path[path][0] == "layers" else 0, params
        )
        state = jax.eval_shape(inner.init, params)

        for depth in sorted(set(jax.tree.leaves(depths)) - {0}):
            # vmap runs over the first axis of the tensors that have this number of layers.
            param_axes = jax.tree.map(lambda d: 0 if d == depth else None, depths)  # noqa: B023
            state_axes = optax.tree_utils.tree_map_params(
                inner,
                lambda _, axis: axis,
                state,
                param_axes,
                transform_non_params=lambda _: None,
            )
            yield param_axes, state_axes

    def init(params: Tree) -> optax.OptState:
        params, function = matrices(params), inner.init
        for param_axes, state_axes in layer_axes(params):
            function = jax.vmap(function, in_axes=(param_axes,), out_axes=state_axes)
        return function(params)

    def update(
        updates: Tree, state: optax.OptState, params: Tree | None = None
    ) -> tuple[Tree, optax.OptState]:
        params, function = matrices(params), inner.update
        for param_axes, state_axes in layer_axes(params):
            function = jax.vmap(
                function,
                in_axes=(param_axes, state_axes, param_axes),
                out_axes=(param_axes, state_axes),
            )

        matrix_updates, state = function(matrices(updates), state, params)
        return jax.tree.map(lambda new, old: new.reshape(old.shape), matrix_updates, updates), state

    return optax.GradientTransformation(init, update)
