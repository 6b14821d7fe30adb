"""Matrix products in the activations' dtype or in float8, summed in float32.

The weight's gradient has the weight's own dtype.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.nn.quantized_product import quantized_product
from jaxlm.quantization import QuantizedWeight

# Recomputation policies keep results by this name: rounded to their dtype, not the float32 sums.
PRODUCT = "product"


def product(
    spec: str, x: jax.Array, weight: Any, dtype: Any = None, name: str = PRODUCT
) -> jax.Array:
    """Return `einsum(spec, x, weight)`, summed in float32, in `dtype` (x's unless given).

    Both factors are multiplied in x's dtype. The result has a name for recomputation policies. The
    weight may be rounded; then it has no gradient.
    """
    if isinstance(weight, QuantizedWeight):
        return quantized_product(spec, x, weight, dtype)
    weight, dtype = weight.astype(x.dtype), dtype or x.dtype
    y = jnp.einsum(spec, x, weight, preferred_element_type=jnp.float32)
    if dtype != jnp.float32:
        y = jax.lax.platform_dependent(x, weight, **rounded(spec, y, dtype))
    return checkpoint_name(y, name)


def rounded(spec: str, y: jax.Array, dtype: Any) -> dict[str, Callable[..., jax.Array]]:
    """Return functions of the factors by platform: their product in `dtype`, of which y is float32.

    On CPUs y is rounded: only products in float32 reach the bfloat16 instructions, and are several
    times faster than those whose result is bfloat16 itself. GPUs sum in float32 anyway, and round
    in the same kernel. cuBLAS has one for a product alone; one with a conversion is left to Triton.
    There nobody reads y, and it is never computed.
    """
    at_once = partial(jnp.einsum, spec, preferred_element_type=dtype)
    return {"cpu": lambda *_: y.astype(dtype), "default": at_once}


def forward(
    spec: str, x: jax.Array, weight: jax.Array, dtype: Any, name: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Return the product and what its gradients need."""
    w, dtype = weight.astype(x.dtype), dtype or x.dtype
    # As in `product`, which is not called: every traceback through a model ends here.
    y = jnp.einsum(spec, x, w, preferred_element_type=jnp.float32)
    if dtype != jnp.float32:
        y = jax.lax.platform_dependent(x, w, **rounded(spec, y, dtype))
    return checkpoint_name(y, name), (x, weight)


def backward(
    spec: str, dtype: Any, name: str, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of x and of the weight, each in the dtype of its operand."""
    del dtype, name
    x, weight = saved
    gradient = gradient.astype(x.dtype)
    inputs, out = spec.split("->")
    left, right = inputs.split(",")

    dx = product(f"{out},{right}->{left}", gradient, weight)
    dw = weight_gradient(left, out, right, x, gradient)
    return dx, dw.astype(weight.dtype)


def weight_gradient(
    left: str, out: str, right: str, x: jax.Array, gradient: jax.Array
) -> jax.Array:
    """Return the product of x and of a gradient with these axes, with the axes `right`: float32."""
    forms = (partial(form, left, out, right) for form in (cpu_weight_gradient, einsum_gradient))
    on_cpu, elsewhere = forms
    return jax.lax.platform_dependent(x, gradient, cpu=on_cpu, default=elsewhere)


def einsum_gradient(
    left: str, out: str, right: str, x: jax.Array, gradient: jax.Array
) -> jax.Array:
    """Return `weight_gradient` by one einsum."""
    einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)
    # The operand whose axis comes first in the weight goes first, so that the product needs no
    # transpose of its result.
    first_axis = next(axis for axis in right if (axis in left) != (axis in out))
    if first_axis in left:
        return einsum(f"{left},{out}->{right}", x, gradient)
    return einsum(f"{out},{left}->{right}", gradient, x)


def cpu_weight_gradient(
    left: str, out: str, right: str, x: jax.Array, gradient: jax.Array
) -> jax.Array:
    """Return `weight_gradient`, in the form that is fastest on CPUs.

    A CPU transposes the first operand. So that is the narrower one, at the cost of a transpose of
    the result. The barrier asks for the operands as they are; XLA may still compute one anew, in
    the order of the transpose.
    """
    einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)
    x, gradient = jax.lax.optimization_barrier((x, gradient))
    sizes = dict(zip(left + out, x.shape + gradient.shape, strict=True))
    heads = "".join(axis for axis in right if axis in left and axis in out)  # a product for each
    of_x, of_gradient = (set(axes) - set(heads) for axes in (left, out))
    ins, outs = ("".join(axis for axis in right if axis in axes) for axes in (of_x, of_gradient))
    if math.prod(sizes[axis] for axis in ins) <= math.prod(sizes[axis] for axis in outs):
        order = heads + ins + outs
        dw = einsum(f"{left},{out}->{order}", x, gradient)
    else:
        order = heads + outs + ins
        dw = einsum(f"{out},{left}->{order}", gradient, x)
    if order == right:
        return dw
    # Without a barrier XLA would exchange the operands to be rid of the transpose.
    return jnp.einsum(f"{order}->{right}", jax.lax.optimization_barrier(dw))


# The product, whose weight gradient has the dtype of the weight. With float32 weights the gradient
# is never rounded to bfloat16, and what several devices add up is float32.
matmul = jax.custom_vjp(product, nondiff_argnums=(0, 3, 4))
matmul.defvjp(forward, backward)


# Products in float8: four bits for the exponent in forward products, five for gradients, whose
# values spread wider (Micikevicius et al., arXiv 2209.05433).
FORWARD8, GRADIENT8 = jnp.float8_e4m3fn, jnp.float8_e5m2

# A power of two far below all that is computed: the smallest scale. That of zeros would be 0.
SMALLEST_SCALE = 2.0**-100


class Float8(NamedTuple):
    """An array in float8 and the scale by which its values are multiplied, a float32 scalar."""

    values: jax.Array
    scale: jax.Array

    def unpack(self, dtype: Any) -> jax.Array:
        """Return the values in `dtype`, bfloat16 or float32, both of which hold them exactly.

        XLA for GPUs finds this product with a scale before a matrix product, and has cuBLAS
        multiply the float8 values themselves.
        """
        return self.values.astype(dtype) * self.scale.astype(dtype)


def to_float8(x: jax.Array, dtype: Any) -> Float8:
    """Round to float8 with the smallest scale that is a power of two and lets all values fit in.

    The scale is that of the array as it is now (current scaling). A power of two moves exponents
    alone, so that nothing is rounded but the values, once.
    """
    largest = jnp.max(jnp.abs(x)).astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(largest, jnp.int32)
    power = jax.lax.bitcast_convert_type(bits & 0x7F800000, jnp.float32)  # without the mantissa

    # The largest number of both formats is 1.75 times a power of two.
    limit = float(jnp.finfo(dtype).max) / 1.75
    scale = jnp.where(largest > 1.75 * power, 2 * power, power) / limit
    scale = jnp.maximum(scale, SMALLEST_SCALE)
    return Float8((x.astype(jnp.float32) * (1 / scale)).astype(dtype), scale)


def float8_product(spec: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """Return `einsum(spec, x, weight)` of factors rounded to float8, in x's dtype.

    It is summed in float32. x is bfloat16 or float32.
    """
    return float8_forward(spec, x, weight)[0]


def float8_forward(spec: str, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[Any, ...]]:
    """Return the product, and what its gradients need: the factors in a byte a value."""
    x8, weight8 = to_float8(x, FORWARD8), to_float8(weight.astype(x.dtype), FORWARD8)
    y = product(spec, x8.unpack(x.dtype), weight8.unpack(x.dtype))
    # XLA would make GELU a part of the kernel, as of a product in bfloat16, and fail to compile it
    # with the second result that the backward pass needs ("RET_CHECK failure !has_aux_output").
    y = jax.lax.platform_dependent(y, cpu=lambda y: y, default=jax.lax.optimization_barrier)
    return y, (x8, weight8, jnp.zeros(0, weight.dtype))


def float8_backward(
    spec: str, saved: tuple[Any, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of x and of the weight, each in the dtype of its operand."""
    x8, weight8, like = saved
    dtype = gradient.dtype
    gradient = to_float8(gradient, GRADIENT8).unpack(dtype)
    inputs, out = spec.split("->")
    left, right = inputs.split(",")

    dx = product(f"{out},{right}->{left}", gradient, weight8.unpack(dtype))
    dw = weight_gradient(left, out, right, x8.unpack(dtype), gradient)
    return dx, dw.astype(like.dtype)


# The product in float8, whose gradients are products in float8 too.
float8_matmul = jax.custom_vjp(float8_product, nondiff_argnums=(0,))
float8_matmul.defvjp(float8_forward, float8_backward)

# The product of a weight by `precision.matmul`; None: in the activations' dtype.
MATMULS: dict[str | None, Callable[..., jax.Array]] = {None: matmul, "float8": float8_matmul}


def add_vector(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Return y plus a bias over its last axes, in y's dtype; y itself where the bias is None.

    The sum has the name of a product for recomputation policies, which so keep one of the two.
    """
    if bias is None:
        return y
    if y.dtype == jnp.float32:
        return checkpoint_name(add_in_float32(y, bias), PRODUCT)
    total = jax.lax.platform_dependent(y, bias, cpu=add_in_float32, default=add_in_kernel)
    return checkpoint_name(total, PRODUCT)


def add_in_float32(y: jax.Array, bias: jax.Array) -> jax.Array:
    """Return `add_vector`, summed in float32 and rounded."""
    bias = bias.astype(jnp.float32).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
    return (y.astype(jnp.float32) + bias).astype(y.dtype)


def add_in_kernel(y: jax.Array, bias: jax.Array) -> jax.Array:
    """Return `add_vector` in the form that XLA makes a part of cuBLAS's kernel of the product y.

    Both have one axis of channels and y's dtype.
    """
    leading = y.shape[: y.ndim - bias.ndim]
    channels = bias.astype(y.dtype).reshape((1,) * len(leading) + (bias.size,))
    return (y.reshape(*leading, bias.size) + channels).reshape(y.shape)


def add_vector_forward(y: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """Return the sum, and an empty array of the bias's rank and dtype: its values aren't kept."""
    like = None if bias is None else jnp.zeros((0,) * bias.ndim, bias.dtype)
    return add_vector(y, bias), like


def bias_gradient(
    like: jax.Array | None, gradient: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Return the gradients of y and of a bias whose rank and dtype are those of `like`.

    That of the bias is the sum of the other as it is in memory. Without the barrier XLA writes the
    other in float32 too, on GPUs, for the sum alone.
    """
    if like is None:
        return gradient, None
    gradient = jax.lax.optimization_barrier(gradient)
    axes = tuple(range(gradient.ndim - like.ndim))
    return gradient, jnp.sum(gradient.astype(jnp.float32), axes).astype(like.dtype)


# The sum, whose bias has a gradient that is summed in float32.
add_bias = jax.custom_vjp(add_vector)
add_bias.defvjp(add_vector_forward, bias_gradient)
