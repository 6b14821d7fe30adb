"""Products with rounded weights, which stay rounded in memory.

A product's weight is [inputs, channels] or, of tables, [channels, inputs]. Where it is dequantised,
it is so in tiles of channels inside a loop: outside of one XLA would dequantise the weights of all
layers before the loop over tokens, and keep them.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.quantization import QuantizedWeight, split_levels, unpack_levels

# Few rows are multiplied as integers, which reads the weight once as it is in memory.
MOST_INTEGER_ROWS = 8
FLOAT32_DIGITS, SHORT_DIGITS = 3, 2  # int8 numbers that hold a value of 24 bits, or of 8 or 11
MOST_INTEGER_INPUTS = 384  # of a group that is multiplied at once: its packed weights stay in cache
TILE_BYTES = 4 << 20  # of a dequantised tile: it stays in a CPU's cache


def quantized_product(
    spec: str, x: jax.Array, weight: QuantizedWeight, dtype: Any = None
) -> jax.Array:
    """Return `einsum(spec, x, dequantised weight)`, summed in float32, in `dtype` (x's if None).

    The axes that x and the weight share stand last in x, and first or last in the weight.
    """
    inputs, out = spec.split("->")
    left, right = inputs.split(",")
    summed = [axis for axis in right if axis in left and axis not in out]
    inputs_first = right.startswith("".join(summed))

    leading = x.shape[: x.ndim - len(summed)]
    x_RI = x.reshape(-1, math.prod(x.shape[len(leading) :]))
    scales, channels = weight.scales, weight.scales.shape
    if weight.bits == 4:
        channels = channels[1:] if inputs_first else channels[:-1]

    if weight.bits == 8:
        size = x_RI.shape[1]
        shape = (size, -1) if inputs_first else (-1, size)
        values, scales = weight.values.reshape(shape), scales.reshape(-1)
        if x_RI.shape[0] <= MOST_INTEGER_ROWS:
            y_RO = jax.lax.platform_dependent(
                x_RI,
                values,
                cpu=lambda x, w: integer_product(x, w, inputs_first),
                default=lambda x, w: tiled_product(x, QuantizedWeight(w, None), inputs_first),
            )
        else:
            y_RO = tiled_product(x_RI, QuantizedWeight(values, None), inputs_first)
        y_RO = y_RO * scales[None]
    else:
        groups, half = weight.values.shape[:2] if inputs_first else weight.values.shape[-2:]
        shape = (groups, half, -1) if inputs_first else (-1, groups, half)
        values = weight.values.reshape(shape)
        scales = scales.reshape((groups, -1) if inputs_first else (-1, groups))
        y_RO = tiled_product(x_RI, QuantizedWeight(values, scales), inputs_first)
    return y_RO.reshape(*leading, *channels).astype(dtype or x.dtype)


def integer_product(x_RI: jax.Array, values: jax.Array, inputs_first: bool) -> jax.Array:
    """Return float32 [R, O]: x times int8 values, by products of int8 numbers summed in int32.

    Each row of x is written with digits of base 254, which hold as many bits as its dtype. So the
    result is as near as that of a product in float32, and a CPU reads a quarter of the bytes. There
    are at least two rows of digits: XLA would convert the whole weight for a single one.
    """
    count = FLOAT32_DIGITS if x_RI.dtype == jnp.float32 else SHORT_DIGITS
    x_RI = x_RI.astype(jnp.float32)
    scale_R1 = jnp.max(jnp.abs(x_RI), 1, keepdims=True) * jnp.float32(1 / 127)
    scale_R1 = jnp.where(scale_R1 > 0, scale_R1, jnp.float32(1))

    rest_RI, digits = x_RI / scale_R1, []
    for _ in range(count):
        digit_RI = jnp.round(rest_RI)
        digits.append(digit_RI.astype(jnp.int8))
        rest_RI = (rest_RI - digit_RI) * 254

    products = digit_product(jnp.concatenate(digits), values, inputs_first)
    products = products.reshape(count, len(x_RI), -1)
    total_RO = products[count - 1].astype(jnp.float32)
    for product_RO in reversed(products[: count - 1]):
        total_RO = product_RO.astype(jnp.float32) + total_RO * jnp.float32(1 / 254)
    return total_RO * scale_R1


def digit_product(rows_DI: jax.Array, values: jax.Array, inputs_first: bool) -> jax.Array:
    """Return int32 [D, O]: rows of int8 numbers times int8 values.

    XLA packs weights [inputs, channels] before it multiplies them, which takes half as long where
    the packed ones stay in the processor's cache. So inputs are multiplied in groups.
    """
    einsum = partial(jnp.einsum, preferred_element_type=jnp.int32)
    if not inputs_first:
        return einsum("di,oi->do", rows_DI, values)
    inputs, channels = values.shape
    size = channel_tile(inputs, MOST_INTEGER_INPUTS)
    few = inputs <= MOST_INTEGER_INPUTS
    if few or size < MOST_INTEGER_INPUTS // 4:  # or too many groups, as of a prime number of inputs
        return einsum("di,io->do", rows_DI, values)
    rows_DGI = rows_DI.reshape(len(rows_DI), -1, size)
    values_GIO = values.reshape(-1, size, channels)
    return einsum("dgi,gio->gdo", rows_DGI, values_GIO).sum(0)


def tiled_product(x_RI: jax.Array, weight: QuantizedWeight, inputs_first: bool) -> jax.Array:
    """Return float32 [R, O]: x times a weight that is dequantised tile by tile.

    Without scales the values themselves are multiplied; small integers are exact in bfloat16.
    """
    channel_axis = weight.values.ndim - 1 if inputs_first else 0
    channels = weight.values.shape[channel_axis]
    tile = channel_tile(channels, TILE_BYTES // (4 * x_RI.shape[1]))
    weight_axes = "io" if inputs_first else "oi"

    # At 4 bits the halves of the groups are multiplied by themselves: to put them together again
    # would take longer than the product.
    parts = [x_RI]
    if weight.scales is not None:
        half = weight.values.shape[1 if inputs_first else 2]
        x_RNSH = x_RI.reshape(len(x_RI), -1, 2, half)
        parts = [x_RNSH[:, :, side].reshape(len(x_RI), -1) for side in range(2)]

    def multiply(number: jax.Array) -> jax.Array:
        def cut(array: jax.Array) -> jax.Array:
            axis = array.ndim - 1 if inputs_first else 0
            return jax.lax.dynamic_slice_in_dim(array, number * tile, tile, axis)

        factors = [cut(weight.values)]
        if weight.scales is not None:
            scales = jnp.expand_dims(cut(weight.scales), 1 if inputs_first else 2)
            factors = [half.astype(jnp.float32) * scales for half in split_levels(factors[0])]

        shape = (-1, tile) if inputs_first else (tile, -1)
        first, *others = (
            jnp.einsum(
                f"ri,{weight_axes}->ro",
                part,
                factor.reshape(shape).astype(part.dtype),
                preferred_element_type=jnp.float32,
            )
            for part, factor in zip(parts, factors, strict=True)
        )
        return sum(others, start=first)

    tiles = jax.lax.map(multiply, jnp.arange(channels // tile))
    return jnp.moveaxis(tiles, 0, 1).reshape(x_RI.shape[0], channels)


def channel_tile(channels: int, most: int) -> int:
    """Return the largest divisor of `channels` up to `most` and half of them (1 where one is)."""
    most = max(min(most, channels // 2), 1)
    return next(size for size in range(most, 0, -1) if channels % size == 0)


def product_at_once(spec: str, x: jax.Array, weight: QuantizedWeight) -> jax.Array:
    """Return `quantized_product` of a weight [inputs, channels] of 8 bits, without tiles.

    The levels, which are exact in bfloat16, are multiplied; the sums are scaled in float32.
    """
    y = jnp.einsum(spec, x, weight.values.astype(x.dtype), preferred_element_type=jnp.float32)
    return scale_outputs(y, weight.scales).astype(x.dtype)


def scale_outputs(y: jax.Array, scales: jax.Array) -> jax.Array:
    """Return float32 y, whose last axes are those of the scales, times the scales."""
    scales = scales.reshape((1,) * (y.ndim - scales.ndim) + scales.shape)
    return y.astype(jnp.float32) * scales


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def quantized_matmul(spec: str, x: jax.Array, weight: QuantizedWeight) -> jax.Array:
    """Return `quantized_product` with a gradient of x, that of the dequantised weight.

    The weight, [inputs, channels] of 8 bits, has none. Training multiplies all of it at once.
    """
    return quantized_product(spec, x, weight)


def quantized_forward(
    spec: str, x: jax.Array, weight: QuantizedWeight
) -> tuple[jax.Array, QuantizedWeight]:
    """Return the product, and the rounded weight, which its gradient needs."""
    return product_at_once(spec, x, weight), weight


def quantized_backward(
    spec: str, weight: QuantizedWeight, gradient: jax.Array
) -> tuple[jax.Array, None]:
    """Return the gradient of x, in its dtype."""
    inputs, out = spec.split("->")
    left, right = inputs.split(",")
    scaled = scale_outputs(gradient, weight.scales).astype(gradient.dtype)
    values = weight.values.astype(gradient.dtype)
    spec = f"{out},{right}->{left}"
    dx = jnp.einsum(spec, scaled, values, preferred_element_type=jnp.float32)
    return dx.astype(gradient.dtype), None


quantized_matmul.defvjp(quantized_forward, quantized_backward)


def lookup_rows(table: Any, ids: jax.Array) -> jax.Array:
    """Return rows of a table [rows, width], which may be rounded: [..., width], then float32."""
    if not isinstance(table, QuantizedWeight):
        return table[ids]
    values, scales = table.values[ids], table.scales[ids]
    if table.bits == 8:
        return values.astype(jnp.float32) * scales[..., None]
    levels = unpack_levels(values, values.ndim - 1).astype(jnp.float32)
    return (levels * scales[..., None]).reshape(*ids.shape, -1)
