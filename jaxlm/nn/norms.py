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


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, epsilon: float) -> jax.Array:
    """Return the standardised x times scale plus bias, over the last axis, in x's dtype."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    y = y * over_last_axis(scale, y)
    return (y if bias is None else y + over_last_axis(bias, y)).astype(x.dtype)


def over_last_axis(vector: jax.Array, like: jax.Array) -> jax.Array:
    """Return [K] as float32 [1, ..., 1, K] of the rank of `like`: nothing is promoted silently."""
    return vector.astype(jnp.float32).reshape((1,) * (like.ndim - 1) + (-1,))
