"""The key/value cache of a decoder: what every layer keeps of the tokens that it has read."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp

from jaxlm.config import ModelConfig
from jaxlm.types import Array

NO_TOKEN = -1  # position of a column that holds no token


class KeyValues(NamedTuple):
    """Keys and values of one layer.

    Heads stand before columns: attention reads them in this order, one product for each head.
    Training too goes through this layout: the transposes cancel, and their results, in the compute
    dtype, are what recomputation policies keep in place of the float32 values before.
    """

    keys_BGSK: Array
    values_BGSK: Array

    @classmethod
    def from_projections(cls, k_BSGK: Array, v_BSGK: Array) -> Self:
        """Return the projections in the layout of the cache."""
        return cls(jnp.swapaxes(k_BSGK, 1, 2), jnp.swapaxes(v_BSGK, 1, 2))

    def to_projections(self) -> tuple[Array, Array]:
        """Return keys and values [B, S, G, K]."""
        return jnp.swapaxes(self.keys_BGSK, 1, 2), jnp.swapaxes(self.values_BGSK, 1, 2)


class LayerCache(NamedTuple):
    """One layer's part of the cache while a chunk of tokens is decoded."""

    own: KeyValues  # of self attention, for all columns of the cache
    column: Array  # int32: where the chunk's first key is written
    cross: KeyValues | None = None  # of cross attention; None: still to be computed

    def append(self, chunk: KeyValues) -> Self:
        """Write the chunk's keys and values from `column` on, in the dtype of the cache."""

        def write(cached_BGSK: Array, chunk_BGLK: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(
                cached_BGSK, chunk_BGLK.astype(cached_BGSK.dtype), self.column, axis=2
            )

        return self._replace(own=jax.tree.map(write, self.own, chunk))


class Cache(NamedTuple):
    """The cache of all layers, and which token stands in which column.

    Columns are written from the left, the same ones in all rows. Where a row's chunk was padded,
    its columns hold no token, so the cache needs room for the columns of all chunks, padding
    included.
    """

    columns: Array  # int32: columns written so far
    positions_BS: Array  # int32: position of each column's token in its row, or NO_TOKEN
    filled_B: Array  # int32: tokens of each row, which is the position of its next one
    layers: tuple[KeyValues, ...]
    cross_layers: tuple[KeyValues, ...] | None = None  # keys and values of an encoder's states
    source_lengths_B: Array | None = None

    def take(self, rows_B: Array) -> Self:
        """Return the cache whose row i is row `rows_B[i]` of this one.

        The encoder's part stays as it is: rows may only move among those of one source.
        """
        positions, filled, layers = jax.tree.map(
            lambda x: x[rows_B], (self.positions_BS, self.filled_B, self.layers)
        )
        return self._replace(positions_BS=positions, filled_B=filled, layers=layers)

    def advance(self, length: int, lengths_B: Array | None) -> Self:
        """Return the cache with `length` more columns.

        `lengths_B` (None: all) of them hold tokens, the others are padding. The layers' keys and
        values are still to be written, by way of `layer` and `with_layers`.
        """
        rows = self.filled_B.shape[0]
        if lengths_B is None:
            lengths_B = jnp.full((rows,), length, jnp.int32)
        else:
            lengths_B = jnp.asarray(lengths_B, jnp.int32)

        offsets_1L = jnp.arange(length, dtype=jnp.int32)[None]
        chunk_BL = jnp.where(
            offsets_1L < lengths_B[:, None], self.filled_B[:, None] + offsets_1L, NO_TOKEN
        )
        positions_BS = jax.lax.dynamic_update_slice_in_dim(
            self.positions_BS, chunk_BL, self.columns, axis=1
        )
        return self._replace(
            columns=self.columns + length,
            positions_BS=positions_BS,
            filled_B=self.filled_B + lengths_B,
        )

    def layer(self, index: int) -> LayerCache:
        """Return the part of one layer, ready to append the next chunk."""
        cross = None if self.cross_layers is None else self.cross_layers[index]
        return LayerCache(self.layers[index], self.columns, cross)

    def with_layers(self, layers: Sequence[LayerCache]) -> Self:
        """Return the cache with what the layers have written."""
        cross = tuple(layer.cross for layer in layers if layer.cross is not None)
        return self._replace(
            layers=tuple(layer.own for layer in layers), cross_layers=cross or None
        )


def empty_cache(config: ModelConfig, batch_size: int, length: int, dtype: str) -> Cache:
    """Return a cache with `length` empty columns in each of `batch_size` rows."""
    shape = (batch_size, config.key_value_heads, length, config.width_per_head)
    return Cache(
        columns=jnp.zeros((), jnp.int32),
        positions_BS=jnp.full((batch_size, length), NO_TOKEN, jnp.int32),
        filled_B=jnp.zeros((batch_size,), jnp.int32),
        layers=tuple(
            KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
            for _ in range(config.layers)
        ),
    )
