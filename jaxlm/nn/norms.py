"""LayerNorm (arXiv 1607.06450) and RMSNorm (arXiv 1910.07467), computed in float32 whatever the input."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm import config
from jaxlm.nn.parameters import parameter


class Norm(nn.Module):
    """The model's norm over the last axis: [..., D] -> [..., D], in the input's dtype."""

    config: config.ModelConfig
    dtype: Any = jnp.float32  # of the parameters

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        scale = scale_of(self, self.config, width)
        if self.config.norm == "rmsnorm":
            return rms_norm(x, scale, self.config.norm_epsilon)
        bias = (
            parameter(self, "bias", nn.initializers.zeros, (width,), ("norm",), self.dtype)
            if self.config.norm_bias
            else None
        )
        return layer_norm(x, scale, bias, self.config.norm_epsilon)


class HeadNorm(nn.Module):
    """RMSNorm over each head: [..., K] -> [..., K], one scale for all heads (arXiv 2010.04245, as Qwen3 and Gemma 3 do it)."""

    config: config.ModelConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, scale_of(self, self.config, x.shape[-1]), self.config.norm_epsilon)


def scale_of(module: Any, model: config.ModelConfig, width: int) -> jax.Array:
    """[width]: what the normalised values are multiplied by, 1 at the start. With `norm_offset` the parameter is its difference from 1."""
    if not model.norm_offset:
        return parameter(module, "scale", nn.initializers.ones, (width,), ("norm",), module.dtype)
    return 1.0 + parameter(
        module, "scale", nn.initializers.zeros, (width,), ("norm",), module.dtype
    ).astype(jnp.float32)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    x32 = x.astype(jnp.float32)
    y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
    return (y * expand(scale, y)).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, epsilon: float) -> jax.Array:
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    y = y * expand(scale, y)
    return (y if bias is None else y + expand(bias, y)).astype(x.dtype)


def expand(vector: jax.Array, like: jax.Array) -> jax.Array:
    """[K] -> [1, ..., 1, K] in float32: ranks are never promoted silently."""
    return vector.astype(jnp.float32).reshape((1,) * (like.ndim - 1) + (-1,))
