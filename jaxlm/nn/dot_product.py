"""Scaled dot-product attention from a description of the mask: cuDNN's flash kernel where it supports the case, else a readable XLA path.

`choose` decides and says why, so that a run can print which kernel it uses.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.nn.execution import Execution
from jaxlm.nn.matmul import matmul

MASKED = -1e30  # finite: a row in which everything is masked stays a number
CUDNN_MULTIPLE, SHORTEST = (
    128,
    64,
)  # positions: sequences are padded to the one; under the other that is mostly padding
BLOCK, MOST_BLOCKS = (
    128,
    4,
)  # queries of a block of the XLA path, at least; blocks of a sequence, at most
SCORES = "scores"  # not a `PRODUCT`: a policy that keeps those would keep L x S scores


class Mask(NamedTuple):
    """Which keys a query sees. Nothing set: all of them. Conditions add up, but a prefix widens a causal mask."""

    causal: bool = False
    window: int | None = None  # only keys that are less than so many positions away
    lengths: jax.Array | None = None  # int32 [B]: keys from there on are padding
    query_lengths: jax.Array | None = (
        None  # int32 [B]: queries from there on are padding, whose output nobody reads
    )
    segments: jax.Array | None = None  # int32 [B, L]: only keys of the query's own segment
    key_segments: jax.Array | None = (
        None  # int32 [B, S]: None where keys and queries are the same positions
    )
    prefix_lengths: jax.Array | None = (
        None  # int32 [B]: keys before it are seen by all of the prefix, causal or not
    )
    positions: tuple[jax.Array, jax.Array] | None = (
        None  # int32 [B, L] and [B, S], of queries and of keys (-1: no key). None: 0, 1, ...
    )


class Case(NamedTuple):
    """What a kernel has to support."""

    dtype: str
    queries: int
    keys: int
    head_width: int
    mask: Mask
    softcap: bool = False
    dropout: bool = False


def choose_kernel(execution: Execution, case: Case) -> tuple[str, str]:
    """("cudnn" or "xla", why). Asking for cuDNN where it can't do the case is a ValueError with the reason."""
    reason = cudnn_obstacle(execution, case)
    if execution.attention == "cudnn" and reason:
        raise ValueError(f"cuDNN attention can't be used: {reason}")
    if execution.attention == "xla":
        return "xla", "asked for"
    return ("xla", reason) if reason else ("cudnn", "supported")


def cudnn_obstacle(execution: Execution, case: Case) -> str:
    """Why cuDNN can't do the case, or ''."""
    widest = 256 if execution.compute_capability >= 9.0 else 128
    obstacles = {
        f"the platform is {execution.platform}": execution.platform not in ("cuda", "gpu"),
        f"the dtype is {case.dtype}": case.dtype not in ("bfloat16", "float16"),
        f"heads of {case.head_width} channels (multiples of 8 up to {widest})": case.head_width % 8
        != 0
        or case.head_width > widest,
        f"{case.queries} queries, {case.keys} keys (at least {SHORTEST})": min(
            case.queries, case.keys
        )
        < SHORTEST,
        "attention soft-cap": case.softcap,
        "attention dropout": case.dropout,
        "packed segments": case.mask.segments is not None,
        "a prefix mask": case.mask.prefix_lengths is not None,
        "keys of a cache": case.mask.positions is not None,
        "a window that is not causal": case.mask.window is not None and not case.mask.causal,
    }
    return next((reason for reason, holds in obstacles.items() if holds), "")


def attend(
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    mask: Mask,
    execution: Execution,
    *,
    scale: float,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Attention output [B, L, H, K] in q's dtype; H is a multiple of G. `bias` is float32 [1 or B, H, L, S], added to the scaled scores."""
    drops = dropout > 0 and dropout_key is not None
    case = Case(
        q_BLHK.dtype.name,
        q_BLHK.shape[1],
        k_BSGK.shape[1],
        q_BLHK.shape[3],
        mask,
        softcap is not None,
        drops,
    )
    kernel, _ = choose_kernel(execution, case)
    if kernel == "cudnn":
        return cudnn_attention(q_BLHK, k_BSGK, v_BSGK, mask, scale, bias)
    return xla_attention(
        q_BLHK, k_BSGK, v_BSGK, mask, scale, bias, softcap, dropout if drops else 0.0, dropout_key
    )


def cudnn_attention(
    q_BLHK, k_BSGK, v_BSGK, mask: Mask, scale: float, bias: jax.Array | None
) -> jax.Array:
    """cuDNN's flash kernel, on sequences padded to the multiple that it is made for."""
    rows, queries, keys = q_BLHK.shape[0], q_BLHK.shape[1], k_BSGK.shape[1]

    def padded(x: jax.Array, *axes: int) -> jax.Array:
        missing = {axis: -x.shape[axis] % CUDNN_MULTIPLE for axis in axes}
        return (
            jnp.pad(x, [(0, missing.get(axis, 0)) for axis in range(x.ndim)])
            if any(missing.values())
            else x
        )

    def lengths(given: jax.Array | None, size: int) -> jax.Array | None:
        return jnp.full(rows, size, jnp.int32) if given is None and size % CUDNN_MULTIPLE else given

    return jax.nn.dot_product_attention(
        padded(q_BLHK, 1),
        padded(k_BSGK, 1),
        padded(v_BSGK, 1),
        # A float32 bias gives NaN gradients (jax issue 32242).
        bias=None if bias is None else padded(bias.astype(q_BLHK.dtype), 2, 3),
        scale=scale,
        is_causal=mask.causal,
        query_seq_lengths=lengths(mask.query_lengths, queries),
        key_value_seq_lengths=lengths(mask.lengths, keys),
        local_window_size=None if mask.window is None else (mask.window - 1, 0),
        implementation="cudnn",
    )[:, :queries]


def xla_attention(
    q_BLHK, k_BSGK, v_BSGK, mask: Mask, scale: float, bias, softcap, dropout: float, dropout_key
) -> jax.Array:
    """Block by block of queries, each with the keys that it can see at all: a causal mask hides almost half of the scores."""
    parts = []
    for rows, columns in visible_blocks(mask, q_BLHK.shape[1], k_BSGK.shape[1]):
        keys, queries = slice(columns.start, columns.stop), slice(rows.start, rows.stop)
        block_bias = None if bias is None else bias[:, :, queries, keys]
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, rows.start)
        q, k, v = q_BLHK[:, queries], k_BSGK[:, keys], v_BSGK[:, keys]
        parts.append(
            block_attention(
                q,
                k,
                v,
                visible_BLS(mask, rows, columns),
                scale,
                block_bias,
                softcap,
                dropout,
                key,
                cached=mask.positions is not None,
            )
        )
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def visible_blocks(mask: Mask, queries: int, keys: int) -> list[tuple[range, range]]:
    """(queries, keys that they may see) of each block; a single one where that saves nothing."""
    count = min(MOST_BLOCKS, queries // BLOCK)
    plain = mask.causal and mask.prefix_lengths is None and mask.positions is None
    if not plain or queries != keys or count < 2 or queries % count:
        return [(range(queries), range(keys))]
    size, window = queries // count, mask.window or queries
    return [
        (range(start, start + size), range(max(0, start - window + 1), start + size))
        for start in range(0, queries, size)
    ]


def block_attention(
    q_BLHK,
    k_BSGK,
    v_BSGK,
    visible,
    scale: float,
    bias,
    softcap,
    dropout: float,
    dropout_key,
    cached: bool = False,
) -> jax.Array:
    """The definition: scores and softmax in float32, L x S in memory. `visible` is bool [B or 1, L, S] or None."""
    B, L, H, K = q_BLHK.shape
    G = k_BSGK.shape[2]
    q_BLGRK = q_BLHK.reshape(B, L, G, H // G, K)
    scores = matmul("BLGRK,BSGK->BGRLS", q_BLGRK, k_BSGK, jnp.float32, name=SCORES) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.reshape(bias.shape[0], G, H // G, *bias.shape[2:])
    if visible is not None:
        scores = jnp.where(visible[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BSGK.dtype)
    if dropout > 0:
        kept = jax.random.bernoulli(dropout_key, 1 - dropout, weights.shape)
        weights = jnp.where(kept, weights / (1 - dropout), 0).astype(v_BSGK.dtype)
    if cached:
        # The keys and values of a cache lie in memory head by head. XLA's CPU backend turns the
        # product below into one in bfloat16 that it can't run then ("Unsupported element type for
        # DotThunk"), so the result is brought into the order of the heads after the product.
        y_BGRLK = matmul("BGRLS,BSGK->BGRLK", weights, v_BSGK, name=SCORES)
        return jnp.moveaxis(y_BGRLK, 3, 1).reshape(B, L, H, K)
    return matmul("BGRLS,BSGK->BLGRK", weights, v_BSGK, name=SCORES).reshape(B, L, H, K)


def visible_BLS(mask: Mask, queries: range, keys: range) -> jax.Array | None:
    """bool [B or 1, L, S]: the mask of these queries and keys written out; None where everything is visible."""
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
        conditions.append((query - key if mask.causal else jnp.abs(query - key)) < mask.window)
    if mask.lengths is not None:
        conditions.append(key < mask.lengths[:, None, None])
    if mask.segments is not None:
        of_query = mask.segments[:, queries.start : queries.stop]
        of_key = (mask.segments if mask.key_segments is None else mask.key_segments)[
            :, keys.start : keys.stop
        ]
        conditions.append(of_query[:, :, None] == of_key[:, None, :])
    visible = None
    for condition in conditions:
        visible = condition if visible is None else visible & condition
    return visible
