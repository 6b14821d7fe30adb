"""What a decoder remembers of the tokens that it has read: keys and values of every layer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm import config
from jaxlm.types import Array

NOTHING = -1  # the position of a column that holds no token


class KeyValues(NamedTuple):
    """Of one layer, heads before columns: attention reads them in this order, one product for each head."""

    keys_BGSK: Array
    values_BGSK: Array


class Cache(NamedTuple):
    """Columns are written from the left, the same ones in all rows; where a row's chunk was padded, its columns hold nothing.

    So there must be room for the columns of all chunks together, padding included.
    """

    columns: Array  # int32: how many are written
    positions_BS: Array  # int32: of each column in its row, or NOTHING
    filled_B: Array  # int32: tokens of each row; its next position
    layers: tuple[KeyValues, ...]
    memory: tuple[KeyValues, ...] | None = None  # what cross attention reads of an encoder
    memory_lengths_B: Array | None = None

    def take(self, rows_B: Array) -> "Cache":
        """The cache whose row i is row `rows_B[i]` of this one. What was read of an encoder stays: rows are those of one source."""
        positions, filled, layers = jax.tree.map(
            lambda x: x[rows_B], (self.positions_BS, self.filled_B, self.layers)
        )
        return self._replace(positions_BS=positions, filled_B=filled, layers=layers)

    def advanced(self, length: int, lengths_B: Array | None) -> "Cache":
        """With `length` more columns, of which `lengths_B` (None: all) hold tokens; their keys and values are still to be written."""
        rows = self.filled_B.shape[0]
        lengths_B = (
            jnp.full((rows,), length, jnp.int32)
            if lengths_B is None
            else jnp.asarray(lengths_B, jnp.int32)
        )
        offsets_1L = jnp.arange(length, dtype=jnp.int32)[None]
        chunk_BL = jnp.where(
            offsets_1L < lengths_B[:, None], self.filled_B[:, None] + offsets_1L, NOTHING
        )
        positions_BS = jax.lax.dynamic_update_slice_in_dim(
            self.positions_BS, chunk_BL, self.columns, axis=1
        )
        return self._replace(
            columns=self.columns + length,
            positions_BS=positions_BS,
            filled_B=self.filled_B + lengths_B,
        )


class LayerCache(NamedTuple):
    """One layer's part of a cache, while a chunk is read."""

    own: KeyValues
    column: Array  # int32: where the chunk's first key goes
    memory: KeyValues | None  # None: it is to be computed from the encoder's states


def empty_cache(model: config.ModelConfig, batch_size: int, length: int, dtype: str) -> Cache:
    """Room for `length` columns in each of `batch_size` rows."""
    shape = (batch_size, model.key_value_heads, length, model.width_per_head)
    layers = tuple(
        KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(model.layers)
    )
    positions = jnp.full((batch_size, length), NOTHING, jnp.int32)
    return Cache(jnp.zeros((), jnp.int32), positions, jnp.zeros((batch_size,), jnp.int32), layers)


def append_to_cache(past: LayerCache, k_BLGK: Array, v_BLGK: Array) -> KeyValues:
    """The layer's keys and values with those of a chunk."""
    new = KeyValues(k_BLGK, v_BLGK)
    return jax.tree.map(
        lambda old, chunk: jax.lax.dynamic_update_slice_in_dim(
            old, jnp.swapaxes(chunk, 1, 2).astype(old.dtype), past.column, axis=2
        ),
        past.own,
        new,
    )
