"""The directions of the optimizers that treat each number, or each tensor, by itself."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm.config import OptimizerConfig
from jaxlm.types import Array, Tree


def adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return Adam's direction. Its moments have the dtypes of the config, whatever the parameters'.

    In bfloat16 an average that moves by less than 1/512 a step stands still when it is rounded to
    the nearest number. The first moment moves by 1 - beta1 and is rounded so. The second is rounded
    at random, which keeps its mean. Otherwise optax would give moments that start in bfloat16 the
    gradients' float32 in the first step.
    """
    first_dtype = None if config.first_moment == "float32" else jnp.bfloat16
    inner = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon, mu_dtype=first_dtype)
    second_dtype = jnp.dtype(config.second_moment)

    def init(params: Tree) -> Any:
        state: Any = inner.init(jax.tree.map(lambda p: p.astype(jnp.float32), params))
        if second_dtype == jnp.float32:
            return state
        return state._replace(nu=jax.tree.map(lambda nu: nu.astype(second_dtype), state.nu))

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        squares = jax.tree.map(lambda nu: nu.astype(jnp.float32), state.nu)
        new: Any
        updates, new = inner.update(updates, state._replace(nu=squares), params)
        return updates, new._replace(nu=round_randomly(new.nu, new.count))

    plain = config.second_moment == "float32"
    return optax.GradientTransformation(init, inner.update if plain else update)


def round_randomly(tree: Tree, step: Array) -> Tree:
    """Return float32 arrays in bfloat16, rounded up or down so that their means stay.

    The chance of the upper neighbour is the distance to the lower one. The random bits depend on
    the step, on the place in the tree and on the index alone, so every mesh gives the same.
    """
    leaves, structure = jax.tree.flatten(tree)
    key = jax.random.fold_in(jax.random.key(0), step)

    rounded = []
    for number, leaf in enumerate(leaves):
        # A bfloat16 is the upper half of a float32: noise below it carries over at random.
        noise = jax.random.bits(jax.random.fold_in(key, number), leaf.shape, jnp.uint16)
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32) + noise.astype(jnp.uint32)
        upper = jnp.uint32(0xFFFF0000)
        rounded.append(jax.lax.bitcast_convert_type(bits & upper, jnp.float32))
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), jax.tree.unflatten(structure, rounded))


def adafactor() -> optax.GradientTransformation:
    """Return Adafactor's direction, relative to each tensor's RMS, without a first moment.

    Each tensor of the parameters is one matrix or vector. The constants are those of algorithm 6 of
    Shazeer and Stern (arXiv 1804.04235). Matrices are factored if both dimensions are at least 128,
    as in the code that trained T5 (arXiv 1910.10683, section 3.1.2).
    """
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=128, epsilon=1e-30),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(1e-3),
    )


def lion(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return Lion's direction: the sign of an average of gradients (arXiv 2302.06675)."""
    return optax.scale_by_lion(config.beta1, config.beta2, mu_dtype=config.first_moment)


def sgd(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return the sum of the gradients so far, each momentum times less than the next."""
    momentum = 0.9 if config.momentum is None else config.momentum
    return optax.trace(momentum, bool(config.nesterov), accumulator_dtype=config.first_moment)
