"""Self and cross attention against a float64 loop over queries and keys; padding for cuDNN."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn import dot_product
from jaxlm.nn.dot_product import attend, visible_blocks
from jaxlm.nn.execution import Execution
from jaxlm.nn.mask import Mask

B, L, S, H, G, K = 2, 8, 11, 6, 2, 4
LENGTHS: Any = np.array([8, 4])
PREFIXES: Any = np.array([3, 0])
SEGMENTS: Any = np.array([[0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 2]])

Qkv = tuple[Any, Any, Any]
Rule = Callable[[int, int, int], bool]  # (row, query, key) -> is it seen

MASKS: dict[str, tuple[Mask, Rule]] = {
    "none": (Mask(), lambda b, q, k: True),
    "causal": (Mask(causal=True), lambda b, q, k: k <= q),
    "window": (Mask(causal=True, window=3), lambda b, q, k: q - 2 <= k <= q),
    "lengths": (Mask(causal=True, lengths=LENGTHS), lambda b, q, k: k <= q and k < LENGTHS[b]),
    "bidirectional lengths": (Mask(lengths=LENGTHS), lambda b, q, k: k < LENGTHS[b]),
    "segments": (
        Mask(causal=True, segments=SEGMENTS),
        lambda b, q, k: k <= q and SEGMENTS[b, q] == SEGMENTS[b, k],
    ),
    "prefix": (
        Mask(causal=True, prefix_lengths=PREFIXES),
        lambda b, q, k: k <= q or k < PREFIXES[b],
    ),
    "prefix, window": (
        Mask(causal=True, window=2, prefix_lengths=PREFIXES),
        lambda b, q, k: (k <= q or k < PREFIXES[b]) and q - k < 2,
    ),
    "all": (
        Mask(
            causal=True,
            window=4,
            lengths=LENGTHS,
            segments=SEGMENTS,
            prefix_lengths=PREFIXES,
        ),
        lambda b, q, k: (
            (k <= q or k < PREFIXES[b])
            and q - k < 4
            and k < LENGTHS[b]
            and SEGMENTS[b, q] == SEGMENTS[b, k]
        ),
    ),
}


def random(shape: tuple[int, ...], seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def qkv() -> Qkv:
    return random((B, L, H, K), 0), random((B, L, G, K), 1), random((B, L, G, K), 2)


def expected(
    q, k, v, rule: Rule, bias: np.ndarray | None = None, softcap: float | None = None
) -> np.ndarray:
    """The definition, one query at a time; a query that sees nothing is NaN."""
    out = np.full(q.shape, np.nan)
    for b, i, h in np.ndindex(q.shape[:3]):
        seen = [j for j in range(k.shape[1]) if rule(b, i, j)]
        g = h // (H // G)
        scores = np.array([q[b, i, h].astype(np.float64) @ k[b, j, g] for j in seen]) / math.sqrt(K)
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        if bias is not None:
            scores = scores + bias[0, h, i, seen]
        if seen:
            weights = np.exp(scores - scores.max())
            out[b, i, h] = weights / weights.sum() @ v[b, seen, g]
    return out


@pytest.fixture(params=[dot_product.QUERY_BLOCK, 2], ids=["whole", "blocks"])
def blocks(request, monkeypatch) -> int:
    """Take the queries all at once, and in blocks of two."""
    monkeypatch.setattr(dot_product, "QUERY_BLOCK", request.param)
    return request.param


@pytest.mark.parametrize("name", MASKS)
def test_masks(name, qkv: Qkv, blocks):
    mask, rule = MASKS[name]
    ours = np.asarray(attend(*qkv, mask, Execution(), scale=K**-0.5))
    assert np.isfinite(ours).all()
    theirs = expected(*qkv, rule)
    sees = ~np.isnan(theirs)
    assert sees.mean() > 0.5
    np.testing.assert_allclose(ours[sees], theirs[sees], atol=2e-6)


def test_bias_and_softcap(qkv: Qkv, blocks):
    """In that order: the cap is on the scaled scores, the bias comes after it."""
    mask, rule = MASKS["window"]
    bias = random((1, H, L, L), 3)
    ours = attend(*qkv, mask, Execution(), scale=K**-0.5, bias=bias, softcap=0.7)
    np.testing.assert_allclose(ours, expected(*qkv, rule, bias, 0.7), atol=2e-6)


SOURCE_LENGTHS: Any = np.array([11, 5])
SOURCE_SEGMENTS: Any = np.array(
    [[0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2], [0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2]]
)

CROSS_MASKS: dict[str, tuple[Mask, Rule]] = {
    "none": (Mask(), lambda b, q, k: True),
    "lengths": (
        Mask(lengths=SOURCE_LENGTHS, query_lengths=LENGTHS),
        lambda b, q, k: k < SOURCE_LENGTHS[b],
    ),
    "segments": (
        Mask(segments=SEGMENTS, key_segments=SOURCE_SEGMENTS),
        lambda b, q, k: SEGMENTS[b, q] == SOURCE_SEGMENTS[b, k],
    ),
    "all": (
        Mask(
            lengths=SOURCE_LENGTHS,
            query_lengths=LENGTHS,
            segments=SEGMENTS,
            key_segments=SOURCE_SEGMENTS,
        ),
        lambda b, q, k: k < SOURCE_LENGTHS[b] and SEGMENTS[b, q] == SOURCE_SEGMENTS[b, k],
    ),
}


@pytest.mark.parametrize("name", CROSS_MASKS)
def test_cross_attention(name, blocks):
    """Keys of another sequence, more of them than queries.

    The output of queries after their own length is finite, but otherwise left open.
    """
    mask, rule = CROSS_MASKS[name]
    q, k, v = random((B, L, H, K), 0), random((B, S, G, K), 1), random((B, S, G, K), 2)
    ours = np.asarray(attend(q, k, v, mask, Execution(), scale=K**-0.5))
    assert ours.shape == q.shape and np.isfinite(ours).all()
    theirs = expected(q, k, v, rule)
    if mask.query_lengths is not None:
        theirs[np.arange(L) >= LENGTHS[:, None]] = np.nan
    read = ~np.isnan(theirs)
    assert read.mean() > 0.5
    np.testing.assert_allclose(ours[read], theirs[read], atol=2e-6)


def test_blocks_save_scores():
    def pairs(mask: Mask, length: int) -> int:
        return sum(
            len(queries) * len(keys) for queries, keys in visible_blocks(mask, length, length)
        )

    assert pairs(Mask(causal=True), 512) == 128 * (128 + 256 + 384 + 512)
    assert pairs(Mask(causal=True, window=64), 512) == 128 * (128 + 3 * (128 + 63))
    for mask in (Mask(), Mask(causal=True, prefix_lengths=PREFIXES)):
        assert visible_blocks(mask, 512, 512) == [(range(512), range(512))]
    for length in (64, 255, 257):
        assert visible_blocks(Mask(causal=True), length, length) == [(range(length), range(length))]


def test_grouped_heads_equal_repeated_heads(qkv: Qkv):
    q, k, v = qkv
    mask = Mask(causal=True)
    k_repeated, v_repeated = (jnp.repeat(a, H // G, 2) for a in (k, v))
    repeated = attend(q, k_repeated, v_repeated, mask, Execution(), scale=0.5)
    np.testing.assert_allclose(attend(q, k, v, mask, Execution(), scale=0.5), repeated, atol=1e-6)


def test_bfloat16_stays_close(qkv: Qkv):
    mask, rule = MASKS["causal"]
    q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in qkv)
    ours = attend(q, k, v, mask, Execution(), scale=K**-0.5)
    assert ours.dtype == jnp.bfloat16
    # Inputs, weights and output are rounded to 8 bits; scores and softmax are not.
    np.testing.assert_allclose(ours.astype(jnp.float32), expected(*qkv, rule), atol=4 * 2**-8)


def test_dropout_on_the_weights():
    """If the values are the identity, the output is the weights."""
    n = 64
    q, k = random((4, n, 1, n), 0), random((4, n, 1, n), 1)
    v = jnp.broadcast_to(jnp.eye(n)[None, :, None], (4, n, 1, n))

    def run(rate, key):
        return np.asarray(
            attend(q, k, v, Mask(), Execution(), scale=0.125, dropout=rate, dropout_key=key)
        )

    whole, dropped = run(0.25, None), run(0.25, jax.random.key(0))
    np.testing.assert_array_equal(whole, run(0.0, jax.random.key(0)))
    kept = dropped != 0
    # 16,384 draws: five standard deviations of the share are 0.017.
    assert abs(1 - kept.mean() - 0.25) < 0.017
    np.testing.assert_allclose(dropped[kept], whole[kept] / 0.75, rtol=1e-6)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("rows", [1, 3])
def test_keys_and_values_of_a_cache_are_read_in_bfloat16(rows, queries, kv_heads):
    """Head by head in memory: for some shapes a CPU has no product of bfloat16 then."""
    q = jnp.asarray(random((rows, queries, 4, 8), 0), jnp.bfloat16)
    k, v = (jnp.asarray(random((rows, kv_heads, 16, 8), n), jnp.bfloat16) for n in (1, 2))

    def read(q, k, v):
        k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        return attend(q, k, v, Mask(), Execution(), scale=0.5)

    found = jax.jit(read)(q, k, v).astype(jnp.float32)
    plain = read(*(x.astype(jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(found, plain, atol=0.05)  # bfloat16 has 8 bits


PADDED: Any = np.array([70, 41])
PACKED: Any = np.array([30 * [1] + 39 * [2] + [0], 5 * [1] + 50 * [2] + 15 * [3]])
PACKED_SOURCE: Any = np.array([60 * [1] + 80 * [2], 10 * [1] + 9 * [2] + 81 * [3] + 40 * [0]])
CUDNN_CASES: dict[str, tuple[int, Mask]] = {
    "causal": (70, Mask(causal=True)),
    "causal, odd": (69, Mask(causal=True)),
    "causal, no padding": (128, Mask(causal=True)),
    "causal, longer": (130, Mask(causal=True)),
    "window": (70, Mask(causal=True, window=9)),
    "lengths": (70, Mask(lengths=PADDED, query_lengths=PADDED)),
    "cross": (140, Mask()),
    "cross, lengths": (140, Mask(lengths=2 * PADDED - 11, query_lengths=PADDED)),
    "prefix": (70, Mask(causal=True, prefix_lengths=PADDED - 30)),
    "prefix, no padding": (128, Mask(causal=True, prefix_lengths=PADDED - 30)),
    "prefix, lengths": (
        70,
        Mask(causal=True, prefix_lengths=PADDED - 30, lengths=PADDED, query_lengths=PADDED),
    ),
    "prefix, window": (70, Mask(causal=True, window=9, prefix_lengths=PADDED - 30)),
    "two-sided window": (70, Mask(window=9)),
    "two-sided window, lengths": (70, Mask(window=9, lengths=PADDED, query_lengths=PADDED)),
    "two-sided window, packed": (70, Mask(window=9, segments=PACKED)),
    "packed": (70, Mask(segments=PACKED)),
    "packed, causal": (70, Mask(causal=True, segments=PACKED)),
    "packed, window": (70, Mask(causal=True, window=9, segments=PACKED)),
    "packed, cross": (140, Mask(segments=PACKED, key_segments=PACKED_SOURCE)),
}


@pytest.mark.parametrize("name", CUDNN_CASES)
def test_padding_for_cudnn_changes_nothing(name, monkeypatch):
    """The call of the kernel, computed by jax's implementation of the same function for CPUs."""
    definition = jax.nn.dot_product_attention
    shapes = []

    def stand_in(q, k, v, *, implementation, **options):
        assert implementation == "cudnn"
        shapes.append((q.shape[1], k.shape[1]))
        return definition(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    keys, mask = CUDNN_CASES[name]
    queries = 70 if keys == 140 else keys
    q, k, v = random((B, queries, H, K), 0), random((B, keys, G, K), 1), random((B, keys, G, K), 2)
    bias = random((1, H, queries, keys), 3)
    ours = dot_product.cudnn_attention(q, k, v, mask, scale=0.5, bias=jnp.asarray(bias))
    # Sequences of up to 128 positions are made even, longer ones a multiple of 128.
    assert shapes == [tuple({69: 70, 130: 256, 140: 256}.get(n, n) for n in (queries, keys))]
    theirs = dot_product.xla_attention(q, k, v, mask, scale=0.5, bias=bias)
    lengths = np.full(B, queries) if mask.query_lengths is None else mask.query_lengths
    read = np.arange(queries) < lengths[:, None]
    if mask.key_segments is not None:
        read &= np.asarray(mask.segments) > 0  # its padding sees no key of the first row
    np.testing.assert_allclose(np.asarray(ours)[read], np.asarray(theirs)[read], atol=2e-6)


def test_gradients_of_a_weighted_mean_are_those_of_softmax():
    """Its own backward pass against autodiff through the definition; one row sees one key alone."""
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(2, 3, 5, 7)).astype(np.float32)
    scores[1, 2, 4, 1:] = dot_product.MASKED
    v, of_mean = (rng.normal(size=(2, 3, n, 4)).astype(np.float32) for n in (7, 5))

    def definition(scores, v):
        return jnp.einsum("BGMS,BGSK->BGMK", jax.nn.softmax(scores), v)

    def loss(function, scores, v):
        return jnp.sum(jnp.square(function(scores, v)) * of_mean)

    expected, found = (
        jax.grad(loss, argnums=(1, 2))(function, scores, v)
        for function in (definition, dot_product.weighted_mean)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert np.linalg.norm(theirs) > 0.1
        # Sums of at most 7 products in float32 (6e-8 each), differently ordered.
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
