"""Dropout (Srivastava et al. 2014) with explicit keys; without a key nothing is dropped.

A key is one key for all of an array, or one per row [B]: then what is dropped follows the row,
whatever the devices and microbatches over which the rows are spread.
"""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero a share `rate` of the elements and scale the rest by 1 / (1 - rate)."""
    if rate == 0.0 or key is None:
        return x
    return jnp.where(kept(key, rate, x.shape), x / (1.0 - rate), 0.0).astype(x.dtype)


def kept(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Return bool `shape`: False for a share `rate` of the elements."""
    if key.ndim == 0:
        return jax.random.bernoulli(key, 1.0 - rate, shape)
    return jax.vmap(lambda row_key: jax.random.bernoulli(row_key, 1.0 - rate, shape[1:]))(key)


def site_key(key: jax.Array | None, site: int | jax.Array) -> jax.Array | None:
    """Return the key, or the keys of all rows, of one place where dropout is applied."""
    if key is None:
        return None
    return (
        fold_rows(key, jnp.broadcast_to(site, key.shape))
        if key.ndim
        else jax.random.fold_in(key, site)
    )


def fold_rows(key: jax.Array, numbers: jax.Array) -> jax.Array:
    """Return a key for each of the row `numbers` [B], from one key or from one per row."""
    return jax.vmap(jax.random.fold_in, (0 if key.ndim else None, 0))(key, numbers)
