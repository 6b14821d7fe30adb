"""LayerNorm (arXiv 1607.06450) and RMSNorm (arXiv 1910.07467), in float32 whatever the input."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ModelConfig
from jaxlm.nn.parameters import parameter


class Norm(nn.Module):
    """The model's norm over the last axis: [..., D] -> [..., D], in the input's dtype."""

    config: ModelConfig
    dtype: Any = jnp.float32  # of the parameters

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, epsilon = x.shape[-1], self.config.norm_epsilon
        scale = norm_scale(self, self.config, width)
        if self.config.norm == "rmsnorm":
            return rms_norm(x, scale, epsilon)
        if not self.config.norm_bias:
            return layer_norm(x, scale, None, epsilon)

        zeros = nn.initializers.zeros
        bias = parameter(self, "bias", zeros, (width,), ("norm",), self.dtype)
        return layer_norm(x, scale, bias, epsilon)


class HeadNorm(nn.Module):
    """RMSNorm over each head, one scale for all heads: [..., K] -> [..., K].

    arXiv 2010.04245, in the form of Qwen3 and Gemma 3.
    """

    config: ModelConfig
    dtype: Any = jnp.float32  # of the parameters

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = norm_scale(self, self.config, x.shape[-1])
        return rms_norm(x, scale, self.config.norm_epsilon)


def norm_scale(module: Any, config: ModelConfig, width: int) -> jax.Array:
    """Return the factor of the normalised values, [width], which starts at 1.

    With `norm_offset` the parameter is the factor's difference from 1.
    """
    shape, axes = (width,), ("norm",)
    if not config.norm_offset:
        return parameter(module, "scale", nn.initializers.ones, shape, axes, module.dtype)
    offset = parameter(module, "scale", nn.initializers.zeros, shape, axes, module.dtype)
    return 1.0 + offset.astype(jnp.float32)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """Return x / sqrt(mean(x^2) + epsilon) * scale over the last axis, in x's dtype."""
    x32 = x.astype(jnp.float32)
    y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
    return (y * over_last_axis(scale, y)).astype(x.dtype)


def standardise(
    x: jax.Array, scale: jax.Array, bias: jax.Array | None, epsilon: float
) -> jax.Array:
    """Return the standardised x times scale plus bias, over the last axis, in x's dtype."""
    return layer_norm_forward(x, scale, bias, epsilon)[0]


def layer_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array | None, epsilon: float
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Return `standardise`, and what its gradient needs: beside x two numbers of each vector."""
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis=-1, keepdims=True)
    centred = x32 - mean
    factor = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    y = centred * factor * over_last_axis(scale, x)
    y = y if bias is None else y + over_last_axis(bias, y)
    return y.astype(x.dtype), (x, scale, bias, mean, factor)


def layer_norm_backward(
    epsilon: float, saved: tuple[Any, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Return the gradients of x, of the scale and of the bias, each in the dtype of its operand.

    Three steps, each from x and the gradient as they are in memory. Without the barriers XLA writes
    what they have in common in float32, on GPUs, and reads it again.
    """
    del epsilon
    x, scale, bias, mean, factor = saved

    def operands(*before: Any) -> tuple[Any, ...]:
        """Return `before`, and in float32 the standardised x and the gradient."""
        *done, x_again, gradient_again = jax.lax.optimization_barrier((*before, x, gradient))
        standard = (x_again.astype(jnp.float32) - mean) * factor
        return *done, standard, gradient_again.astype(jnp.float32)

    standard, dy = operands()
    axes = tuple(range(x.ndim - 1))
    sums = jnp.sum(dy * standard, axes), None if bias is None else jnp.sum(dy, axes)

    (dscale, dbias), standard, dy = operands(sums)
    dstandard = dy * over_last_axis(scale, dy)
    means = (jnp.mean(a, axis=-1, keepdims=True) for a in (dstandard, dstandard * standard))

    shift, share, standard, dy = operands(*means)
    dx = factor * (dy * over_last_axis(scale, dy) - shift - standard * share)
    dbias = None if bias is None else dbias.astype(bias.dtype)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias


# LayerNorm is the standardised x, with a gradient of its own.
layer_norm = jax.custom_vjp(standardise, nondiff_argnums=(3,))
layer_norm.defvjp(layer_norm_forward, layer_norm_backward)


def over_last_axis(vector: jax.Array, like: jax.Array) -> jax.Array:
    """Return [K] as float32 [1, ..., 1, K] of the rank of `like`: nothing is promoted silently."""
    return vector.astype(jnp.float32).reshape((1,) * (like.ndim - 1) + (-1,))
