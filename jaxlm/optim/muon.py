"""Muon: momentum, orthogonalised matrix by matrix (Jordan et al. 2024, arXiv 2502.16982)."""

import math
from collections import defaultdict
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from jaxlm.config import OptimizerConfig
from jaxlm.optim.matrices import as_weight, is_transposed, on_shares, width_first
from jaxlm.sharding import Placement
from jaxlm.types import Array, Axes, Tree, is_axes

# Of the polynomial a x + b x^3 + c x^5, whose repetition brings singular values near 1
# (https://kellerjordan.github.io/posts/muon/).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)

# The RMS of AdamW's updates, so that its rates and decays hold (arXiv 2502.16982, section 2.2).
UPDATE_RMS = 0.2


class MuonState(NamedTuple):
    """The number of steps, and the average of the gradients in the shapes of the parameters."""

    count: Array
    mu: Tree


def muon(
    config: OptimizerConfig, axes: Tree, placement: Placement | None = None
) -> optax.GradientTransformation:
    """Return the direction of Muon for parameters that are all stacked matrices.

    `axes` are the logical axes of the parameters. With a `placement` each device orthogonalises its
    share of the matrices; without one, all of them.
    """
    momentum = 0.95 if config.momentum is None else config.momentum
    nesterov = True if config.nesterov is None else config.nesterov
    steps = 5 if config.newton_schulz_steps is None else config.newton_schulz_steps
    axes_by_path = dict(jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes))
    dtype = jnp.dtype(config.first_moment)

    def init(params: Tree) -> MuonState:
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, dtype), params)
        return MuonState(jnp.zeros((), jnp.int32), zeros)

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, momentum, 1)
        directions = optax.tree.bias_correction(mu, momentum, count + nesterov)
        if nesterov:
            directions = jax.tree.map(
                lambda m, g: momentum * m + (1 - momentum) * g,
                directions,
                optax.tree.bias_correction(updates, momentum, count),
            )

        leaves, structure = jax.tree_util.tree_flatten_with_path(directions)
        weights = [(axes_by_path[path], leaf) for path, leaf in leaves]
        orthogonal = orthogonalize_weights(weights, steps, config.epsilon, placement)
        directions = jax.tree.unflatten(structure, orthogonal)
        return directions, MuonState(count, optax.tree.cast(mu, dtype))

    return optax.GradientTransformation(init, update)


def orthogonalize_weights(
    weights: list[tuple[Axes, Array]], steps: int, epsilon: float, placement: Placement | None
) -> list[Array]:
    """Return weights (logical axes, stacked array) with each layer's matrix orthogonalised.

    On several devices the matrices of one shape, of all layers and roles, are laid in one stack,
    which is split over the devices: 48 matrices on 8 devices are 6 each. Zeros fill up a stack that
    does not divide. The momentum travels to where its matrix is computed, and back.
    """
    stacks = [width_first(axes, weight) for axes, weight in weights]
    if placement is None or placement.mesh.size == 1:
        results = [orthogonalize(steps, epsilon, stack) for stack in stacks]
    else:
        results = [jnp.zeros(0)] * len(stacks)
        groups = defaultdict(list)
        for number, ((axes, weight), stack) in enumerate(zip(weights, stacks, strict=True)):
            groups[stack.shape[1:], matrix_spec(placement, axes, weight)].append(number)

        for (_, spec), numbers in groups.items():
            joined = jnp.concatenate([stacks[number] for number in numbers])
            joined = on_shares(partial(orthogonalize, steps, epsilon), joined, spec, placement)
            ends = np.cumsum([len(stacks[number]) for number in numbers])[:-1]
            for number, part in zip(numbers, jnp.split(joined, ends), strict=True):
                results[number] = part

    return [
        as_weight(axes, result, weight.shape)
        for (axes, weight), result in zip(weights, results, strict=True)
    ]


def orthogonalize(steps: int, epsilon: float, stack: Array) -> Array:
    """Return matrices [n, D, X] with singular values near 1, times the RMS of AdamW's updates.

    A matrix of orthogonal rows or columns has the RMS 1 / sqrt(max(D, X)).
    """
    rows, columns = stack.shape[1:]
    a, b, c = COEFFICIENTS
    x = stack if rows <= columns else jnp.swapaxes(stack, 1, 2)
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + epsilon)

    for _ in range(steps):
        gram = jnp.einsum("nij,nkj->nik", x, x)
        polynomial = b * gram + c * jnp.einsum("nij,njk->nik", gram, gram)
        x = a * x + jnp.einsum("nij,njk->nik", polynomial, x)

    x = x if rows <= columns else jnp.swapaxes(x, 1, 2)
    return UPDATE_RMS * math.sqrt(max(rows, columns)) * x


def matrix_spec(placement: Placement, axes: Axes, weight: Array) -> P:
    """Return how the matrices [N, D, X] of a weight lie: as its momentum does."""
    spec = placement.moment_spec(axes, weight.shape)
    parts = zip(axes, spec, strict=True)
    layers, *matrix = [entry for name, entry in parts if name != "head"]
    return P(layers, *(matrix[::-1] if is_transposed(axes) else matrix))
