"""One transformer layer: attention, cross attention in decoders that have an encoder, and MLP, each with a residual connection and
norms before or after it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm import config
from jaxlm.nn.attention import Attention, Context
from jaxlm.nn.cache import KeyValues, LayerCache
from jaxlm.nn.dropout import dropout, site_key
from jaxlm.nn.execution import Execution
from jaxlm.nn.mlp import MLP
from jaxlm.nn.norms import Norm

RESIDUAL = ("batch", "length", "embed_act")


class Block(nn.Module):
    """[B, L, D] -> [B, L, D], and the keys and values that attention and cross attention have read.

    pre    x + f(norm(x)); post: norm(x + f(x)) (arXiv 2002.04745 compares them); both: x + norm(f(norm(x))) (Gemma 2)
    residual "normed": norm(x) + f(norm(x)); "parallel": x + attention(norm(x)) + mlp(another norm(x)) (GPT-NeoX, arXiv 2204.06745)
    """

    config: config.ModelConfig
    execution: Execution = Execution()
    dtype: Any = jnp.float32  # of the parameters
    cross: bool = False  # also reads an encoder

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        dropout_key: jax.Array | None = None,
        past: LayerCache | None = None,
        first: bool | jax.Array = False,
    ) -> tuple[jax.Array, tuple[KeyValues, KeyValues | None]]:
        """`first` says whether this is the first layer."""
        model, memory = self.config, None
        attention = Attention(model, self.execution, self.dtype, name="attention")
        cross = (
            Attention(model, self.execution, self.dtype, cross=True, name="cross_attention")
            if self.cross
            else None
        )
        mlp = MLP(model, self.execution, self.dtype, name="mlp")

        def before(x, name):
            if model.norm_placement == "post":
                return x
            normed = Norm(model, self.dtype, name=f"{name}_norm")(x)
            return (
                normed if model.first_norm or name != "attention" else jnp.where(first, x, normed)
            )

        def after(x, normed, y, name, site):
            """The stream behind a sublayer that made `y`."""
            if model.norm_placement == "both":
                y = Norm(model, self.dtype, name=f"{name}_post_norm")(y)
            stream = normed if model.residual == "normed" else x
            x = self.execution.constrain(
                stream + dropout(y, model.dropout, site_key(dropout_key, site)), RESIDUAL
            )
            return (
                Norm(model, self.dtype, name=f"{name}_norm")(x)
                if model.norm_placement == "post"
                else x
            )

        start_BLD, normed = x_BLD, before(x_BLD, "attention")
        y_BLD, own = attention(normed, context, site_key(dropout_key, 0), past)
        x_BLD = after(x_BLD, normed, y_BLD, "attention", 1)
        if cross is not None:
            normed = before(x_BLD, "cross_attention")
            y_BLD, memory = cross(normed, context, site_key(dropout_key, 3), past)
            x_BLD = after(x_BLD, normed, y_BLD, "cross_attention", 4)
        normed = before(start_BLD if model.residual == "parallel" else x_BLD, "mlp")
        return after(x_BLD, normed, mlp(normed), "mlp", 2), (own, memory)
