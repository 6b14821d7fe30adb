"""The ends of a classifier, in place of the head over the vocabulary.

The features of a text are those of one of its tokens, or their mean. A dense layer may follow, and
then a linear map to the scores.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ModelConfig
from jaxlm.nn.activations import activate
from jaxlm.nn.initializers import normal
from jaxlm.nn.matmul import add_bias, matmul
from jaxlm.nn.parameters import parameter

ZEROS = nn.initializers.zeros


def pool(x_BLD: jax.Array, lengths_B: jax.Array | None, pooling: str | None) -> jax.Array:
    """Return the features of each text, [B, 1, D]; those of all tokens where `pooling` is None.

    "first" and "last" are tokens of the text, "mean" is the mean over all of them, in float32.
    Without `lengths_B` all tokens are.
    """
    rows, length = x_BLD.shape[:2]
    if pooling is None:
        return x_BLD
    if pooling == "first":
        return x_BLD[:, :1]

    if lengths_B is None:
        lengths_B = jnp.full(rows, length, jnp.int32)
    lengths_B = jnp.maximum(lengths_B, 1)
    if pooling == "last":
        return jax.vmap(lambda x_LD, last: x_LD[last][None])(x_BLD, lengths_B - 1)

    real_BL = jnp.arange(length)[None] < lengths_B[:, None]
    total_BD = jnp.sum(jnp.where(real_BL[..., None], x_BLD.astype(jnp.float32), 0.0), axis=1)
    mean_BD = total_BD / lengths_B[:, None].astype(jnp.float32)
    return mean_BD[:, None].astype(x_BLD.dtype)


class Pooler(nn.Module):
    """The dense layer before the scores, with its activation: [B, L, D] -> [B, L, D]."""

    config: ModelConfig
    dtype: Any = jnp.float32  # of the parameters

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        D = self.config.width
        init = normal(self.config, "transform", D)
        kernel_DO = parameter(self, "dense_kernel", init, (D, D), ("embed", None), self.dtype)
        bias_O = parameter(self, "dense_bias", ZEROS, (D,), ("norm",), self.dtype)
        y_BLO = add_bias(matmul("BLD,DO->BLO", x_BLD, kernel_DO), bias_O)
        return activate(self.config.label_head.transform or "none", y_BLO)


class LabelScores(nn.Module):
    """[B, L, D] -> the scores of the labels, float32 [B, L, C]."""

    config: ModelConfig
    dtype: Any = jnp.float32  # of the parameters

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        config, shape = self.config, (self.config.width, self.config.outputs)
        init = normal(config, "head", config.width)
        kernel_DC = parameter(self, "kernel", init, shape, ("embed", "labels"), self.dtype)
        bias_C = None
        if config.label_head.bias:
            bias_C = parameter(self, "bias", ZEROS, shape[1:], ("labels",), self.dtype)

        if config.width_ratio != 1:
            x_BLD = x_BLD / config.width_ratio
        return add_bias(matmul("BLD,DC->BLC", x_BLD, kernel_DC, jnp.float32), bias_C)
