"""The ends of ELECTRA's networks, in place of those of an encoder (arXiv 2003.10555).

Both read the same embeddings, of width E. Each projects them to its own width, and has a head.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ModelConfig
from jaxlm.nn.activations import activate
from jaxlm.nn.embedding import Head
from jaxlm.nn.execution import Execution
from jaxlm.nn.initializers import normal
from jaxlm.nn.matmul import add_bias, matmul
from jaxlm.nn.norms import Norm
from jaxlm.nn.parameters import parameter

ZEROS = nn.initializers.zeros


class Projection(nn.Module):
    """Embeddings [B, L, E] -> [B, L, D]."""

    config: ModelConfig
    dtype: Any = jnp.float32  # of the parameters

    @nn.compact
    def __call__(self, x_BLE: jax.Array) -> jax.Array:
        shape = (x_BLE.shape[-1], self.config.width)
        init = normal(self.config, "input", shape[0])
        kernel_ED = parameter(self, "kernel", init, shape, (None, "embed"), self.dtype)
        bias_D = parameter(self, "bias", ZEROS, shape[1:], ("norm",), self.dtype)
        return add_bias(matmul("BLE,ED->BLD", x_BLE, kernel_ED), bias_D)


class GeneratorHead(nn.Module):
    """[..., D] -> float32 scores [..., padded V], by way of the width E of the token table.

    `vocabulary` is the model at that width.
    """

    config: ModelConfig
    vocabulary: ModelConfig
    execution: Execution = Execution()
    dtype: Any = jnp.float32  # of the parameters

    @nn.compact
    def __call__(self, x: jax.Array, tied_VE: jax.Array | None = None) -> jax.Array:
        config, leading = self.config, "BLM"[: x.ndim - 1]
        shape = (config.width, self.vocabulary.width)
        init = normal(config, "transform", config.width)
        kernel_DE = parameter(self, "transform_kernel", init, shape, ("embed", None), self.dtype)
        y = matmul(f"{leading}D,DE->{leading}E", x, kernel_DE)

        bias_E = None
        if config.head_transform_bias:
            bias_E = parameter(self, "transform_bias", ZEROS, shape[1:], ("norm",), self.dtype)
        y = activate(config.head_activation or config.activation, add_bias(y, bias_E))
        y = Norm(config, self.dtype, name="transform_norm")(y)
        return Head(self.vocabulary, self.execution, self.dtype, name="vocabulary")(y, tied_VE)


class DetectionHead(nn.Module):
    """[..., D] -> float32 [..., 1]: the logit that a token was replaced."""

    config: ModelConfig
    dtype: Any = jnp.float32  # of the parameters

    @nn.compact
    def __call__(self, x: jax.Array, tied_VE: jax.Array | None = None) -> jax.Array:
        del tied_VE
        width, leading = self.config.width, "BLM"[: x.ndim - 1]
        init = normal(self.config, "transform", width)
        kernel_DO = parameter(
            self, "dense_kernel", init, (width, width), ("embed", None), self.dtype
        )
        bias_O = parameter(self, "dense_bias", ZEROS, (width,), ("norm",), self.dtype)
        y = matmul(f"{leading}D,DO->{leading}O", x, kernel_DO)
        y = activate(self.config.activation, add_bias(y, bias_O))

        init = normal(self.config, "head", width)
        kernel_DN = parameter(self, "kernel", init, (width, 1), ("embed", None), self.dtype)
        bias_N = parameter(self, "bias", ZEROS, (1,), ("norm",), self.dtype)
        if self.config.width_ratio != 1:
            y = y / self.config.width_ratio
        # N is 1 here.
        logits = matmul(f"{leading}D,DN->{leading}N", y, kernel_DN, jnp.float32)
        return add_bias(logits, bias_N)
