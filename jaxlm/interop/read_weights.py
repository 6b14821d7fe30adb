"""Read the tensors of a Hugging Face directory into a tree of parameters, one tensor at a time.

The shards of this host are filled directly: host memory never holds more than those and one tensor
as it is in the file. All names and shapes are checked before the first number is read.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from jaxlm.config import ModelConfig, UserError
from jaxlm.interop.layout import parameter_views
from jaxlm.interop.mapping import Architecture
from jaxlm.interop.safetensors_reader import (
    FLOAT_DTYPES,
    TensorEntry,
    TensorIndex,
    TensorReader,
    aligned_zeros,
    equal_tensors,
    has_nonzero,
    printable_name,
)
from jaxlm.interop.tensor_mapping import MappedTensor, leaves_by_path, map_tensors
from jaxlm.types import Array, Tree

MAX_NAMES_SHOWN = 3  # in a message
ShardBounds = tuple[tuple[int, int], ...]  # (start, stop) of each dimension


class DirectoryTensors:
    """The tensors of a directory, by the names of the architecture's table."""

    def __init__(self, architecture: Architecture, index: TensorIndex):
        self.architecture = architecture
        self.index = index
        self.entries: dict[str, TensorEntry] = {}
        for entry in index.entries.values():
            name = entry.name
            for pattern, new in architecture.renamed.items():
                name = re.sub(pattern, new, name)
            if name in self.entries:
                other = printable_name(self.entries[name].name)
                raise entry.error(f"the file has the same tensor under the name {other}")
            self.entries[name] = entry

    def find(self, name: str) -> tuple[str, TensorEntry] | None:
        """Return a tensor and its key in `entries`; base models leave out the root of names."""
        for key in (name, name.removeprefix(self.architecture.root)):
            if key in self.entries:
                return key, self.entries[key]
        return None

    def __contains__(self, name: object) -> bool:
        return self.find(str(name)) is not None

    def any(self, name: str) -> bool:
        """Return whether the tensor exists and has a value other than 0."""
        match = self.find(name)
        return match is not None and has_nonzero(match[1])


class TensorSources(NamedTuple):
    """A mapped tensor and the entries that it is read from: (layer, entry)."""

    mapped: MappedTensor
    entries: tuple[tuple[int | None, TensorEntry], ...]


def read_weights(
    architecture: Architecture,
    model: ModelConfig,
    index: TensorIndex,
    *,
    shapes: Tree,
    base_shapes: Tree | None = None,
    shardings: Tree | None = None,
    dtype: Any,
) -> Tree:
    """Return the parameters in `dtype`, placed as `shardings` says (None: on the default device).

    `shapes` and `base_shapes` are as in `map_tensors`. Raises UserError, with file and tensor, for
    weights that are not those of the model.
    """
    sources = assign_tensors(
        DirectoryTensors(architecture, index),
        map_tensors(architecture, model, shapes, base_shapes),
    )
    shardings_by_path = {} if shardings is None else leaves_by_path(shardings)
    largest = max((entry.size for each in sources for _, entry in each.entries), default=0)
    identity_scale = 0.0 if model.norm_offset else 1.0

    params: dict[str, Array] = {}
    with TensorReader(largest) as reader:
        for each in sources:
            if each.mapped.parameters:
                params |= read_parameters(each, reader, shardings_by_path, dtype, identity_scale)

    # The tree has another order than the rules.
    return jax.tree_util.tree_map_with_path(
        lambda path, _: params[jax.tree_util.keystr(path, simple=True, separator=".")], shapes
    )


def read_parameters(
    sources: TensorSources,
    reader: TensorReader,
    shardings: dict[str, Sharding],
    dtype: Any,
    identity_scale: float,
) -> dict[str, Array]:
    """Return the parameters of one mapped tensor by their paths.

    `identity_scale` fills the scale of a norm in layers that have none in the file.
    """
    mapped = sources.mapped
    paths = mapped.rule.parameters
    buffers = [
        ParameterBuffers(leaf.shape, shardings.get(path), dtype)
        for path, leaf in zip(paths, mapped.parameters, strict=True)
    ]
    for path, buffer in zip(paths, buffers, strict=True):
        if path.endswith("scale"):
            for layer in range(mapped.rule.first_layer):
                buffer.fill(layer, identity_scale)

    for layer, entry in sources.entries:
        views = parameter_views(mapped.rule, reader.read(entry), mapped.sizes)
        for buffer, view in zip(buffers, views, strict=True):
            buffer.put(layer, view)
    return {path: buffer.array() for path, buffer in zip(paths, buffers, strict=True)}


class ParameterBuffers:
    """The shards of one parameter on this host; devices with the same shard share one buffer."""

    def __init__(self, shape: tuple[int, ...], sharding: Sharding | None, dtype: Any):
        self.shape = shape
        self.sharding = sharding
        if sharding is None:
            indices = {None: (slice(None),) * len(shape)}
        else:
            indices = sharding.addressable_devices_indices_map(shape)

        self.devices = {device: shard_bounds(index, shape) for device, index in indices.items()}
        # Rows that only pad the vocabulary are never written: they stay zeros.
        self.buffers = {
            bounds: aligned_zeros([stop - start for start, stop in bounds], dtype)
            for bounds in dict.fromkeys(self.devices.values())
        }

    def put(self, layer: int | None, view: np.ndarray) -> None:
        """Copy a layer, or a whole parameter that isn't stacked, into every shard that has it."""
        for buffer, bounds in self.layer_buffers(layer):
            part = view[tuple(slice(start, stop) for start, stop in bounds)]
            buffer[tuple(slice(size) for size in part.shape)] = part

    def fill(self, layer: int, value: float) -> None:
        """Set every number of a layer to `value`."""
        for buffer, _ in self.layer_buffers(layer):
            buffer[...] = value

    def layer_buffers(self, layer: int | None) -> Iterator[tuple[np.ndarray, ShardBounds]]:
        """Yield each buffer's part of a layer, and the bounds of that part within the layer."""
        for bounds, buffer in self.buffers.items():
            if layer is None:
                yield buffer, bounds
            elif bounds[0][0] <= layer < bounds[0][1]:
                yield buffer[layer - bounds[0][0]], bounds[1:]

    def array(self) -> Array:
        """Return the global array. On a CPU the buffers are its memory: write no more to them."""
        if self.sharding is None:
            array = jax.device_put(next(iter(self.buffers.values())))
        else:
            shards = [
                jax.device_put(self.buffers[bounds], SingleDeviceSharding(device))
                for device, bounds in self.devices.items()
            ]
            array = jax.make_array_from_single_device_arrays(self.shape, self.sharding, shards)

        # A copy to another kind of device holds on to the buffers until it is done.
        return jax.block_until_ready(array)


def shard_bounds(index: Any, shape: tuple[int, ...]) -> ShardBounds:
    """Return the (start, stop) of each dimension that a shard's index selects."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


# --- checks of what a directory has ---


def assign_tensors(tensors: DirectoryTensors, mapped: list[MappedTensor]) -> list[TensorSources]:
    """Return the entries that each mapped tensor is read from.

    Raises UserError for a tensor that is missing, left over or of another shape.
    """
    unread = dict(tensors.entries)
    sources = []
    for each in mapped:
        entries = []
        for layer, name in each.layer_names():
            match = find_tensor(tensors, mapped, name)
            if match is None:
                if each.rule.zeros:
                    continue
                raise missing_tensor(tensors, name, each.shape)
            key, entry = match
            unread.pop(key, None)
            check_tensor(each, entry)
            entries.append((layer, entry))
            for repeated in each.repeated_names(layer):
                unread.pop(check_repeated(tensors, repeated, entry), None)
        sources.append(TensorSources(each, tuple(entries)))

    check_unread_tensors(tensors, mapped, unread)
    return sources


def missing_tensor(tensors: DirectoryTensors, name: str, shape: tuple[int, ...]) -> UserError:
    """Return the error for a tensor that no file of the directory has."""
    expected = format_shape(shape)
    return UserError(
        f"{tensors.index.source}: {name}: there is no such tensor, expected {expected}"
    )


def check_repeated(tensors: DirectoryTensors, name: str, original: TensorEntry) -> str:
    """Return the key of the tensor `name`, which must equal `original`; UserError if it doesn't."""
    match = tensors.find(name)
    if match is None:
        raise missing_tensor(tensors, name, original.shape)

    key, entry = match
    if not equal_tensors(entry, original):
        raise entry.error(
            f"differs from {printable_name(original.name)}, "
            'but "jaxlm" in config.json says that they are equal'
        )
    return key


def find_tensor(
    tensors: DirectoryTensors, mapped: list[MappedTensor], name: str
) -> tuple[str, TensorEntry] | None:
    """Return a tensor or an alias of it: files may keep shared numbers under any of their names."""
    own_names = {each.rule.tensor for each in mapped if each.parameters}
    aliases = [
        alias
        for alias, original in tensors.architecture.aliases.items()
        if original == name and alias not in own_names
    ]
    for candidate in (name, *aliases):
        match = tensors.find(candidate)
        if match is not None:
            return match

    return None


def check_tensor(mapped: MappedTensor, entry: TensorEntry) -> None:
    """Raise UserError for a tensor that can't be read as the model needs it."""
    if entry.dtype not in FLOAT_DTYPES:
        raise entry.error(f"has dtype {entry.dtype}; weights are read as {', '.join(FLOAT_DTYPES)}")
    if entry.shape != mapped.shape:
        raise entry.error(
            f"has shape {format_shape(entry.shape)}, expected {format_shape(mapped.shape)}"
        )
    if not mapped.parameters and has_nonzero(entry):
        raise entry.error("has values other than 0, but this model has no parameter for it")


def check_unread_tensors(
    tensors: DirectoryTensors, mapped: list[MappedTensor], unread: dict[str, TensorEntry]
) -> None:
    """Raise UserError unless the tensors that nothing reads repeat others or are not needed."""
    architecture = tensors.architecture
    copies = {
        name
        for each in mapped
        for layer, _ in each.layer_names()
        for name in each.copy_names(layer)
    }
    unknown: list[TensorEntry] = []
    for name, entry in unread.items():
        names = (name, architecture.root + name)
        alias = next((each for each in names if each in architecture.aliases), None)
        original = None
        if alias is not None:
            original = find_tensor(tensors, mapped, architecture.aliases[alias])

        if original is not None and original[1] is not entry:
            if not equal_tensors(entry, original[1]):
                raise entry.error(
                    f"differs from {printable_name(original[1].name)}, "
                    "but config.json says that they are equal"
                )
        elif not copies.intersection(names) and not is_ignored(architecture, names):
            unknown.append(entry)

    if unknown:
        raise unknown_tensors(architecture, unknown)


def is_ignored(architecture: Architecture, names: tuple[str, ...]) -> bool:
    """Return whether a tensor, under one of its names, is known and not needed."""
    return any(re.fullmatch(pattern, name) for pattern in architecture.ignored for name in names)


def unknown_tensors(architecture: Architecture, unknown: list[TensorEntry]) -> UserError:
    """Return the error for tensors that the model has no use for."""
    reason = f"is not a tensor of a {architecture.model_type} model with this config.json"
    others = [printable_name(entry.name) for entry in unknown[1:MAX_NAMES_SHOWN]]
    if others:
        more = len(unknown) - MAX_NAMES_SHOWN
        reason += f"; nor are {', '.join(others)}" + (f" and {more} more" if more > 0 else "")
    return unknown[0].error(reason)


def format_shape(shape: tuple[int, ...]) -> str:
    """Return a shape as "[5, 6]"."""
    return f"[{', '.join(map(str, shape))}]"
