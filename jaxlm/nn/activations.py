"""Activation functions, plain or gated."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

Function = Callable[[jax.Array], jax.Array]


def gelu(x: jax.Array) -> jax.Array:
    """Return x Phi(x) (arXiv 1606.08415), by erf: jax's own takes erfc, several times slower."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def gelu_tanh(x: jax.Array) -> jax.Array:
    """Return gelu's approximation 0.5 x (1 + tanh(u)), as x sigmoid(2 u): an exponential.

    jax's own takes tanh, which GPUs compute by a quotient of polynomials.
    """
    return x * jax.nn.sigmoid((8 / math.pi) ** 0.5 * (x + 0.044715 * x**3))


# Of float32.
ACTIVATIONS: dict[str, Function] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": jax.nn.relu,
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),  # arXiv 2109.08668
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


def activate(name: str, up: jax.Array, gate: jax.Array | None = None) -> jax.Array:
    """Return act(up), or act(gate) * up (arXiv 2002.05202), in the dtype of `up`.

    It is computed in float32 and rounded once. So is its gradient, for which `up` and `gate` alone
    are kept.
    """
    return elementwise(name, (up,) if gate is None else (up, gate))


def compute(name: str, inputs: Sequence[jax.Array]) -> jax.Array:
    """Return `activate` of `up` and, where there is one, `gate`."""
    if name == "gelu_tanh" and len(inputs) == 1 and inputs[0].dtype != jnp.float32:
        # In this form XLA makes it a part of cuBLAS's kernel of the product and its bias.
        in_kernel = partial(jax.nn.gelu, approximate=True)
        in_float32 = partial(compute_in_float32, name)
        return jax.lax.platform_dependent(*inputs, cpu=in_float32, default=in_kernel)
    return compute_in_float32(name, *inputs)


def compute_in_float32(name: str, *inputs: jax.Array) -> jax.Array:
    """Return `compute`, rounded once."""
    up, *gate = (x.astype(jnp.float32) for x in inputs)
    y = ACTIVATIONS[name](gate[0]) * up if gate else ACTIVATIONS[name](up)
    return y.astype(inputs[0].dtype)


def forward(name: str, inputs: Sequence[jax.Array]) -> tuple[jax.Array, tuple[Sequence[jax.Array]]]:
    """Return `compute`, and what its gradient needs."""
    return compute(name, inputs), (inputs,)


def backward(
    name: str, saved: tuple[Sequence[jax.Array]], gradient: jax.Array
) -> tuple[tuple[jax.Array, ...]]:
    """Return the gradients of the inputs.

    Without the barrier XLA computes no exponential again: it finds those of the forward pass, and
    keeps them in memory until then, in float32.
    """
    (inputs,) = jax.lax.optimization_barrier(saved)
    _, transposed = jax.vjp(lambda xs: compute_in_float32(name, *xs), inputs)
    return transposed(gradient)


elementwise = jax.custom_vjp(compute, nondiff_argnums=(0,))
elementwise.defvjp(forward, backward)
