"""One transformer layer: attention, cross attention in decoders that have an encoder, and MLP, each with a residual connection and a
norm before or after it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm import config
from jaxlm.nn.attention import Attention, Context
from jaxlm.nn.dropout import dropout, site_key
from jaxlm.nn.execution import Execution
from jaxlm.nn.mlp import MLP
from jaxlm.nn.norms import Norm

RESIDUAL = ("batch", "length", "embed_act")


class Block(nn.Module):
    """[B, L, D] -> [B, L, D]. Pre: x + f(norm(x)); post: norm(x + f(x)) (arXiv 2002.04745 compares them)."""

    model: config.Model
    execution: Execution = Execution()
    dtype: Any = jnp.float32  # of the parameters
    cross: bool = False  # also reads an encoder

    @nn.compact
    def __call__(self, x_BLD: jax.Array, context: Context, dropout_key: jax.Array | None = None) -> jax.Array:
        model = self.model
        attention = Attention(model, self.execution, self.dtype, name="attention")
        cross = Attention(model, self.execution, self.dtype, cross=True, name="cross_attention") if self.cross else None
        mlp = MLP(model, self.execution, self.dtype, name="mlp")

        def sublayer(x, norm_name, function, site):
            norm = Norm(model, self.dtype, name=norm_name)
            y = dropout(function(norm(x) if model.norm_placement == "pre" else x), model.dropout, site_key(dropout_key, site))
            x = self.execution.constrain(x + y, RESIDUAL)
            return x if model.norm_placement == "pre" else norm(x)

        x_BLD = sublayer(x_BLD, "attention_norm", lambda x: attention(x, context, site_key(dropout_key, 0)), 1)
        if cross is not None:
            x_BLD = sublayer(x_BLD, "cross_attention_norm", lambda x: cross(x, context, site_key(dropout_key, 3)), 4)
        return sublayer(x_BLD, "mlp_norm", mlp, 2)
