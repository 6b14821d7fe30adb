"""The mesh, what each logical axis is split over, and the ZeRO stages. The only module that knows mesh axes.

data     replicas: each has all of the state
fsdp     ZeRO: the batch is split over data x fsdp, the state over fsdp as the stage says
tensor   heads, MLP width and vocabulary (Megatron-LM, arXiv 1909.08053)
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm import config
from jaxlm.config import ConfigError
from jaxlm.nn.execution import Execution
from jaxlm.precision import cast_for_compute, cast_for_gather
from jaxlm.types import Array, Axes, Batch, Tree, is_axes

MESH_AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

# Which of the three trees carry the fsdp axis (ZeRO, arXiv 1910.02054).
ZERO: dict[int, frozenset[str]] = {
    0: frozenset(),
    1: frozenset({"optimizer"}),
    2: frozenset({"optimizer", "gradients"}),
    3: frozenset({"optimizer", "gradients", "parameters"}),
}

# Logical axis of a weight -> mesh axis. "embed" is the dimension that ZeRO splits.
WEIGHTS: dict[str, str | None] = {
    "embed": "fsdp",
    "vocabulary": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head": None,
    "position": None,
    "norm": None,
    "layers": None,
}

# Logical axis of an activation -> mesh axes.
ACTIVATIONS: dict[str, str | tuple[str, ...] | None] = {
    "batch": BATCH,
    "length": None,
    "embed_act": None,
    "head_act": None,
    "heads_act": "tensor",
    "kv_heads_act": "tensor",
    "mlp_act": "tensor",
    "vocabulary_act": "tensor",
}

SHOWN_HOSTS = 8
REPLICATED_WARNING = 0.01  # share of a tree's bytes that stay whole although the stage splits it


def make_mesh(parallel: config.ParallelConfig, devices: Sequence[Any]) -> Mesh:
    """The mesh data x fsdp x tensor over all `devices`; ConfigError where they don't multiply to their number."""
    sizes = {name: getattr(parallel, name) for name in MESH_AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(devices) % fixed or (-1 not in sizes.values() and fixed != len(devices)):
        shape = " x ".join(f"{name} {size}" for name, size in sizes.items() if size != -1)
        raise ConfigError(
            "parallel", f"{shape} does not fit {len(devices)} devices (runtime.devices)"
        )
    sizes = {name: len(devices) // fixed if size == -1 else size for name, size in sizes.items()}
    if parallel.zero > 0 and sizes["fsdp"] == 1 and len(devices) > 1:
        raise ConfigError(
            "parallel.zero",
            f"stage {parallel.zero} splits the state over parallel.fsdp, which is 1 on {len(devices)} devices",
        )
    return Mesh(
        np.array(devices).reshape(tuple(sizes.values())), MESH_AXES, axis_types=(AxisType.Auto,) * 3
    )


def check_mesh(
    mesh: Mesh,
    model: config.ModelConfig,
    batch_sizes: Sequence[int],
    microbatches: int,
    evaluation: config.EvaluationConfig,
) -> None:
    """ConfigError where the mesh does not divide the model or the batches; `batch_sizes` are those still to come."""
    tensor, rows = mesh.shape["tensor"], mesh.shape["data"] * mesh.shape["fsdp"]
    for prefix, stack in model.stacks.items():
        for name, size in (("heads", stack.heads), ("mlp_width", stack.hidden_width)):
            if size % tensor:
                raise ConfigError(
                    "parallel.tensor", f"{tensor} does not divide model.{prefix}{name} ({size})"
                )
    for size in batch_sizes:
        if size % (rows * microbatches):
            parts = f"{rows} devices" + (
                f" x {microbatches} microbatches" if microbatches > 1 else ""
            )
            raise ConfigError(
                "training.batch_size",
                f"{size} sequences can't be split evenly over {parts} (parallel.data x parallel.fsdp)",
            )
    if evaluation.batch_size is not None and evaluation.batch_size % rows:
        raise ConfigError(
            "evaluation.batch_size",
            f"{evaluation.batch_size} sequences can't be split evenly over {rows} devices",
        )


class Placement(NamedTuple):
    """Where every array of a run lives. `axes` are the logical axes of the parameters."""

    mesh: Mesh
    axes: Tree
    zero: int

    def tree(self, kind: str, shapes: Tree) -> Tree:
        """NamedShardings of "parameters", "gradients" or "optimizer" moments with the parameters' `shapes`."""
        split = kind in ZERO[self.zero]
        unused = set(WEIGHTS) - {
            name for names in jax.tree.leaves(self.axes, is_leaf=is_axes) for name in names
        }
        if unused - {"position", "head", "layers", "norm"}:
            raise ValueError(f"sharding rules that no parameter uses: {', '.join(sorted(unused))}")
        leaf = partial(self._sharding, split)
        return jax.tree_util.tree_map_with_path(leaf, self.axes, shapes, is_leaf=is_axes)

    def _sharding(
        self, split: bool, path: tuple, names: Axes, shape: jax.ShapeDtypeStruct
    ) -> NamedSharding:
        return NamedSharding(
            self.mesh, weight_spec(self.mesh, names, shape.shape, split, jax.tree_util.keystr(path))
        )

    def optimizer(self, optimizer: optax.GradientTransformation, shapes: Tree) -> Tree:
        """NamedShardings of the optax state: moments as the stage says; counters, and what has another shape than its parameter, whole."""
        state = jax.eval_shape(optimizer.init, shapes)
        moments = self.tree("optimizer", shapes)

        def place(value: Any, shape: Any, sharding: NamedSharding) -> NamedSharding:
            return sharding if value.shape == shape.shape else self.replicated()

        return optax.tree_utils.tree_map_params(
            optimizer,
            place,
            state,
            shapes,
            moments,
            transform_non_params=lambda _: self.replicated(),
        )

    def batch(self) -> NamedSharding:
        """Rows of a batch over data x fsdp."""
        return NamedSharding(self.mesh, P(BATCH))

    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())

    def rows(self, size: int) -> tuple[int, int]:
        """The rows [start, stop) of a global batch of `size` that the devices of this process hold."""
        held = [
            index[0].indices(size)
            for index in self.batch().addressable_devices_indices_map((size,)).values()
        ]  # type: ignore[index]
        return min(start for start, *_ in held), max(stop for _, stop, _ in held)

    def put(self, part: Batch) -> Batch:
        """The global batch on the devices, from this process's `rows` of it on the host."""
        if not self.mesh.is_multi_process:
            return jax.device_put(part, self.batch())
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        first, end = self.rows(shards)

        def whole(rows: np.ndarray) -> Array:
            size = len(rows) * shards // (end - first)
            offset, _ = self.rows(size)

            def local(index: Any) -> np.ndarray:
                start, stop, _ = index[0].indices(size)
                return rows[start - offset : stop - offset]

            return jax.make_array_from_callback((size, *rows.shape[1:]), self.batch(), local)

        # jax counts the transfers of make_array_from_callback as implicit ones.
        with jax.transfer_guard_host_to_device("allow"):
            return jax.tree.map(whole, part)


def weight_spec(mesh: Mesh, names: Axes, shape: tuple[int, ...], split: bool, path: str) -> P:
    """The PartitionSpec of one weight: tensor axes always, fsdp where `split`; a dimension that does not divide stays whole."""
    spec: list[str | None] = []
    for name, size in zip(names, shape, strict=True):
        if name is not None and name not in WEIGHTS:
            raise ValueError(f"{path}: unknown logical axis {name!r}; known: {', '.join(WEIGHTS)}")
        axis = WEIGHTS[name] if name is not None else None
        if axis in spec and axis is not None:
            raise ValueError(f"{path}: two dimensions of {names} are split over {axis!r}")
        whole = axis is None or (axis == "fsdp" and not split) or size % mesh.shape[axis]
        spec.append(None if whole else axis)
    return P(*spec)


def activation_spec(names: Axes) -> P:
    unknown = [name for name in names if name is not None and name not in ACTIVATIONS]
    if unknown:
        raise ValueError(
            f"unknown logical axis {unknown[0]!r} of an activation; known: {', '.join(ACTIVATIONS)}"
        )
    return P(*(None if name is None else ACTIVATIONS[name] for name in names))


def constrain(mesh: Mesh, x: Array, names: Axes) -> Array:
    """Places an activation; dimensions that do not divide (few key/value heads, short batches) stay whole."""
    spec = [
        axes
        if axes is not None and size % math.prod(mesh.shape[a] for a in np.atleast_1d(axes)) == 0
        else None
        for axes, size in zip(activation_spec(names), x.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))


def gather(
    mesh: Mesh, zero: int, precision: config.PrecisionConfig, weights: Tree, axes: Tree
) -> Tree:
    """Weights whole over fsdp, as a layer uses them; on the way back gradients are summed over devices, then split as the stage says."""

    def leaf(path: tuple, names: Axes, weight: Array) -> Array:
        def placed(x: Array, split: bool) -> Array:
            if mesh.size == 1:
                return x
            return jax.lax.with_sharding_constraint(
                x,
                NamedSharding(
                    mesh, weight_spec(mesh, names, x.shape, split, jax.tree_util.keystr(path))
                ),
            )

        @jax.custom_vjp
        def whole(w: Array) -> Array:
            return cast_for_compute(
                names, placed(cast_for_gather(names, w, precision), split=False), precision
            )

        def backward(_: None, gradient: Array) -> tuple[Array]:
            # Whole first: the sum over devices is asked for here, and the split after it makes it a reduce-scatter. Asking for the
            # split alone lets the partitioner move activations instead. Over data x fsdp it is the other way round: the split alone
            # gives a reduce-scatter over fsdp and a sum of what is left over data, but for tables of tokens, where activations move.
            summed = (
                gradient
                if mesh.shape["data"] > 1 and "vocabulary" not in names
                else placed(gradient, split=False)
            )
            return (placed(summed, "gradients" in ZERO[zero]).astype(weight.dtype),)

        whole.defvjp(lambda w: (whole(w), None), backward)
        return whole(weight)

    return jax.tree_util.tree_map_with_path(leaf, axes, weights, is_leaf=is_axes)


def build_execution(
    mesh: Mesh, parallel: config.ParallelConfig, precision: config.PrecisionConfig, attention: str
) -> Execution:
    """How the layers run on `mesh`."""
    device = mesh.devices.flat[0]
    scanned = parallel.blocks == "scanned" or (
        parallel.blocks == "auto" and parallel.zero == 3 and mesh.size > 1
    )
    plain = Execution(
        blocks="scanned" if scanned else "unrolled",
        remat=parallel.remat,
        attention=attention,
        platform=device.platform,
        compute_capability=float(getattr(device, "compute_capability", None) or 0.0),
    )
    plain = plain._replace(gather=partial(gather, mesh, parallel.zero, precision))
    return plain if mesh.size == 1 else plain._replace(constrain=partial(constrain, mesh))


def whole_beside(params: Tree) -> NamedSharding | None:
    """Where every process can read a result that is computed from `params`; None if they are on no mesh."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return NamedSharding(sharding.mesh, P()) if isinstance(sharding, NamedSharding) else None


def describe_mesh(mesh: Mesh, hosts: Sequence[str]) -> str:
    """'data 2 (across hosts) x fsdp 4 x tensor 1', and which processes are on which host, where there are several.

    `hosts` are the names by process.
    """
    names = np.vectorize(lambda device: hosts[device.process_index], otypes=[object])(mesh.devices)
    parts = []
    for axis, (name, size) in enumerate(mesh.shape.items()):
        across = (names != np.take(names, [0], axis=axis)).any()
        parts.append(f"{name} {size}" + (" (across hosts)" if across else ""))
    axes = " x ".join(parts)
    if len(hosts) == 1:
        return axes
    places = [
        f"{host}: {ranges([p for p, at in enumerate(hosts) if at == host])}"
        for host in dict.fromkeys(hosts)
    ]
    more = f"; {len(places) - SHOWN_HOSTS} more hosts" if len(places) > SHOWN_HOSTS else ""
    return f"{axes} on {len(hosts)} processes ({'; '.join(places[:SHOWN_HOSTS])}{more})"


def ranges(numbers: Sequence[int]) -> str:
    """'0-3, 6' of increasing numbers."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(
        str(start) if start == end else f"{start}-{end}"
        for start, end in zip(starts, ends, strict=True)
    )


def bytes_per_device(shapes: Tree, shardings: Tree) -> int:
    """Bytes of a tree on each device, from shapes alone."""
    shard = jax.tree.map(
        lambda s, sharding: math.prod(sharding.shard_shape(s.shape)) * s.dtype.itemsize,
        shapes,
        shardings,
    )
    return sum(jax.tree.leaves(shard))


def replicated(shapes: Tree, shardings: Tree) -> list[str]:
    """Paths of the weights that stay whole over fsdp, where they are more than 1% of the bytes of a tree that the stage splits; else []."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    whole = [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf.size * leaf.dtype.itemsize)
        for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True)
        if "fsdp" not in sharding.spec
    ]
    total = sum(leaf.size * leaf.dtype.itemsize for _, leaf in leaves)
    return (
        [path for path, _ in whole]
        if sum(size for _, size in whole) > REPLICATED_WARNING * total
        else []
    )
