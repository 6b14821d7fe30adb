"""The ends of a model: tables of tokens, positions and token types in, vocabulary scores out."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm import config
from jaxlm.nn.block import RESIDUAL
from jaxlm.nn.dot_product import MASKED
from jaxlm.nn.dropout import dropout
from jaxlm.nn.execution import Execution
from jaxlm.nn.initializers import normal
from jaxlm.nn.matmul import add_bias, matmul
from jaxlm.nn.mlp import ACTIVATIONS
from jaxlm.nn.norms import Norm
from jaxlm.nn.parameters import parameter
from jaxlm.nn.positions import sinusoids

VOCABULARY_MULTIPLE = (
    128  # rows of the tables in memory: matrix units and tensor parallelism want aligned sizes
)


def padded_vocabulary(size: int) -> int:
    return -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


class Embedding(nn.Module):
    """Token ids int32 [B, L], positions [B or 1, L] and token types [B or 1, L] -> [B, L, D] in `compute` dtype.

    Owns the token table unless it is given another's.
    """

    config: config.ModelConfig
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
        model = self.config
        if table_VD is None:
            table_VD = self.table(
                "tokens", padded_vocabulary(model.vocabulary_size), "vocabulary", model.token_width
            )
        x_BLD = table_VD[tokens_BL].astype(self.compute)
        if model.embedding_width is not None:
            init = normal(model, "input", model.embedding_width)
            kernel_ED = parameter(
                self,
                "projection",
                init,
                (model.embedding_width, model.width),
                (None, "embed"),
                self.dtype,
            )
            x_BLD = matmul("BLE,ED->BLD", x_BLD, kernel_ED)
        if model.embedding_scaling:
            x_BLD = x_BLD * model.width**0.5
        if model.token_types:
            x_BLD = x_BLD + self.table("types", model.token_types, "position", model.width)[
                types_BL
            ].astype(self.compute)
        if model.positions == "learned":
            table_LD = self.table(
                "positions", model.context_length + model.position_offset, "position", model.width
            )
            x_BLD = x_BLD + table_LD[positions_BL + model.position_offset].astype(self.compute)
        elif model.positions == "sinusoidal":
            x_BLD = x_BLD + sinusoids(positions_BL, model.width).astype(self.compute)
        if model.embedding_norm:
            x_BLD = Norm(model, self.dtype, name="norm")(x_BLD)
        return self.execution.constrain(dropout(x_BLD, model.dropout, dropout_key), RESIDUAL)

    def table(self, name: str, rows: int, axis: str, width: int) -> jax.Array:
        return parameter(
            self,
            name,
            normal(self.config, "embedding", width),
            (rows, width),
            (axis, "embed"),
            self.dtype,
        )


class Head(nn.Module):
    """[..., D] -> float32 scores [..., V] over the padded vocabulary; padded columns are `MASKED`."""

    config: config.ModelConfig
    execution: Execution = Execution()
    dtype: Any = jnp.float32  # of the parameters

    @nn.compact
    def __call__(self, x: jax.Array, tied_VD: jax.Array | None = None) -> jax.Array:
        model, rows = self.config, padded_vocabulary(self.config.vocabulary_size)
        lead_axes = "BLMN"[: x.ndim - 1]
        if model.head_transform:
            x = self.transform(x, lead_axes)
        if model.head_scaling:
            x = x * model.width**-0.5
        if model.embedding_width is not None:
            init = normal(model, "head", model.width)
            kernel_DE = parameter(
                self,
                "projection",
                init,
                (model.width, model.embedding_width),
                ("embed", None),
                self.dtype,
            )
            x = matmul(f"{lead_axes}D,DE->{lead_axes}E", x, kernel_DE)
        if tied_VD is None:
            init = normal(model, "head", model.token_width)
            kernel_DV = parameter(
                self, "kernel", init, (model.token_width, rows), ("embed", "vocabulary"), self.dtype
            )
            scores = matmul(f"{lead_axes}D,DV->{lead_axes}V", x, kernel_DV, jnp.float32)
        else:
            scores = matmul(f"{lead_axes}D,VD->{lead_axes}V", x, tied_VD, jnp.float32)
        lead = (1,) * (x.ndim - 1)
        if model.head_bias:
            bias_V = parameter(
                self, "bias", nn.initializers.zeros, (rows,), ("vocabulary",), self.dtype
            )
            scores = scores + bias_V.astype(jnp.float32).reshape(*lead, rows)
        if model.logit_softcap is not None:
            scores = model.logit_softcap * jnp.tanh(scores / model.logit_softcap)
        if x.ndim == 3:
            scores = self.execution.constrain(scores, ("batch", "length", "vocabulary_act"))
        if rows == model.vocabulary_size:
            return scores
        return jnp.where(
            (jnp.arange(rows) < model.vocabulary_size).reshape(*lead, rows), scores, MASKED
        )

    def transform(self, x: jax.Array, lead_axes: str) -> jax.Array:
        """norm(act(x W + b)), the bias on request: BERT's layer between the stack and the vocabulary."""
        model, D = self.config, self.config.width
        kernel_DO = parameter(
            self, "transform_kernel", normal(model, "head", D), (D, D), ("embed", None), self.dtype
        )
        y = matmul(f"{lead_axes}D,DO->{lead_axes}O", x, kernel_DO)
        if model.head_transform_bias:
            y = add_bias(
                y,
                parameter(
                    self, "transform_bias", nn.initializers.zeros, (D,), ("norm",), self.dtype
                ),
            )
        return Norm(model, self.dtype, name="transform_norm")(
            ACTIVATIONS[model.head_activation or model.activation](y)
        )
