"""The feed-forward sublayer, plain or gated (arXiv 2002.05202)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlm.config import ModelConfig
from jaxlm.nn.execution import Execution
from jaxlm.nn.initializers import normal
from jaxlm.nn.matmul import add_bias, matmul
from jaxlm.nn.parameters import parameter

Function = Callable[[jax.Array], jax.Array]
Biased = tuple[jax.Array, jax.Array | None]  # the result of a product, and a bias or None


def in_float32(function: Function) -> Function:
    """Return the elementwise function, computed in float32 and rounded once to x's dtype.

    So is its gradient, from x, which alone is kept for it.
    """

    @jax.custom_vjp
    def activation(x: jax.Array) -> jax.Array:
        return function(x.astype(jnp.float32)).astype(x.dtype)

    def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return activation(x), x

    def backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
        _, transposed = jax.vjp(function, x.astype(jnp.float32))
        return (transposed(gradient.astype(jnp.float32))[0].astype(x.dtype),)

    activation.defvjp(forward, backward)
    return activation


def hidden(activation: Function, up: Biased, gate: Biased | None) -> jax.Array:
    """Return act(up), or act(gate) * up, each with its bias."""
    x = add_bias(*up)
    return activation(x) if gate is None else activation(add_bias(*gate)) * x


def hidden_forward(
    activation: Function, up: Biased, gate: Biased | None
) -> tuple[jax.Array, tuple[Biased, Biased | None]]:
    """Return `hidden`, and the products, which alone are kept for its gradient."""
    return hidden(activation, up, gate), (up, gate)


def hidden_backward(
    activation: Function, saved: tuple[Biased, Biased | None], gradient: jax.Array
) -> tuple[Biased, Biased | None]:
    """Return the gradients of the products and of the biases.

    The barrier keeps XLA from computing nothing again: it would find the forward pass's float32
    exponentials and keep them in memory, twice as large as a product in bfloat16.
    """
    _, transposed = jax.vjp(partial(hidden, activation), *jax.lax.optimization_barrier(saved))
    return transposed(gradient)


recomputed_hidden = jax.custom_vjp(hidden, nondiff_argnums=(0,))
recomputed_hidden.defvjp(hidden_forward, hidden_backward)


def gelu(x: jax.Array) -> jax.Array:
    """Return x Phi(x) (arXiv 1606.08415), by erf: jax's own takes erfc, several times slower."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS: dict[str, Function] = {
    "gelu": in_float32(gelu),
    "gelu_tanh": in_float32(partial(jax.nn.gelu, approximate=True)),
    "relu": jax.nn.relu,
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),  # arXiv 2109.08668
    "silu": in_float32(jax.nn.silu),
}


class MLP(nn.Module):
    """act(x W_up) W_down, or (act(x W_gate) * x W_up) W_down: [B, L, D] -> [B, L, D]."""

    config: ModelConfig
    execution: Execution = Execution()
    dtype: Any = jnp.float32  # of the parameters

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        config, activation = self.config, ACTIVATIONS[self.config.activation]
        D, F = config.width, config.hidden_width

        gate = self.dense("gate", x_BLD, (D, F), ("embed", "mlp")) if config.gated else None
        up = self.dense("up", x_BLD, (D, F), ("embed", "mlp"))
        h_BLF = recomputed_hidden(activation, up, gate)
        h_BLF = self.execution.constrain(h_BLF, ("batch", "length", "mlp_act"))
        return add_bias(*self.dense("down", h_BLF, (F, D), ("mlp", "embed")))

    def dense(
        self, name: str, x: jax.Array, shape: tuple[int, int], axes: tuple[str, str]
    ) -> Biased:
        """Return x [B, L, in] times the weight `name` of this shape [in, out], and its bias."""
        role = "residual" if name == "down" else "input"
        init = normal(self.config, role, shape[0])
        kernel = parameter(self, f"{name}_kernel", init, shape, axes, self.dtype)
        y = matmul("BLI,IO->BLO", x, kernel)
        if not self.config.mlp_bias:
            return y, None

        # A bias along the width is a vector: it stays whole, like a norm's.
        axis = "norm" if name == "down" else "mlp"
        zeros = nn.initializers.zeros
        return y, parameter(self, f"{name}_bias", zeros, shape[1:], (axis,), self.dtype)
