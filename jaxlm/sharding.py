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

from jaxlm.config import ParallelConfig
from jaxlm.config.mesh import MESH_AXES, mesh_sizes
from jaxlm.parameter_names import without
from jaxlm.quantization import QuantizedWeight, quantized_axes
from jaxlm.types import Array, Axes, Batch, Tree, is_axes

BATCH = ("data", "fsdp")

# Which of the three trees carry the fsdp axis (ZeRO, arXiv 1910.02054).
ZERO: dict[int, frozenset[str]] = {
    0: frozenset(),
    1: frozenset({"optimizer"}),
    2: frozenset({"optimizer", "gradients"}),
    3: frozenset({"optimizer", "gradients", "parameters"}),
}

# Logical axis of a weight -> mesh axis. "embed", "token_embed" and "rank" are the dimensions that
# ZeRO splits.
WEIGHTS: dict[str, str | None] = {
    "embed": "fsdp",
    "token_embed": "fsdp",
    "vocabulary": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "rank": "fsdp",
    "head": None,
    "position": None,
    "norm": None,
    "labels": None,
    "layers": None,
}

# Axes that a model may do without. Every other rule of WEIGHTS must be used by some parameter.
OPTIONAL_AXES = {"token_embed", "rank", "head", "position", "norm", "labels", "layers"}

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
    sizes = mesh_sizes(parallel, len(devices))
    grid = np.array(devices).reshape(tuple(sizes.values()))
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


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
    # Patterns of the parameters that stay as they are: they have no gradients and no moments.
    frozen: tuple[str, ...] = ()

    def trainable(self, tree: Tree) -> Tree:
        """Return a tree like the parameters without those that are frozen."""
        return without(tree, self.frozen)

    def tree(self, tree_name: str, shapes: Tree) -> Tree:
        """Return the NamedShardings of a tree with the `shapes` of the parameters.

        `tree_name` is "parameters", "gradients" or "optimizer" (for its moments). The last two
        leave frozen parameters out.
        """
        used = {name for names in jax.tree.leaves(self.axes, is_leaf=is_axes) for name in names}
        unused = set(WEIGHTS) - used - OPTIONAL_AXES
        if unused:
            raise ValueError(f"sharding rules that no parameter uses: {', '.join(sorted(unused))}")

        split = tree_name in ZERO[self.zero]

        def sharding(path: tuple, axes: Axes, shape: Any) -> Any:
            if isinstance(shape, QuantizedWeight):
                parts = quantized_axes(axes, shape.bits)
                return QuantizedWeight(
                    sharding(path, parts.values, shape.values),
                    sharding(path, parts.scales, shape.scales),
                )
            name = jax.tree_util.keystr(path)
            return NamedSharding(self.mesh, weight_spec(self.mesh, axes, shape.shape, split, name))

        axes = self.axes
        if tree_name != "parameters":
            axes, shapes = self.trainable(axes), self.trainable(shapes)
        return jax.tree_util.tree_map_with_path(sharding, axes, shapes, is_leaf=is_axes)

    def moment_spec(self, axes: Axes, shape: tuple[int, ...]) -> P:
        """Return the PartitionSpec of the moments of one weight."""
        return weight_spec(self.mesh, axes, shape, "optimizer" in ZERO[self.zero], "a moment")

    def statistic_spec(self, part: tuple[int, ...], whole: tuple[int, ...], spec: P) -> P:
        """Return the PartitionSpec of a statistic of moments of shape `whole` that lie by `spec`.

        A square matrix [N, D, D] for each layer has its rows split, other statistics what they have
        of the moments' dimensions.
        """
        found = spec_of_part(part, whole, spec)
        is_square = len(part) == 3 and part[1] == part[2]
        if found or not is_square or "optimizer" not in ZERO[self.zero]:
            return found
        return weight_spec(self.mesh, (None, "embed", None), part, True, "a statistic")

    def spread(self, spec: P) -> list[NamedSharding]:
        """Return the shardings by which an array goes from `spec` to first dimension over all.

        Each step adds one mesh axis to the first dimension, which is one exchange between the
        devices of that axis. XLA would gather the whole array on each device to go there at once.
        """
        first, others = [], list(spec)[1:]
        shardings = [NamedSharding(self.mesh, spec)]
        for axis in reversed(MESH_AXES):
            first.append(axis)
            others = [None if entry == axis else entry for entry in others]
            shardings.append(NamedSharding(self.mesh, P(tuple(first), *others)))
        return shardings

    def optimizer_state(self, optimizer: optax.GradientTransformation, shapes: Tree) -> Tree:
        """Return the NamedShardings of the optax state for parameters of these `shapes`.

        Moments are split as the stage says, and so are factored ones, which have some of their
        parameter's dimensions. Counters, and tensors of other dimensions, are replicated.
        """
        state = jax.eval_shape(optimizer.init, shapes)
        moments = self.tree("optimizer", shapes)

        def place(value: Any, shape: Any, sharding: NamedSharding) -> Any:
            if isinstance(value, optax.MaskedNode):  # another optimizer has this parameter
                return value
            spec = self.statistic_spec(value.shape, shape.shape, sharding.spec)
            return NamedSharding(self.mesh, spec)

        return optax.tree_utils.tree_map_params(
            optimizer,
            place,
            state,
            self.trainable(shapes),
            moments,
            transform_non_params=lambda _: self.replicated(),
            is_leaf=lambda value: isinstance(value, optax.MaskedNode),
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
