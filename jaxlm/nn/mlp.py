"""The feed-forward sublayer, plain or gated (arXiv 2002.05202)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import AdapterConfig, ModelConfig
from jaxlm.nn.activations import activate
from jaxlm.nn.adapter import adapt
from jaxlm.nn.execution import Execution
from jaxlm.nn.initializers import normal
from jaxlm.nn.matmul import add_bias, matmul
from jaxlm.nn.parameters import parameter


class MLP(nn.Module):
    """act(x W_up) W_down, or (act(x W_gate) * x W_up) W_down: [B, L, D] -> [B, L, D]."""

    config: ModelConfig
    execution: Execution = Execution()
    dtype: Any = jnp.float32  # of the parameters
    product: Callable[..., jax.Array] = matmul
    adapter: AdapterConfig = AdapterConfig()

    @nn.compact
    def __call__(self, x_BLD: jax.Array, adapter_key: jax.Array | None = None) -> jax.Array:
        config, D, F = self.config, self.config.width, self.config.hidden_width
        into = (D, F), ("embed", "mlp"), adapter_key

        gate = self.dense("gate", x_BLD, *into) if config.gated else None
        up = self.dense("up", x_BLD, *into)
        h_BLF = activate(config.activation, up, gate)
        h_BLF = self.execution.constrain(h_BLF, ("batch", "length", "mlp_act"))
        return self.dense("down", h_BLF, (F, D), ("mlp", "embed"), adapter_key)

    def dense(
        self,
        name: str,
        x: jax.Array,
        shape: tuple[int, int],
        axes: tuple[str, str],
        adapter_key: jax.Array | None,
    ) -> jax.Array:
        """Return x [B, L, in] times the weight `name` of this shape [in, out], plus its bias."""
        role = "residual" if name == "down" else "input"
        init = normal(self.config, role, shape[0])
        kernel = parameter(self, f"{name}_kernel", init, shape, axes, self.dtype)
        kernel = adapt(self, name, kernel, shape, axes, adapter_key)
        y = self.product("BLI,IO->BLO", x, kernel)
        if not self.config.mlp_bias:
            return y

        # A bias along the width is a vector: it stays whole, like a norm's.
        axis = "norm" if name == "down" else "mlp"
        zeros = nn.initializers.zeros
        bias = parameter(self, f"{name}_bias", zeros, shape[1:], (axis,), self.dtype)
        return add_bias(y, bias)
