"""Which keys a query of attention sees: the description of a mask, and its values."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite: a row in which everything is masked stays a number


class Mask(NamedTuple):
    """Which keys a query sees; without conditions all of them.

    The conditions add up, except that a prefix widens a causal mask.
    """

    causal: bool = False
    window: int | None = None  # only keys less than this many positions away
    lengths: jax.Array | None = None  # int32 [B]: keys from there on are padding
    # int32 [B]: queries from there on are padding, whose output is never read
    query_lengths: jax.Array | None = None
    segments: jax.Array | None = None  # int32 [B, L]: only keys of the query's own segment
    # int32 [B, S]; None: keys and queries are the same positions
    key_segments: jax.Array | None = None
    # int32 [B]: keys before it are seen by all of the prefix, causal or not
    prefix_lengths: jax.Array | None = None
    # int32 [B, L] of queries and [B, S] of keys (-1: no key); None: 0, 1, 2, ...
    positions: tuple[jax.Array, jax.Array] | None = None


def visible_BLS(mask: Mask, queries: range, keys: range) -> jax.Array | None:
    """Return the mask of these queries and keys, bool [B or 1, L, S]; None: all are visible."""
    query = jnp.arange(queries.start, queries.stop)[None, :, None]
    key = jnp.arange(keys.start, keys.stop)[None, None, :]
    conditions = []

    if mask.positions is not None:
        query, key = mask.positions[0][:, :, None], mask.positions[1][:, None, :]
        conditions.append(key >= 0)
    if mask.causal:
        causal = key <= query
        if mask.prefix_lengths is not None:
            causal = causal | (key < mask.prefix_lengths[:, None, None])
        conditions.append(causal)
    if mask.window is not None:
        distance = query - key if mask.causal else jnp.abs(query - key)
        conditions.append(distance < mask.window)
    if mask.lengths is not None:
        conditions.append(key < mask.lengths[:, None, None])
    if mask.segments is not None:
        key_segments = mask.segments if mask.key_segments is None else mask.key_segments
        of_query = mask.segments[:, queries.start : queries.stop, None]
        of_key = key_segments[:, None, keys.start : keys.stop]
        conditions.append(of_query == of_key)

    visible = None
    for condition in conditions:
        visible = condition if visible is None else visible & condition
    return visible
