"""Parameters with adapters: what is trained, how the rest is kept, and what they add up to.

The layers declare adapters and use them (`nn/adapter.py`). Here trees of parameters go from one
form to the other: a plain model's, the same with fresh adapters beside frozen weights, and a plain
model's again, with the adapters in its weights.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.config import AdapterConfig, OptimizerConfig
from jaxlm.nn.adapter import float_kernel, is_adapter
from jaxlm.parameter_names import drop, merge, name_of
from jaxlm.quantization import QuantizedWeight, input_axes, quantize
from jaxlm.types import Array, Axes, Tree, is_axes

KERNEL = "_kernel"
CLASSIFIER = {"classifier", "pooler"}  # parts of the tree that are trained too


def is_trained(name: str) -> bool:
    """Return whether a parameter of this dotted name is trained in a model with adapters."""
    return is_adapter(name) or not CLASSIFIER.isdisjoint(name.split("."))


def adapter_part(params: Tree) -> Tree:
    """Return the parameters, or what stands for them, that are trained beside a frozen base."""
    return drop(params, lambda name: not is_trained(name))


def base_part(params: Tree) -> Tree:
    """Return the parameters, or what stands for them, of the model without its adapters."""
    return drop(params, is_adapter)


def frozen_names(adapter: AdapterConfig, axes: Tree) -> tuple[str, ...]:
    """Return the names of all parameters that stay as they are; () without adapters."""
    if not adapter.rank:
        return ()
    leaves = jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes)
    names = [name_of(path) for path, _ in leaves]
    return tuple(name for name in names if not is_trained(name))


def with_frozen(config: OptimizerConfig, adapter: AdapterConfig, axes: Tree) -> OptimizerConfig:
    """Return the config of the optimizer of a model with these adapters and logical axes."""
    if not adapter.rank:
        return config
    return replace(config, frozen=(*config.frozen, *frozen_names(adapter, axes)))


def with_adapters(init: Callable[[Array], Tree], adapter: AdapterConfig, axes: Tree) -> Callable:
    """Return the init of a model with adapters, given that of the same with unfrozen weights."""

    def init_frozen(key: Array) -> Tree:
        return start_magnitudes(adapter, axes, freeze_base(adapter, axes, init(key)))

    return init_frozen


def attach_adapters(adapter: AdapterConfig, axes: Tree, base: Tree, fresh: Tree) -> Tree:
    """Return the parameters of `fresh`, from a model's init, with those of a plain model inside.

    What the base lacks, such as a classifier, stays fresh. `axes` are those of `fresh`.
    """
    params = merge(fresh, freeze_base(adapter, axes, base))
    return start_magnitudes(adapter, axes, params)


def freeze_base(adapter: AdapterConfig, axes: Tree, params: Tree) -> Tree:
    """Return parameters whose frozen matrices are kept as `adapter.base` says.

    Norms, biases and tables of relative positions stay as they are.
    """
    axes_by_name = named_axes(axes)

    def kept(path: tuple, weight: Any) -> Any:
        name = name_of(path)
        names = axes_by_name[name]
        if is_trained(name) or input_axes(names) is None or adapter.base == "float32":
            return weight
        if adapter.base == "int8" and names[0] == "layers":
            return quantize(weight, names, bits=8)
        return weight.astype(jnp.bfloat16)

    return jax.tree_util.tree_map_with_path(kept, params)


def start_magnitudes(adapter: AdapterConfig, axes: Tree, params: Tree) -> Tree:
    """Return parameters whose magnitudes (DoRA) are the norms of the weights' outputs."""
    if not adapter.dora:
        return params

    def norms(name: str, owner: Tree, owner_axes: Tree) -> Array:
        names = owner_axes[name + KERNEL]
        matrix = as_matrix(float_kernel(owner[name + KERNEL], names), names)
        zeros = owner[f"{name}_magnitude"]
        return jnp.linalg.norm(matrix, axis=1).reshape(zeros.shape).astype(zeros.dtype)

    return map_adapted(
        params,
        axes,
        lambda name, owner, owner_axes: {f"{name}_magnitude": norms(name, owner, owner_axes)},
    )


def merge_adapters(adapter: AdapterConfig, axes: Tree, params: Tree) -> Tree:
    """Return a plain model's float32 parameters: each adapted weight with its adapter in it."""
    if not adapter.rank:
        return params

    def merged(name: str, owner: Tree, owner_axes: Tree) -> Tree:
        names = owner_axes[name + KERNEL]
        kernel = float_kernel(owner[name + KERNEL], names)
        a = owner.get(f"{name}_lora_a", owner.get("qkv_lora_a")).astype(jnp.float32)
        b = owner[f"{name}_lora_b"].astype(jnp.float32)
        a, b = a.reshape(len(a), -1, a.shape[-1]), b.reshape(*b.shape[:2], -1)

        change = jnp.einsum("nir,nro->nio", a, b, precision="highest")
        total = as_matrix(kernel, names) + adapter.scale * change
        if adapter.dora:
            magnitude = owner[f"{name}_magnitude"].astype(jnp.float32).reshape(len(b), -1)
            total *= (magnitude / jnp.linalg.norm(total, axis=1))[:, None]
        return {name + KERNEL: total.reshape(kernel.shape)}

    def plain(names: Axes, weight: Any) -> Array:
        if isinstance(weight, QuantizedWeight):
            return float_kernel(weight, names)
        return weight.astype(jnp.float32)

    params = base_part(map_adapted(params, axes, merged))
    return jax.tree.map(plain, base_part(axes), params, is_leaf=is_axes)


def map_adapted(
    params: Tree, axes: Tree, change: Callable[[str, Tree, Tree], dict[str, Array]]
) -> Tree:
    """Return parameters with `change(NAME, owner, its axes)` in the owner of each adapted weight.

    The owner is the dict that has NAME_kernel and NAME_lora_b.
    """
    if not isinstance(params, dict):
        return params
    changed = {name: map_adapted(child, axes.get(name), change) for name, child in params.items()}
    for key in params:
        if key.endswith("_lora_b"):
            changed |= change(key.removesuffix("_lora_b"), params, axes)
    return changed


def as_matrix(kernel: Array, axes: Axes) -> Array:
    """Return the stack of weights as matrices [layers, inputs, outputs]."""
    inputs = input_axes(axes)
    assert inputs is not None, axes
    outputs = 1
    for size in kernel.shape[inputs.stop :]:
        outputs *= size
    return kernel.reshape(len(kernel), -1, outputs)


def named_axes(axes: Tree) -> dict[str, Axes]:
    """Return logical axes by the dotted names of their parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes)
    return {name_of(path): names for path, names in leaves}
