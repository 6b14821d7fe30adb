"""How layers and steps run on a mesh: what each device computes, and what travels between devices.

A step runs inside `on_each_device`: every device works on its own rows of the batch, and all
communication over data and fsdp is written out below. Left to the partitioner, the gradients would
be summed over the devices in every microbatch. Tensor parallelism is left to the partitioner, from
constraints on activations.

Evaluation of texts and generation are ordinary `jit` programs. There the same functions place
arrays by sharding constraints.
"""

import math
from collections.abc import Callable, Set
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.config import ParallelConfig, PrecisionConfig
from jaxlm.nn.execution import Execution
from jaxlm.precision import VECTOR_AXES, cast_for_compute, cast_for_gather
from jaxlm.quantization import QuantizedWeight, quantized_axes
from jaxlm.sharding import ACTIVATIONS, BATCH, MESH_AXES, ZERO, Placement, weight_spec
from jaxlm.types import Array, Axes, Tree, is_axes


def build_execution(
    mesh: Mesh,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    attention: str,
    *,
    width: int,
    token_width: int | None = None,
    rank: int = 0,
    deterministic: bool = False,
    device: Any = None,
) -> Execution:
    """Build the description of how the layers of a model of this `width` run on `mesh`.

    `token_width` is that of its token table (None: the same), `rank` that of its adapters.
    `device` stands for those of a mesh that has none (jax.sharding.AbstractMesh).
    """
    device = mesh.devices.flat[0] if device is None else device
    # Unrolled blocks are faster. Under ZeRO-3 their gathered weights would all be alive at once.
    scanned = parallel.blocks == "scanned" or (
        parallel.blocks == "auto" and parallel.zero == 3 and mesh.size > 1
    )

    # What ZeRO 3 splits of each weight. A device, which sees its part alone, can't tell.
    sizes = {"embed": width, "token_embed": token_width or width, "rank": rank}
    fsdp = mesh.shape["fsdp"]
    split = {name for name, size in sizes.items() if size % fsdp == 0}
    if parallel.zero != 3 or fsdp == 1:
        split = set()

    execution = Execution(
        gather=partial(gather, mesh, split, precision),
        blocks="scanned" if scanned else "unrolled",
        remat=parallel.remat,
        attention=attention,
        platform=device.platform,
        compute_capability=float(getattr(device, "compute_capability", None) or 0.0),
        deterministic=deterministic,
    )
    if mesh.size == 1:
        return execution
    return execution._replace(
        constrain=partial(constrain, mesh),
        per_device=partial(per_device, mesh),
        local_shape=partial(local_shape, mesh),
        gathers=parallel.zero == 3,
        head_shards=mesh.shape["tensor"],
    )


# What the layers call


def manual_axes() -> frozenset[str]:
    """Return the mesh axes over which the function being traced sees one device's part."""
    return frozenset(jax.sharding.get_abstract_mesh().manual_axes)


def activation_spec(mesh: Mesh, axes: Axes, shape: tuple[int, ...]) -> P:
    """Return the PartitionSpec of an activation with these logical axes and this shape.

    Dimensions that do not divide (few key/value heads, short batches) stay whole. Mesh axes over
    which the function being traced sees one device's part are left out.
    """
    unknown = [name for name in axes if name is not None and name not in ACTIVATIONS]
    if unknown:
        raise ValueError(
            f"unknown logical axis {unknown[0]!r} of an activation; known: {', '.join(ACTIVATIONS)}"
        )

    manual, spec = manual_axes(), []
    for name, size in zip(axes, shape, strict=True):
        mesh_axes = None if name is None else ACTIVATIONS[name]
        split = [axis for axis in np.atleast_1d(mesh_axes or ()) if axis not in manual]
        divides = split and size % math.prod(mesh.shape[axis] for axis in split) == 0
        spec.append(tuple(split) if divides else None)
    return P(*spec)


def constrain(mesh: Mesh, x: Array, axes: Axes) -> Array:
    """Place an activation with these logical axes."""
    spec = activation_spec(mesh, axes, x.shape)
    manual = manual_axes()
    if not manual:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
    if manual >= set(MESH_AXES):
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def local_shape(mesh: Mesh, shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """Return the shape of a device's part of an activation with these logical axes."""
    spec = activation_spec(mesh, axes, shape)
    return NamedSharding(mesh, spec).shard_shape(shape)


def per_device(
    mesh: Mesh,
    function: Callable[..., Array],
    operands: dict[str, Array],
    axes: dict[str, Axes],
    result_axes: Axes,
) -> Array:
    """Return `function(**operands)`, called on each device with its part of the operands.

    `axes` are the logical axes of the operands; the result has the shape of the first operand. The
    partitioner can't split a kernel that it doesn't know, and would hand it operands that are split
    unalike.
    """
    names = set(MESH_AXES) - manual_axes()
    if math.prod(mesh.shape[name] for name in names) == 1:
        return function(**operands)

    specs = {name: activation_spec(mesh, axes[name], x.shape) for name, x in operands.items()}
    first = next(iter(operands.values()))
    return jax.shard_map(
        lambda parts: function(**parts),
        mesh=None if manual_axes() else mesh,
        in_specs=(specs,),
        out_specs=activation_spec(mesh, result_axes, first.shape),
        axis_names=names,
        check_vma=False,
    )(operands)


def gather(
    mesh: Mesh, split: Set[str], precision: PrecisionConfig, weights: Tree, axes: Tree
) -> Tree:
    """Return the weights whole over fsdp, in the dtype in which a layer uses them.

    `split` are the logical axes that are split over fsdp (ZeRO 3). In the backward pass their
    gradients are summed over fsdp and split again at once, in the dtype that precision.gradients
    says. All other sums are left to `sum_gradients`.
    """

    def whole(path: tuple, axes: Axes, weight: Any) -> Any:
        if isinstance(weight, QuantizedWeight):
            return gather_rounded(mesh, split, axes, weight)
        if "fsdp" in manual_axes():
            dimension = next((i for i, name in enumerate(axes) if name in split), None)
            return gather_part(mesh, precision, axes, dimension, weight)
        return gather_global(mesh, precision, jax.tree_util.keystr(path), axes, weight)

    return jax.tree_util.tree_map_with_path(whole, axes, weights, is_leaf=is_axes)


def gather_rounded(
    mesh: Mesh, split: Set[str], axes: Axes, weight: QuantizedWeight
) -> QuantizedWeight:
    """Return a rounded weight whole over fsdp, still rounded. It has no gradient."""

    def whole(axes: Axes, part: Array) -> Array:
        dimension = next((i for i, name in enumerate(axes) if name in split), None)
        if dimension is None:
            return part
        if "fsdp" in manual_axes():
            return jax.lax.all_gather(part, "fsdp", axis=dimension, tiled=True)
        spec = weight_spec(mesh, axes, part.shape, split=False, path="a rounded weight")
        return jax.lax.with_sharding_constraint(part, NamedSharding(mesh, spec))

    if not split:  # nothing is split over fsdp
        return weight
    parts = quantized_axes(axes, weight.bits)
    return QuantizedWeight(whole(parts.values, weight.values), whole(parts.scales, weight.scales))


def gather_part(
    mesh: Mesh, precision: PrecisionConfig, axes: Axes, dimension: int | None, part: Array
) -> Array:
    """Return a weight whole, given this device's part of it along `dimension` (None: all)."""

    @jax.custom_vjp
    def whole(part: Array) -> Array:
        # Cast before the gather: half of the bytes travel.
        weight = cast_for_gather(axes, part, precision)
        if dimension is not None:
            weight = jax.lax.all_gather(weight, "fsdp", axis=dimension, tiled=True)
        return cast_for_compute(axes, weight, precision)

    def backward(_: None, gradient: Array) -> tuple[Array]:
        if dimension is not None:
            gradient = scatter(mesh, gradient.astype(jnp.dtype(precision.gradients)), dimension)
        return (gradient.astype(part.dtype),)

    whole.defvjp(lambda part: (whole(part), None), backward)
    return whole(part)


def gather_global(
    mesh: Mesh, precision: PrecisionConfig, path: str, axes: Axes, weight: Array
) -> Array:
    """Return a weight whole over fsdp in a program that sees whole arrays."""
    weight = cast_for_gather(axes, weight, precision)
    if mesh.size > 1:
        spec = weight_spec(mesh, axes, weight.shape, split=False, path=path)
        weight = jax.lax.with_sharding_constraint(weight, NamedSharding(mesh, spec))
    return cast_for_compute(axes, weight, precision)


# What the steps call


def on_each_device(
    placement: Placement, function: Callable, params: Tree, out: Any
) -> Callable[..., Any]:
    """Return `function(params, rows, *others)` as a program in which each device calls it.

    A device has its part of the parameters, as the ZeRO stage says, and its `rows` of the batch, a
    tree; all others are whole. Only the shapes of `params` are read. `out` is the tree of
    PartitionSpecs of the result.
    """
    mesh = placement.mesh
    if mesh.size == 1:
        return function
    specs = jax.tree.map(lambda s: s.spec, placement.tree("parameters", params))

    def call(params: Tree, rows: Tree, *others: Tree) -> Any:
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(keep_manual(mesh, specs), P(BATCH), *(P() for _ in others)),
            out_specs=keep_manual(mesh, out),
            axis_names=step_axes(mesh),
            check_vma=False,
        )(params, rows, *others)

    return call


def step_axes(mesh: Mesh) -> set[str]:
    """Return the mesh axes over which a step is written device by device.

    All of them where nothing is left to the partitioner: kernels then see plain local arrays.
    """
    return set(MESH_AXES) if mesh.shape["tensor"] == 1 else set(BATCH)


def keep_manual(mesh: Mesh, specs: Tree) -> Tree:
    """Return PartitionSpecs without the axes that are left to the partitioner."""
    names = step_axes(mesh)

    def is_manual(entry: Any) -> bool:
        return names.issuperset(entry if isinstance(entry, tuple) else (entry,))

    def keep(spec: P) -> P:
        return P(*(entry if is_manual(entry) else None for entry in spec))

    return jax.tree.map(keep, specs, is_leaf=lambda x: isinstance(x, P))


def sum_over_rows(placement: Placement, sums: Tree) -> Tree:
    """Return sums over a device's rows, added up over all rows of the batch."""
    return jax.tree.map(lambda x: total(placement.mesh, x, BATCH), sums)


def total(mesh: Mesh, x: Array, names: tuple[str, ...]) -> Array:
    """Return the sum of x over the devices along the mesh axes `names`."""
    names = tuple(name for name in names if mesh.shape[name] > 1)
    return jax.lax.psum(summable(mesh, x), names).astype(x.dtype) if names else x


def scatter(mesh: Mesh, x: Array, dimension: int) -> Array:
    """Return this device's part, along `dimension`, of the sum of x over fsdp."""
    part = jax.lax.psum_scatter(summable(mesh, x), "fsdp", scatter_dimension=dimension, tiled=True)
    return part.astype(x.dtype)


def summable(mesh: Mesh, x: Array) -> Array:
    """Return x in a dtype in which the compiler can sum it over devices.

    XLA for CPUs aborts at a bfloat16 sum in a program that leaves an axis to the partitioner
    ("Invalid binary instruction opcode copy"). It would add up in float32 anyway.
    """
    is_partial = step_axes(mesh) != set(MESH_AXES) and mesh.devices.flat[0].platform == "cpu"
    return x.astype(jnp.float32) if is_partial and x.dtype == jnp.bfloat16 else x


def gradient_specs(placement: Placement, params: Tree) -> Tree:
    """Return the PartitionSpecs of the summed gradients of global `params`.

    Whoever holds a part of the optimizer state gets that part of the gradients.
    """
    return jax.tree.map(lambda s: s.spec, placement.tree("optimizer", params))


def scatter_dimensions(specs: Tree) -> Tree:
    """Return the dimension of each gradient that is split over fsdp, or -1."""

    def dimension(spec: P) -> int:
        return list(spec).index("fsdp") if "fsdp" in spec else -1

    return jax.tree.map(dimension, specs, is_leaf=lambda x: isinstance(x, P))


def zero_gradients(placement: Placement, dimensions: Tree, params: Tree) -> Tree:
    """Return float32 zeros of the shapes in which a device accumulates the gradients."""

    def zeros(dimension: int, part: Array) -> Array:
        shape = list(part.shape)
        if placement.zero == 2 and dimension >= 0:
            shape[dimension] //= placement.mesh.shape["fsdp"]
        return jnp.zeros(shape, jnp.float32)

    return jax.tree.map(zeros, dimensions, params)


def scatter_microbatch(placement: Placement, dimensions: Tree, grads: Tree) -> Tree:
    """Return the float32 gradients of a microbatch as they are accumulated.

    ZeRO 2 splits them at once, so that no device ever holds the sum of all. ZeRO 3 has split them
    layer by layer in the backward pass.
    """

    def accumulated(axes: Axes, dimension: int, gradient: Array) -> Array:
        if placement.zero == 2 and dimension >= 0 and placement.mesh.size > 1:
            gradient = scatter(placement.mesh, travelling(placement, axes, gradient), dimension)
        return gradient.astype(jnp.float32)

    axes = placement.trainable(placement.axes)
    return jax.tree.map(accumulated, axes, dimensions, grads, is_leaf=is_axes)


def sum_gradients(placement: Placement, dimensions: Tree, grads: Tree) -> Tree:
    """Return the accumulated gradients, added up over the devices: once per step.

    ZeRO 1 reduce-scatters to the parts whose moments a device holds. The sums over data are those
    of parts.
    """
    mesh = placement.mesh
    if mesh.size == 1:
        return grads
    gradients_split = "gradients" in ZERO[placement.zero]

    def summed(axes: Axes, dimension: int, gradient: Array) -> Array:
        gradient = travelling(placement, axes, gradient)
        if dimension < 0:
            gradient = total(mesh, gradient, BATCH)
        elif gradients_split:
            gradient = total(mesh, gradient, ("data",))
        else:
            gradient = total(mesh, scatter(mesh, gradient, dimension), ("data",))
        return gradient.astype(jnp.float32)

    axes = placement.trainable(placement.axes)
    return jax.tree.map(summed, axes, dimensions, grads, is_leaf=is_axes)


def travelling(placement: Placement, axes: Axes, gradient: Array) -> Array:
    """Return a gradient in the dtype in which it is summed over devices; vectors in float32."""
    dtype = jnp.float32 if set(axes) <= VECTOR_AXES else jnp.dtype(placement.gradients)
    return gradient.astype(dtype)
