"""The ends of a model: tables of tokens, positions and token types; scores over the vocabulary."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ModelConfig
from jaxlm.nn.activations import activate
from jaxlm.nn.block import RESIDUAL
from jaxlm.nn.dropout import dropout
from jaxlm.nn.execution import Execution
from jaxlm.nn.initializers import normal
from jaxlm.nn.mask import MASKED
from jaxlm.nn.matmul import add_bias, matmul
from jaxlm.nn.norms import Norm
from jaxlm.nn.parameters import parameter
from jaxlm.nn.parametrization import embedding_scale, head_scale
from jaxlm.nn.positions import sinusoids
from jaxlm.nn.quantized_product import lookup_rows

# Rows of the tables in memory: matrix units and tensor parallelism want aligned sizes.
VOCABULARY_MULTIPLE = 128


def padded_vocabulary(size: int) -> int:
    """Return the rows of a token table for `size` tokens."""
    return -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def token_width_axis(config: ModelConfig) -> str:
    """Return the logical axis of the token table's width, which may be another than the model's."""
    return "embed" if config.embedding_width is None else "token_embed"


class Embedding(nn.Module):
    """Token ids int32 [B, L] -> [B, L, D] in `compute` dtype.

    Positions and token types are int32 [B or 1, L]. Owns the token table unless given another's.
    """

    config: ModelConfig
    execution: Execution = Execution()
    dtype: Any = jnp.float32  # of the parameters
    compute: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array,
        types_BL: jax.Array,
        dropout_key: jax.Array | None = None,
        table_VD: jax.Array | None = None,
    ) -> jax.Array:
        config, width = self.config, self.config.width

        if table_VD is None:
            rows = padded_vocabulary(config.vocabulary_size)
            width_axis = token_width_axis(config)
            table_VD = self.table("tokens", rows, "vocabulary", config.token_width, width_axis)
        x_BLD = lookup_rows(table_VD, tokens_BL).astype(self.compute)

        if config.embedding_width is not None:
            init, shape = (
                normal(config, "input", config.embedding_width),
                (config.token_width, width),
            )
            kernel_ED = parameter(self, "projection", init, shape, (None, "embed"), self.dtype)
            x_BLD = matmul("BLE,ED->BLD", x_BLD, kernel_ED)
        if (scale := embedding_scale(config)) != 1:
            x_BLD = x_BLD * scale

        if config.token_types:
            table_TD = self.table("types", config.token_types, "position", width)
            x_BLD = x_BLD + lookup_rows(table_TD, types_BL).astype(self.compute)
        if config.positions == "learned":
            rows = config.context_length + config.position_offset
            table_LD = self.table("positions", rows, "position", width)
            rows_BL = positions_BL + config.position_offset
            x_BLD = x_BLD + lookup_rows(table_LD, rows_BL).astype(self.compute)
        elif config.positions == "sinusoidal":
            x_BLD = x_BLD + sinusoids(positions_BL, width).astype(self.compute)

        if config.embedding_norm:
            x_BLD = Norm(config, self.dtype, name="norm")(x_BLD)
        return self.execution.constrain(dropout(x_BLD, config.dropout, dropout_key), RESIDUAL)

    def table(
        self, name: str, rows: int, axis: str, width: int, width_axis: str = "embed"
    ) -> jax.Array:
        """Declare the table `name`, [rows, width]."""
        init = normal(self.config, "embedding", width)
        return parameter(self, name, init, (rows, width), (axis, width_axis), self.dtype)


class Head(nn.Module):
    """[..., D] -> float32 scores [..., padded V], in which padded columns are `MASKED`."""

    config: ModelConfig
    execution: Execution = Execution()
    dtype: Any = jnp.float32  # of the parameters

    @nn.compact
    def __call__(self, x: jax.Array, tied_VD: jax.Array | None = None) -> jax.Array:
        config, dtype = self.config, self.dtype
        rows = padded_vocabulary(config.vocabulary_size)
        leading = "BLMN"[: x.ndim - 1]  # the letters of x's axes before the last

        if config.head_transform:
            x = transform(self, x)
        if (scale := head_scale(config)) != 1:
            x = x * scale
        if config.embedding_width is not None:
            init = normal(config, "transform", config.width)
            shape = (config.width, config.token_width)
            kernel_DE = parameter(self, "projection", init, shape, ("embed", None), dtype)
            x = matmul(f"{leading}D,DE->{leading}E", x, kernel_DE)

        if tied_VD is None:
            init, shape = normal(config, "head", config.token_width), (config.token_width, rows)
            axes = (token_width_axis(config), "vocabulary")
            kernel_DV = parameter(self, "kernel", init, shape, axes, dtype)
            scores = matmul(f"{leading}D,DV->{leading}V", x, kernel_DV, jnp.float32)
        else:
            scores = matmul(f"{leading}D,VD->{leading}V", x, tied_VD, jnp.float32)

        row_shape = (1,) * (x.ndim - 1) + (rows,)
        if config.head_bias:
            zeros = nn.initializers.zeros
            bias_V = parameter(self, "bias", zeros, (rows,), ("vocabulary",), dtype)
            scores = scores + bias_V.astype(jnp.float32).reshape(row_shape)
        if config.logit_softcap is not None:
            scores = config.logit_softcap * jnp.tanh(scores / config.logit_softcap)

        if x.ndim == 3:
            scores = self.execution.constrain(scores, ("batch", "length", "vocabulary_act"))
        if rows == config.vocabulary_size:
            return scores
        real = (jnp.arange(rows) < config.vocabulary_size).reshape(row_shape)
        return jnp.where(real, scores, MASKED)


class HeadTransform(nn.Module):
    """The transform of `Head`, with the same names of parameters: [..., D] -> [..., D]."""

    config: ModelConfig
    dtype: Any = jnp.float32  # of the parameters

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return transform(self, x)


def transform(module: Head | HeadTransform, x: jax.Array) -> jax.Array:
    """Return norm(act(x W + b)), BERT's layer between the stack and the vocabulary.

    The parameters are those of `module`, which is being called.
    """
    config, dtype, D = module.config, module.dtype, module.config.width
    leading = "BLMN"[: x.ndim - 1]
    init = normal(config, "transform", D)
    kernel_DO = parameter(module, "transform_kernel", init, (D, D), ("embed", None), dtype)
    y = matmul(f"{leading}D,DO->{leading}O", x, kernel_DO)

    bias_D = None
    if config.head_transform_bias:
        zeros = nn.initializers.zeros
        bias_D = parameter(module, "transform_bias", zeros, (D,), ("norm",), dtype)
    y = activate(config.head_activation or config.activation, add_bias(y, bias_D))
    return Norm(config, dtype, name="transform_norm")(y)
