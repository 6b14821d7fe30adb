"""Scaled dot-product attention from a description of the mask.

cuDNN's flash kernel where it supports the case, otherwise a readable XLA path, or attention by
blocks where the scores would be large. `kernel_choice` decides.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jaxlm.nn.blockwise import blockwise_attention
from jaxlm.nn.dropout import kept, site_key
from jaxlm.nn.execution import Execution
from jaxlm.nn.kernel_choice import Case, choose_kernel, is_read_as_bias
from jaxlm.nn.mask import MASKED, Mask, visible_BLS
from jaxlm.nn.matmul import matmul, product, weight_gradient

# cuDNN: sequences are padded to a multiple of CUDNN_MULTIPLE. A shorter one has only to be even: by
# its padding a T5 decoder of 114 positions would take 20% longer (H200).
CUDNN_MULTIPLE, SHORT_CUDNN_MULTIPLE = 128, 2

# Logical axes of the operands of kernels that are called on each device.
KERNEL_AXES = {
    "q": ("batch", "length", "heads_act", "head_act"),
    "k": ("batch", "length", "kv_heads_act", "head_act"),
    "v": ("batch", "length", "kv_heads_act", "head_act"),
    "bias": ("batch", "heads_act", "length", "length"),
    "lengths": ("batch",),
    "query_lengths": ("batch",),
    "segments": ("batch", "length"),
    "key_segments": ("batch", "length"),
    "prefix_lengths": ("batch",),
}

# XLA: a sequence is cut into at most MAX_BLOCKS blocks of at least QUERY_BLOCK queries.
QUERY_BLOCK = 128
MAX_BLOCKS = 4

# The products' name for recomputation: not `PRODUCT`, whose policy would keep L x S scores.
SCORES = "scores"


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
    """Return the attention output [B, L, H, K] in q's dtype; H is a multiple of G.

    `bias` is float32 [1 or B, H, L, S], added to the scaled scores.
    """
    rows, queries, heads, head_width = execution.local_shape(q_BLHK.shape, KERNEL_AXES["q"])
    case = Case(
        dtype=q_BLHK.dtype.name,
        queries=queries,
        keys=k_BSGK.shape[1],
        head_width=head_width,
        mask=mask,
        softcap=softcap is not None,
        dropout=dropout > 0 and dropout_key is not None,
        bias=bias is not None,
        rows=rows,
        heads=heads,
    )
    kernel, _ = choose_kernel(execution, case)

    if kernel == "cudnn":
        attention = partial(cudnn_attention, scale=scale)
        return on_each_device(attention, q_BLHK, k_BSGK, v_BSGK, mask, execution, bias)
    if kernel == "blockwise":
        attention = partial(blockwise_attention, scale=scale, softcap=softcap)
        return on_each_device(attention, q_BLHK, k_BSGK, v_BSGK, mask, execution, bias)
    return xla_attention(
        q_BLHK,
        k_BSGK,
        v_BSGK,
        mask,
        scale=scale,
        bias=bias,
        softcap=softcap,
        dropout=dropout,
        dropout_key=dropout_key,
    )


# Kernels


def on_each_device(
    attention: Callable[..., jax.Array],
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    mask: Mask,
    execution: Execution,
    bias: jax.Array | None,
) -> jax.Array:
    """Call `attention` on each device with its rows and heads of all operands alike."""
    operands = {"q": q_BLHK, "k": k_BSGK, "v": v_BSGK}
    optional = {"bias": bias}
    optional |= {name: getattr(mask, name) for name in KERNEL_AXES if hasattr(mask, name)}
    operands |= {name: array for name, array in optional.items() if array is not None}

    def kernel(
        q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None, **of_mask
    ) -> jax.Array:
        return attention(q, k, v, mask._replace(**of_mask), bias=bias)

    return execution.per_device(kernel, operands, KERNEL_AXES, KERNEL_AXES["q"])


def cudnn_attention(
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    mask: Mask,
    *,
    scale: float,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Apply cuDNN's flash kernel to sequences padded to the multiple that it is made for.

    It reads segments, prefixes and windows to both sides as a bias that is the same for all heads:
    2 bytes per query and key of a row, once for all layers, and for such a window alone once for
    all rows. jax up to 0.10 has the kernel write that bias's gradient too, which nothing reads.

    Its layout for packed sequences would keep a statistic per segment, head and position (with 64
    segments twice the bytes of the queries, in each layer), needs Hopper, and jax (0.10.2) places
    grouped keys in it by the heads of the queries.
    """
    rows, queries, keys = q_BLHK.shape[0], q_BLHK.shape[1], k_BSGK.shape[1]

    def pad(x: jax.Array, *axes: int) -> jax.Array:
        return pad_for_cudnn(x, axes)

    def real_lengths(lengths: jax.Array | None, size: int) -> jax.Array | None:
        if lengths is None and missing_positions(size):
            return jnp.full(rows, size, jnp.int32)
        return lengths

    visible, window = None, mask.window
    if is_read_as_bias(mask):
        visible = visible_BLS(mask._replace(lengths=None), range(queries), range(keys))
        assert visible is not None
        visible, window = pad(visible, 1, 2)[:, None], None

    y_BLHK = jax.nn.dot_product_attention(
        pad(q_BLHK, 1),
        pad(k_BSGK, 1),
        pad(v_BSGK, 1),
        # A float32 bias gives NaN gradients (jax issue 32242).
        bias=None if bias is None else pad(bias.astype(q_BLHK.dtype), 2, 3),
        mask=visible,
        scale=scale,
        is_causal=mask.causal and mask.prefix_lengths is None,
        query_seq_lengths=real_lengths(mask.query_lengths, queries),
        key_value_seq_lengths=real_lengths(mask.lengths, keys),
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return y_BLHK[:, :queries]


def pad_for_cudnn(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Return x with positions added at the end of these axes, so that cuDNN takes their number."""
    missing = {axis: missing_positions(x.shape[axis]) for axis in axes}
    if not any(missing.values()):
        return x
    return jnp.pad(x, [(0, missing.get(axis, 0)) for axis in range(x.ndim)])


def missing_positions(size: int) -> int:
    """Return how many positions are added to a sequence for cuDNN."""
    return -size % (CUDNN_MULTIPLE if size > CUDNN_MULTIPLE else SHORT_CUDNN_MULTIPLE)


# XLA


def xla_attention(
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    mask: Mask,
    *,
    scale: float,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Attend block by block of queries, each block to the keys that it can see at all.

    A causal mask hides almost half of the scores.
    """
    parts = []
    for rows, columns in visible_blocks(mask, q_BLHK.shape[1], k_BSGK.shape[1]):
        queries, keys = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
        key = site_key(dropout_key, rows.start)
        part = block_attention(
            q_BLHK[:, queries],
            k_BSGK[:, keys],
            v_BSGK[:, keys],
            visible_BLS(mask, rows, columns),
            scale=scale,
            bias=None if bias is None else bias[:, :, queries, keys],
            softcap=softcap,
            dropout=dropout,
            dropout_key=key,
        )
        parts.append(part)

    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def visible_blocks(mask: Mask, queries: int, keys: int) -> list[tuple[range, range]]:
    """Return (queries, keys that they may see) of each block; one block where more save nothing."""
    count = min(MAX_BLOCKS, queries // QUERY_BLOCK)
    triangular = mask.causal and mask.prefix_lengths is None and mask.positions is None
    if not triangular or queries != keys or count < 2 or queries % count:
        return [(range(queries), range(keys))]

    size, window = queries // count, mask.window or queries
    blocks = []
    for start in range(0, queries, size):
        first_key = max(0, start - window + 1)
        blocks.append((range(start, start + size), range(first_key, start + size)))
    return blocks


def block_attention(
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    visible: jax.Array | None,
    *,
    scale: float,
    bias: jax.Array | None,
    softcap: float | None,
    dropout: float,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """Compute attention by its definition, with L x S float32 scores in memory.

    `visible` is bool [B or 1, L, S]; None: everything.
    """
    B, L, H, K = q_BLHK.shape
    S, G = k_BSGK.shape[1:3]
    R = H // G

    # Heads before positions: one product per head or group of heads. Einsums of the other order are
    # up to twice as slow on CPUs.
    q_BGMK = jnp.moveaxis(q_BLHK.reshape(B, L, G, R, K), 1, 3).reshape(B, G, R * L, K)
    k_BGSK, v_BGSK = jnp.swapaxes(k_BSGK, 1, 2), jnp.swapaxes(v_BSGK, 1, 2)

    scores_BGMS = matmul("BGMK,BGSK->BGMS", q_BGMK, k_BGSK, jnp.float32, name=SCORES)
    scores = scores_BGMS.reshape(B, G, R, L, S) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.reshape(bias.shape[0], G, R, *bias.shape[2:])
    if visible is not None:
        scores = jnp.where(visible[:, None, None], scores, MASKED)

    if dropout > 0 and dropout_key is not None:
        weights = jax.nn.softmax(scores, axis=-1)
        weights = jnp.where(kept(dropout_key, dropout, scores.shape), weights / (1 - dropout), 0)
        weights_BGMS = weights.astype(v_BGSK.dtype).reshape(B, G, R * L, S)
        y_BGMK = matmul("BGMS,BGSK->BGMK", weights_BGMS, v_BGSK, name=SCORES)
    else:
        y_BGMK = weighted_mean(scores.reshape(B, G, R * L, S), v_BGSK)
    return jnp.moveaxis(y_BGMK.reshape(B, G, R, L, K), 3, 1).reshape(B, L, H, K)


@jax.custom_vjp
def weighted_mean(scores_BGMS: jax.Array, v_BGSK: jax.Array) -> jax.Array:
    """Return softmax(scores) v, [B, G, M, K] in v's dtype."""
    return weighted_mean_forward(scores_BGMS, v_BGSK)[0]


def weighted_mean_forward(
    scores_BGMS: jax.Array, v_BGSK: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Return the mean and what its gradients need."""
    weights_BGMS = jax.nn.softmax(scores_BGMS, axis=-1)
    y_BGMK = product("BGMS,BGSK->BGMK", weights_BGMS.astype(v_BGSK.dtype), v_BGSK, name=SCORES)
    return y_BGMK, (weights_BGMS, v_BGSK, y_BGMK)


def weighted_mean_backward(
    saved: tuple[jax.Array, ...], gradient_BGMK: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of the scores and of v.

    The mean gradient of a query's scores is taken over the K channels of its output instead of its
    S weights (FlashAttention, arXiv 2205.14135, appendix B.4).
    """
    weights_BGMS, v_BGSK, y_BGMK = saved
    dw_BGMS = product("BGMK,BGSK->BGMS", gradient_BGMK, v_BGSK, jnp.float32, name=SCORES)
    rounded_BGMS = weights_BGMS.astype(v_BGSK.dtype)
    dv_BGSK = weight_gradient("BGMS", "BGMK", "BGSK", rounded_BGMS, gradient_BGMK)

    products_BGMK = gradient_BGMK.astype(jnp.float32) * y_BGMK.astype(jnp.float32)
    mean_BGM1 = jnp.sum(products_BGMK, axis=-1, keepdims=True)
    return weights_BGMS * (dw_BGMS - mean_BGM1), dv_BGSK.astype(v_BGSK.dtype)


weighted_mean.defvjp(weighted_mean_forward, weighted_mean_backward)
