"""Parameters as a stream of tensors for a Hugging Face directory.

One tensor is assembled at a time from the shards of this host, so that saving needs no second copy
of the model.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxlm.interop.layout import parameter_views
from jaxlm.interop.read_weights import ShardBounds, shard_bounds
from jaxlm.interop.safetensors_reader import FLOAT_DTYPES
from jaxlm.interop.safetensors_writer import TensorSpec
from jaxlm.interop.tensor_mapping import MappedTensor, leaves_by_path
from jaxlm.types import Array, Tree


def tensor_specs(mapped: list[MappedTensor], dtype: str) -> list[TensorSpec]:
    """Return name, dtype and shape of the tensors that `iterate_tensors` yields, in its order."""
    return [
        TensorSpec(name, dtype, each.shape)
        for each in mapped
        for layer, first in each.layer_names()
        for name in (first, *each.copy_names(layer))
    ]


def iterate_tensors(mapped: list[MappedTensor], params: Tree, dtype: str) -> Iterator[np.ndarray]:
    """Yield the tensors of `params`, in the dtype that safetensors calls `dtype`."""
    leaves = leaves_by_path(params)
    for each in mapped:
        for layer, _ in each.layer_names():
            tensor = np.zeros(each.shape, FLOAT_DTYPES[dtype])
            if each.parameters:
                views = parameter_views(each.rule, tensor, each.sizes)
                for path, view in zip(each.rule.parameters, views, strict=True):
                    copy_layer(leaves[path], layer, view)

            yield tensor
            for _ in each.copy_names(layer):
                yield tensor


def copy_layer(leaf: Array, layer: int | None, view: np.ndarray) -> None:
    """Copy a layer of a parameter to `view`, without the rows that pad the vocabulary."""
    for bounds, values in iterate_shards(leaf, layer):
        # Padded rows lie past the end of the view, which cuts them off.
        part = view[tuple(slice(start, stop) for start, stop in bounds)]
        part[...] = values[tuple(slice(size) for size in part.shape)]


def iterate_shards(leaf: Array, layer: int | None) -> Iterator[tuple[ShardBounds, np.ndarray]]:
    """Yield (bounds, values) of each shard of a layer, or of a parameter that isn't stacked."""
    if not isinstance(leaf, jax.Array):
        values = leaf if layer is None else leaf[layer]
        yield tuple((0, size) for size in values.shape), values
        return
    if not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        raise ValueError(
            "parameters that are spread over several processes can't be written by one"
        )

    # Devices with the same bounds hold the same numbers.
    shards = {shard_bounds(shard.index, leaf.shape): shard for shard in leaf.addressable_shards}
    for bounds, shard in shards.items():
        if layer is None:
            yield bounds, np.asarray(shard.data)
        elif bounds[0][0] <= layer < bounds[0][1]:
            row = layer - bounds[0][0]
            if is_on_host(shard):
                yield bounds[1:], np.asarray(shard.data)[row]
            else:
                yield bounds[1:], np.asarray(slice_layer(shard.data, row))


def is_on_host(shard: Any) -> bool:
    """Return whether the stack is in host memory; from elsewhere only one layer is fetched."""
    return shard.device.platform == "cpu"


@jax.jit
def slice_layer(stack: Array, layer: Array) -> Array:
    """Return one layer of a stacked parameter [layers, ...]."""
    return jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)
