"""The ends of a model: token and position tables in, vocabulary scores out."""

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
from jaxlm.nn.matmul import matmul
from jaxlm.nn.norms import Norm
from jaxlm.nn.parameters import parameter
from jaxlm.nn.positions import sinusoids

VOCABULARY_MULTIPLE = 128  # rows of the tables in memory: matrix units and tensor parallelism want aligned sizes


def padded_vocabulary(size: int) -> int:
    return -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


class Embedding(nn.Module):
    """Token ids int32 [B, L] (and positions [B or 1, L]) -> [B, L, D] in `compute` dtype."""

    model: config.Model
    execution: Execution = Execution()
    dtype: Any = jnp.float32  # of the parameters
    compute: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens_BL: jax.Array, positions_BL: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        model = self.model
        init = normal(model, "embedding", model.width)
        table_VD = parameter(
            self, "tokens", init, (padded_vocabulary(model.vocabulary_size), model.width), ("vocabulary", "embed"), self.dtype
        )
        x_BLD = table_VD[tokens_BL].astype(self.compute)
        if model.positions == "learned":
            table_LD = parameter(self, "positions", init, (model.context_length, model.width), ("position", "embed"), self.dtype)
            x_BLD = x_BLD + table_LD[positions_BL].astype(self.compute)
        elif model.positions == "sinusoidal":
            x_BLD = x_BLD + sinusoids(positions_BL, model.width).astype(self.compute)
        if model.embedding_norm:
            x_BLD = Norm(model, self.dtype, name="norm")(x_BLD)
        return self.execution.constrain(dropout(x_BLD, model.dropout, dropout_key), RESIDUAL)


class Head(nn.Module):
    """[..., D] -> float32 scores [..., V] over the padded vocabulary; padded columns are `MASKED`."""

    model: config.Model
    execution: Execution = Execution()
    dtype: Any = jnp.float32  # of the parameters

    @nn.compact
    def __call__(self, x: jax.Array, tied_VD: jax.Array | None = None) -> jax.Array:
        model, rows = self.model, padded_vocabulary(self.model.vocabulary_size)
        lead_axes = "BLMN"[: x.ndim - 1]
        if tied_VD is None:
            init = normal(model, "head", model.width)
            kernel_DV = parameter(self, "kernel", init, (model.width, rows), ("embed", "vocabulary"), self.dtype)
            scores = matmul(f"{lead_axes}D,DV->{lead_axes}V", x, kernel_DV, jnp.float32)
        else:
            scores = matmul(f"{lead_axes}D,VD->{lead_axes}V", x, tied_VD, jnp.float32)
        lead = (1,) * (x.ndim - 1)
        if model.head_bias:
            bias_V = parameter(self, "bias", nn.initializers.zeros, (rows,), ("vocabulary",), self.dtype)
            scores = scores + bias_V.astype(jnp.float32).reshape(*lead, rows)
        if model.logit_softcap is not None:
            scores = model.logit_softcap * jnp.tanh(scores / model.logit_softcap)
        if x.ndim == 3:
            scores = self.execution.constrain(scores, ("batch", "length", "vocabulary_act"))
        if rows == model.vocabulary_size:
            return scores
        return jnp.where((jnp.arange(rows) < model.vocabulary_size).reshape(*lead, rows), scores, MASKED)
