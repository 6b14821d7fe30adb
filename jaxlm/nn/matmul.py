"""Matrix products: computed in the activations' dtype, summed in float32, with the weight's gradient in the weight's own dtype."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

PRODUCT = "product"  # the name by which recomputation policies keep results: rounded to their dtype, not the float32 sums inside


def matmul(
    spec: str, x: jax.Array, weight: jax.Array, dtype: Any = None, name: str = PRODUCT
) -> jax.Array:
    """`einsum(spec, x, weight)` of x and the weight in x's dtype, summed in float32 and returned in `dtype` (x's unless given).

    The weight's gradient leaves the product in the weight's dtype: with float32 weights it is never rounded to bfloat16, and what
    several devices add up is float32.
    """
    return checkpoint_name(product(spec, jnp.dtype(dtype or x.dtype), x, weight), name)


def summed(spec: str, x: jax.Array, y: jax.Array, dtype: Any) -> jax.Array:
    """An einsum that asks for float32 sums. Kernels compute them anyway, and on CPUs only this form reaches the bfloat16 instructions:
    a product that is to be bfloat16 itself is done in float32, several times slower."""
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(spec: str, dtype: Any, x: jax.Array, weight: jax.Array) -> Any:
    return summed(spec, x, weight.astype(x.dtype), dtype)


def forward(
    spec: str, dtype: Any, x: jax.Array, weight: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(spec, dtype, x, weight), (x, weight)


def backward(
    spec: str, dtype: Any, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    gradient = gradient.astype(x.dtype)
    inputs, out = spec.split("->")
    left, right = inputs.split(",")
    dx = summed(f"{out},{right}->{left}", gradient, weight.astype(x.dtype), x.dtype)
    # The operand whose axis comes first in the weight goes first: the product needs no transpose of its result.
    if next(axis for axis in right if (axis in left) != (axis in out)) in left:
        return dx, summed(f"{left},{out}->{right}", x, gradient, weight.dtype)
    return dx, summed(f"{out},{left}->{right}", gradient, x, weight.dtype)


product.defvjp(forward, backward)


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y + bias over the last axes, summed in float32 both ways; y's dtype."""
    bias = bias.astype(jnp.float32).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
    return (y.astype(jnp.float32) + bias).astype(y.dtype)
