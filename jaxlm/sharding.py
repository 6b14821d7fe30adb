"""The mesh, the mesh axes of each logical axis, and the ZeRO stages.

Only this module and `mesh_execution`, which runs layers and steps by its tables, know meshes.

data     replicas: each has all of the state
fsdp     ZeRO: the batch is split over data x fsdp, the state over fsdp as the stage says
tensor   heads, MLP width and vocabulary (Megatron-LM, arXiv 1909.08053)
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.config import ConfigError, EvaluationConfig, ModelConfig, ParallelConfig
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

# Logical axis of a weight -> mesh axis. "embed" and "token_embed" are the dimensions that ZeRO
# splits.
WEIGHTS: dict[str, str | None] = {
    "embed": "fsdp",
    "token_embed": "fsdp",
    "vocabulary": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head": None,
    "position": None,
    "norm": None,
    "layers": None,
}

# Axes that a model may do without. Every other rule of WEIGHTS must be used by some parameter.
OPTIONAL_AXES = {"token_embed", "head", "position", "norm", "layers"}

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

REPLICATED_WARNING = 0.01  # share of a tree's bytes that are replicated although the stage splits


# The mesh


def make_mesh(parallel: ParallelConfig, devices: Sequence[Any]) -> Mesh:
    """Build the mesh data x fsdp x tensor over all `devices`.

    ConfigError if the sizes don't multiply to the number of devices.
    """
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
            f"stage {parallel.zero} splits the state over parallel.fsdp, "
            f"which is 1 on {len(devices)} devices",
        )

    grid = np.array(devices).reshape(tuple(sizes.values()))
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def check_tensor(tensor: int, model_config: ModelConfig) -> None:
    """Raise a ConfigError if `tensor` devices can't split the heads and the MLP of the model."""
    for prefix, stack in model_config.stacks.items():
        for name, size in (("heads", stack.heads), ("mlp_width", stack.hidden_width)):
            if size % tensor:
                raise ConfigError(
                    "parallel.tensor", f"{tensor} does not divide model.{prefix}{name} ({size})"
                )
    generator = model_config.generator
    if generator is not None and (generator.heads % tensor or generator.hidden_width % tensor):
        sizes = f"heads ({generator.heads}) or mlp_width ({generator.hidden_width})"
        raise ConfigError("parallel.tensor", f"{tensor} does not divide the generator's {sizes}")


def check_widths(mesh: Mesh, model_config: ModelConfig, zero: int) -> None:
    """Raise a ConfigError if ZeRO 3 would split some of ELECTRA's widths and others not.

    A device tells by the logical axis alone whether it has a part of a weight or all of it.
    """
    if zero != 3 or model_config.generator is None:
        return
    fsdp, generator = mesh.shape["fsdp"], model_config.generator
    widths = (model_config.width, generator.width, model_config.token_width)
    if len({width % fsdp == 0 for width in widths}) > 1:
        shown = ", ".join(map(str, widths))
        raise ConfigError(
            "parallel.fsdp",
            f"{fsdp} divides some of the widths of model, generator and embeddings ({shown}), "
            "which parallel.zero=3 can't split: use another mesh or parallel.zero=2",
        )


def check_mesh(
    mesh: Mesh,
    model_config: ModelConfig,
    batch_sizes: Sequence[int],
    microbatches: int,
    evaluation: EvaluationConfig,
) -> None:
    """Raise a ConfigError if the mesh does not divide the model or the batches.

    `batch_sizes` are those of the steps still to come.
    """
    check_tensor(mesh.shape["tensor"], model_config)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    for size in batch_sizes:
        if size % (rows * microbatches):
            parts = f"{rows} devices"
            if microbatches > 1:
                parts += f" x {microbatches} microbatches"
            raise ConfigError(
                "training.batch_size",
                f"{size} sequences can't be split evenly over {parts} "
                "(parallel.data x parallel.fsdp)",
            )

    if evaluation.batch_size is not None and evaluation.batch_size % rows:
        raise ConfigError(
            "evaluation.batch_size",
            f"{evaluation.batch_size} sequences can't be split evenly over {rows} devices",
        )


# The arrays of a run


def spec_of_part(part: Sequence[int], whole: Sequence[int], spec: P) -> P:
    """Return the spec of a tensor that has some of the dimensions of one with `spec`, in order.

    If two dimensions are equally long, the first is taken. A tensor of other dimensions is
    replicated.
    """
    dimensions = deque(zip(whole, (*spec, *[None] * len(whole)), strict=False))
    names = []
    for size in part:
        while dimensions and dimensions[0][0] != size:
            dimensions.popleft()
        if not dimensions:
            return P()
        names.append(dimensions.popleft()[1])
    return P(*names)


class Placement(NamedTuple):
    """The shardings of every array of a run. `axes` are the logical axes of the parameters."""

    mesh: Mesh
    axes: Tree
    zero: int
    gradients: str = "float32"  # the dtype in which gradients are summed over devices

    def tree(self, tree_name: str, shapes: Tree) -> Tree:
        """Return the NamedShardings of a tree with the `shapes` of the parameters.

        `tree_name` is "parameters", "gradients" or "optimizer" (for its moments).
        """
        used = {name for names in jax.tree.leaves(self.axes, is_leaf=is_axes) for name in names}
        unused = set(WEIGHTS) - used - OPTIONAL_AXES
        if unused:
            raise ValueError(f"sharding rules that no parameter uses: {', '.join(sorted(unused))}")

        split = tree_name in ZERO[self.zero]

        def sharding(path: tuple, axes: Axes, shape: jax.ShapeDtypeStruct) -> NamedSharding:
            name = jax.tree_util.keystr(path)
            return NamedSharding(self.mesh, weight_spec(self.mesh, axes, shape.shape, split, name))

        return jax.tree_util.tree_map_with_path(sharding, self.axes, shapes, is_leaf=is_axes)

    def optimizer_state(self, optimizer: optax.GradientTransformation, shapes: Tree) -> Tree:
        """Return the NamedShardings of the optax state for parameters of these `shapes`.

        Moments are split as the stage says, and so are factored ones, which have some of their
        parameter's dimensions. Counters, and tensors of other dimensions, are replicated.
        """
        state = jax.eval_shape(optimizer.init, shapes)
        moments = self.tree("optimizer", shapes)

        def place(value: Any, shape: Any, sharding: NamedSharding) -> NamedSharding:
            return NamedSharding(self.mesh, spec_of_part(value.shape, shape.shape, sharding.spec))

        return optax.tree_utils.tree_map_params(
            optimizer,
            place,
            state,
            shapes,
            moments,
            transform_non_params=lambda _: self.replicated(),
        )

    def batch(self) -> NamedSharding:
        """Return the sharding of a batch: its rows are split over data x fsdp."""
        return NamedSharding(self.mesh, P(BATCH))

    @property
    def batch_shards(self) -> int:
        """Return the number of parts into which the rows of a batch are split."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def replicated(self) -> NamedSharding:
        """Return the sharding of an array that every device has whole."""
        return NamedSharding(self.mesh, P())

    def rows(self, size: int) -> tuple[int, int]:
        """Return [start, stop): the rows of a global batch of `size` on this process's devices."""
        indices = self.batch().addressable_devices_indices_map((size,)).values()
        held = [index[0].indices(size) for index in indices]  # type: ignore[index]
        return min(start for start, *_ in held), max(stop for _, stop, _ in held)

    def put(self, part: Batch) -> Batch:
        """Put the global batch on the devices. `part` has this process's `rows`, on the host."""
        if not self.mesh.is_multi_process:
            return jax.device_put(part, self.batch())
        first_shard, end_shard = self.rows(self.batch_shards)

        def put_array(host_rows: np.ndarray) -> Array:
            size = len(host_rows) * self.batch_shards // (end_shard - first_shard)
            offset, _ = self.rows(size)

            def device_rows(index: Any) -> np.ndarray:
                start, stop, _ = index[0].indices(size)
                return host_rows[start - offset : stop - offset]

            shape = (size, *host_rows.shape[1:])
            return jax.make_array_from_callback(shape, self.batch(), device_rows)

        # jax counts the transfers of make_array_from_callback as implicit ones.
        with jax.transfer_guard_host_to_device("allow"):
            return jax.tree.map(put_array, part)


def weight_spec(mesh: Mesh, axes: Axes, shape: tuple[int, ...], split: bool, path: str) -> P:
    """Return the PartitionSpec of one weight: tensor axes always, fsdp if `split`.

    A dimension that its mesh axis does not divide stays whole.
    """
    spec: list[str | None] = []
    for name, size in zip(axes, shape, strict=True):
        if name is not None and name not in WEIGHTS:
            raise ValueError(f"{path}: unknown logical axis {name!r}; known: {', '.join(WEIGHTS)}")
        mesh_axis = None if name is None else WEIGHTS[name]
        if mesh_axis is not None and mesh_axis in spec:
            raise ValueError(f"{path}: two dimensions of {axes} are split over {mesh_axis!r}")

        stays_whole = (
            mesh_axis is None
            or (mesh_axis == "fsdp" and not split)
            or size % mesh.shape[mesh_axis] != 0
        )
        spec.append(None if stays_whole else mesh_axis)
    return P(*spec)


def replicated_sharding(params: Tree) -> NamedSharding | None:
    """Return the replicated sharding on the mesh of `params`, or None if they are on no mesh.

    Every process can read a result that is computed from `params` and placed so.
    """
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return NamedSharding(sharding.mesh, P()) if isinstance(sharding, NamedSharding) else None


# Reports


def bytes_per_device(shapes: Tree, shardings: Tree) -> int:
    """Return the bytes of a tree on each device, computed from shapes alone."""

    def shard_bytes(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(shape.shape)) * shape.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(shard_bytes, shapes, shardings)))


def list_replicated(shapes: Tree, shardings: Tree) -> list[str]:
    """Return the paths of the weights that are replicated over fsdp.

    The list is empty if they are at most 1% of the bytes of the tree.
    """
    paths, replicated, total = [], 0, 0
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        size = leaf.size * leaf.dtype.itemsize
        total += size
        if "fsdp" not in sharding.spec:
            paths.append(jax.tree_util.keystr(path, simple=True, separator="."))
            replicated += size
    return paths if replicated > REPLICATED_WARNING * total else []
