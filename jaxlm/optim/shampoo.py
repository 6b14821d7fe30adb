"""Shampoo: a preconditioner for each side of a matrix, with the size of Adam's updates."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from jaxlm.config import OptimizerConfig
from jaxlm.optim.directions import adam
from jaxlm.optim.matrices import as_weight, on_shares, width_first
from jaxlm.sharding import Placement
from jaxlm.types import Array, Axes, Tree, is_axes

ROOT_STEPS = 10  # from one computation of the roots to the next (arXiv 2309.06497, section 3)

# Added to the eigenvalues, relative to the largest. Those of float32 matrices are noise at 1e-7 of
# it: at 1e-6 (arXiv 2002.09018) the losses on two meshes differ by 2e-5 after five steps, at 1e-4
# by 4e-7.
DAMPING = 1e-4


class ShampooState(NamedTuple):
    """Adam's state, and averages and roots of G G^T and G^T G for the layers of each parameter.

    `left` and `right` are [N, D, D] and [N, X, X] for matrices [N, D, X], D the model's width. A
    side that is longer than the width has none.
    """

    adam: Any
    left: Tree
    right: Tree
    left_root: Tree
    right_root: Tree


def shampoo(
    config: OptimizerConfig, axes: Tree, placement: Placement | None = None
) -> optax.GradientTransformation:
    """Return the direction of Shampoo for parameters that are all stacked matrices.

    The first moment of Adam times L^(-1/4) and R^(-1/4) (Gupta et al. 2018, arXiv 1802.09568), or
    times L^(-1/2) where there is no R, at the norm of Adam's update of the matrix (arXiv
    2002.09018, section 3.2). The roots are computed by each device for its share of the matrices.
    """
    axes_by_path = dict(jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes))
    graft = adam(config)

    def zeros(params: Tree, side: int, root: bool) -> Tree:
        def build(path: tuple, weight: Array) -> Any:
            stack = jax.eval_shape(lambda w: width_first(axes_by_path[path], w), weight)
            layers, *sides = stack.shape
            if sides[side] > sides[0]:
                return optax.MaskedNode()
            size = sides[side]
            start = jnp.eye(size) if root else jnp.zeros((size, size))
            return jnp.broadcast_to(start, (layers, size, size))

        return jax.tree_util.tree_map_with_path(build, params)

    def init(params: Tree) -> ShampooState:
        return ShampooState(
            graft.init(params),
            *(zeros(params, side, root) for root in (False, True) for side in (0, 1)),
        )

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, ShampooState]:
        adam_state: Any
        directions, adam_state = graft.update(updates, state.adam, params)
        moments = optax.tree.bias_correction(adam_state.mu, config.beta1, adam_state.count)

        leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
        weights = [(axes_by_path[path], gradient) for path, gradient in leaves]
        gradients = [width_first(axes, gradient) for axes, gradient in weights]

        def average(spec: str, old: Tree) -> list:
            olds = structure.flatten_up_to(old)
            return [
                move_average(config.beta2, spec, old, gradient)
                for old, gradient in zip(olds, gradients, strict=True)
            ]

        sides = average("nij,nkj->nik", state.left), average("nji,njk->nik", state.right)
        roots = jax.lax.cond(
            adam_state.count % ROOT_STEPS == 1,
            lambda: compute_roots(weights, *sides, placement),
            lambda: tuple(
                structure.flatten_up_to(tree) for tree in (state.left_root, state.right_root)
            ),
        )
        names = [axes for axes, _ in weights]
        moments, directions = jax.tree.leaves(moments), jax.tree.leaves(directions)
        results = list(map(precondition, names, moments, directions, *roots))

        parts = (jax.tree.unflatten(structure, part) for part in (*sides, *roots))
        return jax.tree.unflatten(structure, results), ShampooState(adam_state, *parts)

    return optax.GradientTransformation(init, update)


def move_average(beta: float, spec: str, old: Any, gradient: Array) -> Any:
    """Return the average of products of gradients; a side without one stays without."""
    if isinstance(old, optax.MaskedNode):
        return old
    return beta * old + (1 - beta) * jnp.einsum(spec, gradient, gradient, precision="highest")


def precondition(axes: Axes, moment: Array, direction: Array, left: Array, right: Any) -> Array:
    """Return a weight's first moment between the roots, each matrix at the norm of `direction`."""
    matrices = jnp.einsum("nij,njk->nik", left, width_first(axes, moment))
    if not isinstance(right, optax.MaskedNode):
        matrices = jnp.einsum("nij,njk->nik", matrices, right)

    wanted = jnp.linalg.norm(width_first(axes, direction), axis=(1, 2), keepdims=True)
    size = jnp.linalg.norm(matrices, axis=(1, 2), keepdims=True)
    return as_weight(axes, matrices * wanted / jnp.maximum(size, 1e-30), moment.shape)


def compute_roots(
    weights: list[tuple[Axes, Array]], lefts: list, rights: list, placement: Placement | None
) -> tuple[list, list]:
    """Return the inverse roots of the averages: the fourth, or the second of a side alone."""

    def root(weight: tuple[Axes, Array], average: Any, exponent: float) -> Any:
        if isinstance(average, optax.MaskedNode):
            return average
        axes, gradient = weight
        spec = P()
        if placement is not None:
            moments = placement.moment_spec(axes, gradient.shape)
            spec = placement.statistic_spec(average.shape, gradient.shape, moments)
        return on_shares(partial(matrix_power, exponent), average, spec, placement)

    exponents = [-1 / 2 if isinstance(r, optax.MaskedNode) else -1 / 4 for r in rights]
    return (
        list(map(root, weights, lefts, exponents)),
        list(map(root, weights, rights, exponents)),
    )


def matrix_power(exponent: float, stack: Array) -> Array:
    """Return the power of positive matrices [N, D, D] by their eigenvalues, which are damped."""
    values, vectors = jnp.linalg.eigh(stack)
    largest = jnp.maximum(values[:, -1:], 1e-30)
    powers = (jnp.maximum(values, 0.0) + DAMPING * largest) ** exponent
    return jnp.einsum("nij,nj,nkj->nik", vectors, powers, vectors, precision="highest")
