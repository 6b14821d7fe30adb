"""Multi-head attention with grouped keys and values.

arXiv 1706.03762; multi-query 1911.02150, grouped 2305.13245.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import AdapterConfig, ModelConfig
from jaxlm.nn.adapter import adapt, declare_a
from jaxlm.nn.cache import KeyValues, LayerCache
from jaxlm.nn.dot_product import attend
from jaxlm.nn.execution import Execution
from jaxlm.nn.initializers import normal
from jaxlm.nn.kernel_choice import Case, choose_kernel
from jaxlm.nn.mask import Mask
from jaxlm.nn.matmul import add_bias, matmul
from jaxlm.nn.norms import HeadNorm
from jaxlm.nn.parameters import parameter
from jaxlm.nn.parametrization import attention_scale
from jaxlm.nn.positions import Rotation, rotate

# Logical axes of the projections.
HEADS = ("batch", "length", "heads_act", "head_act")
KV_HEADS = ("batch", "length", "kv_heads_act", "head_act")


class EncoderOutput(NamedTuple):
    """The states of an encoder, as cross attention reads them."""

    states_BSD: jax.Array | None  # None: every layer has their keys and values in its cache
    mask: Mask


class AttentionInputs(NamedTuple):
    """Everything but x that attention reads. Computed once per pass, shared by equal layers."""

    mask: Mask
    rotation: Rotation | None = None
    bias: jax.Array | None = None  # float32 [1 or B, H, L, S]
    encoder: EncoderOutput | None = None


class Projection(NamedTuple):
    """The weights of a query, key or value projection."""

    kernel_DHK: Any  # an array, or what stands for one
    bias_HK: jax.Array | None


class MultiHeadAttention(nn.Module):
    """The weights of attention, and the steps that self attention and cross attention share."""

    config: ModelConfig
    execution: Execution = Execution()
    dtype: Any = jnp.float32  # of the parameters
    product: Callable[..., jax.Array] = matmul  # of the projections
    adapter: AdapterConfig = AdapterConfig()

    def projection(
        self,
        name: str,
        heads: int,
        axis: str,
        dropout_key: jax.Array | None = None,
        shared_a: jax.Array | None = None,
    ) -> Projection:
        """Declare the weights of the projection `name` to `heads` heads, whose axis is `axis`."""
        config, dtype = self.config, self.dtype
        D, K = config.width, config.width_per_head
        init = normal(config, "query" if name == "query" else "input", D)
        axes = ("embed", axis, "head")
        kernel_DHK = parameter(self, f"{name}_kernel", init, (D, heads, K), axes, dtype)
        kernel_DHK = adapt(self, name, kernel_DHK, (D, heads, K), axes, dropout_key, shared_a)
        if not config.attention_bias:
            return Projection(kernel_DHK, None)

        zeros = nn.initializers.zeros
        bias_HK = parameter(self, f"{name}_bias", zeros, (heads, K), axes[1:], dtype)
        return Projection(kernel_DHK, bias_HK)

    def attend(
        self,
        q_BLHK: jax.Array,
        key_values: KeyValues,
        mask: Mask,
        bias: jax.Array | None,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        """Return the heads' outputs [B, L, H, K]: softmax(q k^T) v with the model's options."""
        config = self.config
        k_BSGK, v_BSGK = key_values.to_projections()

        # Where the devices are more than the heads of keys and values, or don't divide them, each
        # device gets copies of those that its queries read.
        copies = math.lcm(k_BSGK.shape[2], self.execution.head_shards) // k_BSGK.shape[2]
        if copies > 1:
            k_BSGK, v_BSGK = (
                self.execution.constrain(jnp.repeat(x, copies, axis=2), KV_HEADS)
                for x in (k_BSGK, v_BSGK)
            )

        y_BLHK = attend(
            q_BLHK,
            k_BSGK,
            v_BSGK,
            mask,
            self.execution,
            scale=attention_scale(config),
            bias=bias,
            softcap=config.attention_softcap,
            dropout=config.attention_dropout,
            dropout_key=dropout_key,
        )
        return self.execution.constrain(y_BLHK, HEADS)

    def output(self, y_BLHK: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        """Return the projection of all heads' outputs to [B, L, D]."""
        config, dtype = self.config, self.dtype
        D, (H, K) = config.width, y_BLHK.shape[2:]
        init, axes = normal(config, "residual", H * K), ("heads", "head", "embed")
        kernel_HKD = parameter(self, "output_kernel", init, (H, K, D), axes, dtype)
        kernel_HKD = adapt(self, "output", kernel_HKD, (H, K, D), axes, dropout_key)
        y_BLD = self.product("BLHK,HKD->BLD", y_BLHK, kernel_HKD)
        if not config.attention_output_bias:
            return y_BLD

        zeros = nn.initializers.zeros
        return add_bias(y_BLD, parameter(self, "output_bias", zeros, (D,), ("norm",), dtype))


class SelfAttention(MultiHeadAttention):
    """Attention of the positions of x over themselves: [B, L, D] -> [B, L, D].

    With a cache they also see the tokens that it holds. The cache is returned with x's keys and
    values in it.
    """

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        inputs: AttentionInputs,
        dropout_key: jax.Array | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        config, constrain = self.config, self.execution.constrain
        shared_a = None
        if self.adapter.rank and "qkv" in self.adapter.targets:
            shared_a = declare_a(self, "qkv", (config.width,), ("embed",), self.adapter)
        adapters = dropout_key, shared_a
        query = self.projection("query", config.heads, "heads", *adapters)
        key = self.projection("key", config.key_value_heads, "kv_heads", *adapters)
        value = self.projection("value", config.key_value_heads, "kv_heads", *adapters)

        q_BLHK = add_bias(self.product("BLD,DHK->BLHK", x_BLD, query.kernel_DHK), query.bias_HK)
        k_BLGK = add_bias(self.product("BLD,DGK->BLGK", x_BLD, key.kernel_DHK), key.bias_HK)
        v_BLGK = add_bias(self.product("BLD,DGK->BLGK", x_BLD, value.kernel_DHK), value.bias_HK)
        q_BLHK = constrain(q_BLHK, HEADS)
        k_BLGK, v_BLGK = constrain(k_BLGK, KV_HEADS), constrain(v_BLGK, KV_HEADS)

        if config.query_key_norm:
            q_BLHK = HeadNorm(config, self.dtype, name="query_norm")(q_BLHK)
            k_BLGK = HeadNorm(config, self.dtype, name="key_norm")(k_BLGK)
        if inputs.rotation is not None:
            q_BLHK = rotate(q_BLHK, inputs.rotation)
            k_BLGK = rotate(k_BLGK, inputs.rotation)

        key_values = KeyValues.from_projections(k_BLGK, v_BLGK)
        if cache is not None:
            cache = cache.append(key_values)
            key_values = cache.own

        y_BLHK = self.attend(q_BLHK, key_values, inputs.mask, inputs.bias, dropout_key)
        return self.output(y_BLHK, dropout_key), cache


class CrossAttention(MultiHeadAttention):
    """Attention of the positions of x over an encoder's states: [B, L, D] -> [B, L, D].

    The cache, where there is one, is returned with the keys and values of the states: they are
    computed for the first chunk and read for all others.
    """

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        encoder: EncoderOutput,
        dropout_key: jax.Array | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        config, constrain = self.config, self.execution.constrain
        query = self.projection("query", config.heads, "heads", dropout_key)

        q_BLHK = add_bias(self.product("BLD,DHK->BLHK", x_BLD, query.kernel_DHK), query.bias_HK)
        q_BLHK = constrain(q_BLHK, HEADS)
        if config.query_key_norm:
            q_BLHK = HeadNorm(config, self.dtype, name="query_norm")(q_BLHK)

        if cache is not None and cache.cross is not None:
            key_values = cache.cross
        else:
            assert encoder.states_BSD is not None
            key_values = self.key_values(encoder.states_BSD, dropout_key)
            if cache is not None:
                cache = cache._replace(cross=key_values)

        y_BLHK = self.attend(q_BLHK, key_values, encoder.mask, None, dropout_key)
        return self.output(y_BLHK, dropout_key), cache

    def key_values(self, states_BSD: jax.Array, dropout_key: jax.Array | None) -> KeyValues:
        """Return the keys and values of the encoder's states."""
        config, constrain = self.config, self.execution.constrain
        key = self.projection("key", config.key_value_heads, "kv_heads", dropout_key)
        value = self.projection("value", config.key_value_heads, "kv_heads", dropout_key)

        k_BSGK = add_bias(self.product("BSD,DGK->BSGK", states_BSD, key.kernel_DHK), key.bias_HK)
        v_BSGK = add_bias(
            self.product("BSD,DGK->BSGK", states_BSD, value.kernel_DHK), value.bias_HK
        )
        k_BSGK, v_BSGK = constrain(k_BSGK, KV_HEADS), constrain(v_BSGK, KV_HEADS)
        if config.query_key_norm:
            k_BSGK = HeadNorm(config, self.dtype, name="key_norm")(k_BSGK)
        return KeyValues.from_projections(k_BSGK, v_BSGK)


def attention_kernel(
    config: ModelConfig,
    compute: str,
    rows: int,
    queries: int,
    keys: int,
    mask: Mask,
    execution: Execution,
    *,
    has_bias: bool = False,
) -> tuple[str, str]:
    """Return the kernel that training uses for `queries` by `keys` positions, and why.

    `rows` are those of a microbatch on all devices. ValueError if the configuration asks for a
    kernel that can't do it.
    """
    shape = rows, queries, config.heads, config.width_per_head
    rows, queries, heads, head_width = execution.local_shape(shape, HEADS)
    case = Case(
        dtype=compute,
        queries=queries,
        keys=keys,
        head_width=head_width,
        mask=mask,
        softcap=config.attention_softcap is not None,
        dropout=config.attention_dropout > 0,
        bias=has_bias,
        rows=rows,
        heads=heads,
    )
    return choose_kernel(execution, case)
