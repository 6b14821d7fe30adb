"""Multi-head attention with grouped keys and values (arXiv 1706.03762; multi-query 1911.02150, grouped 2305.13245)."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm import config
from jaxlm.nn.cache import KeyValues, LayerCache, append_to_cache
from jaxlm.nn.dot_product import Case, Mask, attend, choose_kernel
from jaxlm.nn.execution import Execution
from jaxlm.nn.initializers import normal
from jaxlm.nn.matmul import add_bias, matmul
from jaxlm.nn.norms import HeadNorm
from jaxlm.nn.parameters import parameter
from jaxlm.nn.positions import Rotation, rotate

HEADS = ("batch", "length", "heads_act", "head_act")
KV_HEADS = ("batch", "length", "kv_heads_act", "head_act")


class EncoderOutput(NamedTuple):
    """What a decoder reads of its encoder."""

    states_BSD: jax.Array | None  # None: every layer has its keys and values in its past
    mask: Mask


class Context(NamedTuple):
    """What all layers of a kind share in one pass, computed once: the mask, the positions in the form that attention reads, an
    encoder's states."""

    mask: Mask
    rotation: Rotation | None = None
    bias: jax.Array | None = None  # float32 [1 or B, H, L, S]
    encoder: EncoderOutput | None = None


class Attention(nn.Module):
    """[B, L, D] -> [B, L, D], over the positions themselves, or over the encoder's for cross attention; and the keys and values read.

    With a `past` the keys and values are those of its columns, the chunk's own included.
    """

    config: config.ModelConfig
    execution: Execution = Execution()
    dtype: Any = jnp.float32  # of the parameters
    cross: bool = False

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        context: Context,
        dropout_key: jax.Array | None = None,
        past: LayerCache | None = None,
    ) -> tuple[jax.Array, KeyValues]:
        model = self.config
        memory_BSD = x_BLD
        if self.cross:
            assert context.encoder is not None
            memory_BSD, context = context.encoder.states_BSD, Context(context.encoder.mask)
        q_BLHK = self.execution.constrain(self.project("query", x_BLD, model.heads, "heads"), HEADS)
        if model.query_key_norm:
            q_BLHK = HeadNorm(model, self.dtype, name="query_norm")(q_BLHK)
        if context.rotation is not None:
            q_BLHK = rotate(q_BLHK, context.rotation)
        if self.cross and past is not None and past.memory is not None:
            read = past.memory
        else:
            assert memory_BSD is not None
            read = self.key_values(memory_BSD, context.rotation, None if self.cross else past)
        y_BLHK = attend(
            q_BLHK,
            jnp.swapaxes(read.keys_BGSK, 1, 2),
            jnp.swapaxes(read.values_BGSK, 1, 2),
            context.mask,
            self.execution,
            scale=model.attention_scale or model.width_per_head**-0.5,
            bias=context.bias,
            softcap=model.attention_softcap,
            dropout=model.attention_dropout,
            dropout_key=dropout_key,
        )
        return self.output(self.execution.constrain(y_BLHK, HEADS)), read

    def key_values(
        self, x_BSD: jax.Array, rotation: Rotation | None, past: LayerCache | None
    ) -> KeyValues:
        """Those of the positions of x, behind those of the past."""
        model, constrain = self.config, self.execution.constrain
        k_BSGK = constrain(self.project("key", x_BSD, model.key_value_heads, "kv_heads"), KV_HEADS)
        v_BSGK = constrain(
            self.project("value", x_BSD, model.key_value_heads, "kv_heads"), KV_HEADS
        )
        if model.query_key_norm:
            k_BSGK = HeadNorm(model, self.dtype, name="key_norm")(k_BSGK)
        if rotation is not None:
            k_BSGK = rotate(k_BSGK, rotation)
        if past is not None:
            return append_to_cache(past, k_BSGK, v_BSGK)
        return KeyValues(jnp.swapaxes(k_BSGK, 1, 2), jnp.swapaxes(v_BSGK, 1, 2))

    def project(self, name: str, x_BLD: jax.Array, heads: int, axis: str) -> jax.Array:
        """[B, L, D] -> [B, L, heads, K]."""
        D, K = self.config.width, self.config.width_per_head
        init = normal(self.config, "query" if name == "query" else "input", D)
        w_DHK = parameter(
            self, f"{name}_kernel", init, (D, heads, K), ("embed", axis, "head"), self.dtype
        )
        y = matmul("BLD,DHK->BLHK", x_BLD, w_DHK)
        if self.config.attention_bias:
            bias_HK = parameter(
                self, f"{name}_bias", nn.initializers.zeros, (heads, K), (axis, "head"), self.dtype
            )
            y = add_bias(y, bias_HK)
        return y

    def output(self, y_BLHK: jax.Array) -> jax.Array:
        D, (H, K) = self.config.width, y_BLHK.shape[2:]
        w_HKD = parameter(
            self,
            "output_kernel",
            normal(self.config, "residual", H * K),
            (H, K, D),
            ("heads", "head", "embed"),
            self.dtype,
        )
        y = matmul("BLHK,HKD->BLD", y_BLHK, w_HKD)
        if self.config.attention_output_bias:
            bias_D = parameter(
                self, "output_bias", nn.initializers.zeros, (D,), ("norm",), self.dtype
            )
            y = add_bias(y, bias_D)
        return y


def attention_kernel(
    model: config.ModelConfig,
    compute: str,
    queries: int,
    keys: int,
    mask: Mask,
    execution: Execution,
) -> tuple[str, str]:
    """The kernel that training will use for `queries` by `keys` positions, and why. ValueError if the one asked for can't."""
    softcap, drops = model.attention_softcap is not None, model.attention_dropout > 0
    return choose_kernel(
        execution, Case(compute, queries, keys, model.width_per_head, mask, softcap, drops)
    )
