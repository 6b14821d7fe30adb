"""One transformer layer: attention, cross attention where there is an encoder, and MLP.

Each sublayer has a residual connection and norms before or after it.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import AdapterConfig, ModelConfig
from jaxlm.nn.attention import AttentionInputs, CrossAttention, SelfAttention
from jaxlm.nn.cache import LayerCache
from jaxlm.nn.dropout import dropout, site_key
from jaxlm.nn.execution import Execution
from jaxlm.nn.matmul import matmul
from jaxlm.nn.mlp import MLP
from jaxlm.nn.norms import Norm

RESIDUAL = ("batch", "length", "embed_act")  # logical axes of the residual stream


class Block(nn.Module):
    """[B, L, D] -> [B, L, D], and the layer's cache with this chunk in it, where one is given.

    norm_placement
        pre       x + f(norm(x))
        post      norm(x + f(x)) (arXiv 2002.04745 compares the two)
        both      x + norm(f(norm(x))) (Gemma 2)
    residual, with norm_placement "pre"
        serial    the sublayers follow each other
        normed    norm(x) + f(norm(x))
        parallel  x + attention(norm(x)) + mlp(another norm(x)) (GPT-NeoX, arXiv 2204.06745)
    """

    config: ModelConfig
    execution: Execution = Execution()
    dtype: Any = jnp.float32  # of the parameters
    cross: bool = False  # also reads an encoder
    product: Callable[..., jax.Array] = matmul  # with the weights of attention and MLP
    adapter: AdapterConfig = AdapterConfig()

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        inputs: AttentionInputs,
        dropout_key: jax.Array | None = None,
        cache: LayerCache | None = None,
        first: bool | jax.Array = False,
    ) -> tuple[jax.Array, LayerCache | None]:
        """Apply the layer; `first` says whether it is the first one of the stack."""
        options = (self.config, self.execution, self.dtype, self.product, self.adapter)
        start_BLD = x_BLD

        normed_BLD = self.norm_before("attention", x_BLD)
        if not self.config.first_norm:
            normed_BLD = jnp.where(first, x_BLD, normed_BLD)
        attention = SelfAttention(*options, name="attention")
        y_BLD, cache = attention(normed_BLD, inputs, site_key(dropout_key, 0), cache)
        x_BLD = self.add_residual("attention", x_BLD, normed_BLD, y_BLD, site_key(dropout_key, 1))

        if self.cross:
            assert inputs.encoder is not None
            normed_BLD = self.norm_before("cross_attention", x_BLD)
            attention = CrossAttention(*options, name="cross_attention")
            y_BLD, cache = attention(normed_BLD, inputs.encoder, site_key(dropout_key, 3), cache)
            x_BLD = self.add_residual(
                "cross_attention", x_BLD, normed_BLD, y_BLD, site_key(dropout_key, 4)
            )

        parallel = self.config.residual == "parallel"
        normed_BLD = self.norm_before("mlp", start_BLD if parallel else x_BLD)
        y_BLD = MLP(*options, name="mlp")(normed_BLD, site_key(dropout_key, 2))
        x_BLD = self.add_residual("mlp", x_BLD, normed_BLD, y_BLD, site_key(dropout_key, 2))
        return x_BLD, cache

    def norm_before(self, name: str, x_BLD: jax.Array) -> jax.Array:
        """Return the input of the sublayer `name`."""
        if self.config.norm_placement == "post":
            return x_BLD
        return Norm(self.config, self.dtype, name=f"{name}_norm")(x_BLD)

    def add_residual(
        self,
        name: str,
        x_BLD: jax.Array,
        normed_BLD: jax.Array,
        y_BLD: jax.Array,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        """Return the residual stream after the sublayer `name`, which made y of normed x."""
        config = self.config
        if config.norm_placement == "both":
            y_BLD = Norm(config, self.dtype, name=f"{name}_post_norm")(y_BLD)

        stream_BLD = normed_BLD if config.residual == "normed" else x_BLD
        # On GPUs XLA would have cuBLAS add the stream in the kernel of the product. That writes
        # over a copy of the stream, which the backward pass needs.
        y_BLD = jax.lax.platform_dependent(
            y_BLD, cpu=lambda y: y, default=jax.lax.optimization_barrier
        )
        x_BLD = stream_BLD + dropout(y_BLD, config.dropout, dropout_key)
        x_BLD = self.execution.constrain(x_BLD, RESIDUAL)
        if config.norm_placement != "post":
            return x_BLD
        return Norm(config, self.dtype, name=f"{name}_norm")(x_BLD)
