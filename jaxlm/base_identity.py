"""Tell whether weights are those on which adapters were trained.

A hash of the values alone: whichever files they come from, and however they lie over devices, equal
weights have equal hashes. It finds another base, not an attacker's.
"""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import UserError
from jaxlm.parameter_names import name_of
from jaxlm.sharding import replicated_sharding
from jaxlm.types import Array, Tree

SEEDS = (0x9E3779B9, 0x7F4A7C15)  # odd: one for each 32 bits of a parameter's sum
SHOWN = 16  # digits of a hash in a message


def hash_params(params: Tree) -> str:
    """Return the SHA-256, in hexadecimal, of the names, shapes, dtypes and values of parameters.

    Values enter by two sums of 32 bits for each parameter, which the devices compute where the
    values are: integers add up to the same in any order.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    # Each process of several can read the sums.
    sums = jax.jit(
        lambda leaves: jnp.stack([sum_values(leaf) for leaf in leaves]),
        out_shardings=replicated_sharding(params),
    )
    totals = np.asarray(sums([leaf for _, leaf in leaves])).tolist()
    lines = [
        [name_of(path), list(leaf.shape), str(leaf.dtype), *total]
        for (path, leaf), total in zip(leaves, totals, strict=True)
    ]
    return hashlib.sha256(json.dumps(sorted(lines)).encode()).hexdigest()


def sum_values(leaf: Array) -> Array:
    """Return uint32 [2]: sums over all values, each mixed with its place in the array."""
    bits = jax.lax.bitcast_convert_type(leaf, unsigned(leaf.dtype)).astype(jnp.uint32)
    place, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        iota = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = place + iota * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.stack([jnp.sum(mix(bits, place, seed), dtype=jnp.uint32) for seed in SEEDS])


def mix(bits: Array, place: Array, seed: int) -> Array:
    """Return uint32 in which every bit depends on all bits of both (MurmurHash3's last step)."""
    x = bits ^ ((place + jnp.uint32(1)) * jnp.uint32(seed))
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def unsigned(dtype: Any) -> Any:
    """Return the unsigned integers of as many bits as the dtype."""
    return jnp.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")


def check_base(base: str, expected: str, found: str) -> None:
    """Raise UserError if the weights of `base` are not those that adapters were trained on.

    `expected` and `found` are hashes of `hash_params`.
    """
    if expected != found:
        raise UserError(
            f"base: {base}: its weights have the hash {found[:SHOWN]}, but the adapters were "
            f"trained on those with {expected[:SHOWN]}"
        )
