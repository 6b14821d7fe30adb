"""Dropout (Srivastava et al. 2014) with an explicit key; without a key nothing is dropped."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero a share `rate` of the elements and scale the rest by 1 / (1 - rate)."""
    if rate == 0.0 or key is None:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0.0).astype(x.dtype)


def site_key(key: jax.Array | None, site: int) -> jax.Array | None:
    """Return the key of one place where dropout is applied."""
    return None if key is None else jax.random.fold_in(key, site)
