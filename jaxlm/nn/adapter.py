"""LoRA: small trained matrices beside a frozen weight (Hu et al. 2021, arXiv 2106.09685).

A weight W of a layer that has an adapter is used as W + scale * A B. A starts uniform and B at 0,
so that a fresh adapter changes nothing. The layer declares them beside `NAME_kernel`:

    NAME_lora_a       [inputs, rank]
    NAME_lora_b       [rank, outputs]
    NAME_magnitude    [outputs], with DoRA alone

`qkv` is one A for query, key and value, each of which has its own B: a model that keeps the three
as one matrix has such an adapter (GPT-2's c_attn in PEFT).

DoRA (Liu et al. 2024, arXiv 2402.09353) uses m * (W + scale * A B) / norm, with the norm of each
output over all inputs, and m trained. The norm has no gradient (section 4.3). m starts as the norm
of W: `models.adapters.start_magnitudes` sets it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.config import AdapterConfig
from jaxlm.nn.dropout import dropout, site_key
from jaxlm.nn.matmul import PRODUCT, matmul
from jaxlm.nn.parameters import parameter
from jaxlm.nn.quantized_product import quantized_matmul
from jaxlm.quantization import QuantizedWeight, dequantize, input_axes
from jaxlm.types import Axes

# Places of dropout on the input of A, of which a layer's other places are far.
SITES = {
    name: 1000 + site
    for site, name in enumerate(("qkv", "query", "key", "value", "output", "gate", "up", "down"))
}

CHANGE = "adapter_change"  # name of h B for recomputation policies
SUFFIXES = ("_lora_a", "_lora_b", "_magnitude")  # of the names of trained parameters


class AdaptedWeight(NamedTuple):
    """A weight and its adapter, in place of the weight's array.

    Layers hand it to the product that `adapted` returns.
    """

    kernel: Any  # [inputs, outputs], each of one dimension or two; an array or a QuantizedWeight
    axes: Axes  # logical axes of the kernel
    a: jax.Array  # [inputs, rank]
    b: jax.Array  # [rank, outputs]
    magnitude: jax.Array | None  # [outputs]
    config: AdapterConfig
    key: jax.Array | None  # of the dropout on the input of A


def adapter_parameter(
    module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], axes: Axes, dtype: Any
) -> jax.Array:
    """Declare an adapter's matrix, of which ZeRO splits the rank where it splits nothing else.

    The rank is the axis None of `axes`.
    """
    names = tuple("rank" if name is None and "embed" not in axes else name for name in axes)
    return parameter(module, name, init, shape, names, dtype)


def declare_a(
    module: Any, name: str, shape: tuple[int, ...], axes: Axes, config: AdapterConfig
) -> jax.Array:
    """Declare `NAME_lora_a` for inputs of this shape and these logical axes."""
    bound = 1 / math.sqrt(math.prod(shape))  # of torch's linear layers, and so of PEFT

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound).astype(dtype)

    whole = (*shape, config.rank)
    return adapter_parameter(module, f"{name}_lora_a", uniform, whole, (*axes, None), module.dtype)


def adapt(
    module: Any,
    name: str,
    kernel: Any,
    shape: tuple[int, ...],
    axes: Axes,
    dropout_key: jax.Array | None = None,
    shared_a: jax.Array | None = None,
) -> Any:
    """Return the weight `NAME_kernel` with its adapter; as it is where the config asks for none.

    `shape` and `axes` are those of the kernel, `dropout_key` is the layer's. `shared_a` is the A of
    several weights, whose B alone is then this one's.
    """
    config: AdapterConfig = module.adapter
    if not config.rank or (shared_a is None and name not in config.targets):
        return kernel

    inputs = input_axes(axes)
    assert inputs is not None, axes
    a, site = shared_a, "qkv"
    if a is None:
        a, site = declare_a(module, name, shape[: inputs.stop], axes[: inputs.stop], config), name

    zeros, outputs = nn.initializers.zeros, shape[inputs.stop :]
    b_shape, b_axes = (config.rank, *outputs), (None, *axes[inputs.stop :])
    b = adapter_parameter(module, f"{name}_lora_b", zeros, b_shape, b_axes, module.dtype)
    magnitude = None
    if config.dora:
        # As a norm's scale it stays whole and is never cast: the ratio to the norm is near 1.
        vector_axes = ("norm",) * len(outputs)
        magnitude = parameter(
            module, f"{name}_magnitude", zeros, outputs, vector_axes, module.dtype
        )

    key = site_key(dropout_key, SITES[site]) if config.dropout else None
    return AdaptedWeight(kernel, axes, a, b, magnitude, config, key)


def adapted(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return `product(spec, x, weight)`, of weights that may have adapters."""

    def base_product(spec: str, x: jax.Array, weight: Any) -> jax.Array:
        if isinstance(weight, QuantizedWeight):
            return checkpoint_name(quantized_matmul(spec, x, weight), PRODUCT)
        return product(spec, x, weight)

    def adapted_product(spec: str, x: jax.Array, weight: Any) -> jax.Array:
        if not isinstance(weight, AdaptedWeight):
            return base_product(spec, x, weight)
        inputs, out = spec.split("->")
        left, right = inputs.split(",")
        summed = right[: len(right) - (weight.b.ndim - 1)]
        inner = left[: len(left) - len(summed)] + "r"

        y = base_product(spec, x, weight.kernel)
        dropped = dropout(x, weight.config.dropout, weight.key)
        h = matmul(f"{left},{summed}r->{inner}", dropped, weight.a)
        # Without the name of a product: the backward pass computes it again from the small h.
        change = matmul(f"{inner},r{right[len(summed) :]}->{out}", h, weight.b, None, CHANGE)
        y = y.astype(jnp.float32) + weight.config.scale * change.astype(jnp.float32)

        if weight.magnitude is not None:
            ratio = weight.magnitude.astype(jnp.float32) / output_norms(weight)
            y *= ratio.reshape((1,) * (y.ndim - ratio.ndim) + ratio.shape)
        return y.astype(x.dtype)

    return adapted_product


def output_norms(weight: AdaptedWeight) -> jax.Array:
    """Return the norm of each output of W + scale * A B over all inputs: float32 [outputs].

    It has no gradient.
    """
    a, b = (jax.lax.stop_gradient(x).astype(jnp.float32) for x in (weight.a, weight.b))
    total = float_kernel(weight.kernel, weight.axes).reshape(-1, math.prod(b.shape[1:]))
    change = a.reshape(-1, len(b)) @ b.reshape(len(b), -1)
    total = jax.lax.stop_gradient(total) + weight.config.scale * change
    return jnp.linalg.norm(total, axis=0).reshape(b.shape[1:])


def is_adapter(name: str) -> bool:
    """Return whether a parameter of this name is a part of an adapter."""
    return name.endswith(SUFFIXES)


def float_kernel(kernel: Any, axes: Axes) -> jax.Array:
    """Return a weight, which may be rounded to 8 bits, in float32."""
    if isinstance(kernel, QuantizedWeight):
        return dequantize(kernel, axes, kernel.values.shape)
    return kernel.astype(jnp.float32)
