"""Attention against a float64 loop over queries and keys, and the choice of its kernel."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import config
from jaxlm.nn import dot_product
from jaxlm.nn.attention import kernel
from jaxlm.nn.dot_product import Case, Mask, attend, choose, visible_blocks
from jaxlm.nn.execution import Execution

B, L, H, G, K = 2, 8, 6, 2, 4
LENGTHS, PREFIXES = np.array([8, 4]), np.array([3, 0])
SEGMENTS = np.array([[0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 2]])

Rule = Callable[[int, int, int], bool]  # (row, query, key) -> is it seen

MASKS: dict[str, tuple[Mask, Rule]] = {
    "none": (Mask(), lambda b, q, k: True),
    "causal": (Mask(causal=True), lambda b, q, k: k <= q),
    "window": (Mask(causal=True, window=3), lambda b, q, k: q - 2 <= k <= q),
    "lengths": (Mask(causal=True, lengths=LENGTHS), lambda b, q, k: k <= q and k < LENGTHS[b]),
    "bidirectional lengths": (Mask(lengths=LENGTHS), lambda b, q, k: k < LENGTHS[b]),
    "segments": (Mask(causal=True, segments=SEGMENTS), lambda b, q, k: k <= q and SEGMENTS[b, q] == SEGMENTS[b, k]),
    "prefix": (Mask(causal=True, prefix_lengths=PREFIXES), lambda b, q, k: k <= q or k < PREFIXES[b]),
    "prefix, window": (Mask(True, 2, prefix_lengths=PREFIXES), lambda b, q, k: (k <= q or k < PREFIXES[b]) and q - k < 2),
    "all": (
        Mask(True, 4, LENGTHS, SEGMENTS, PREFIXES),
        lambda b, q, k: (k <= q or k < PREFIXES[b]) and q - k < 4 and k < LENGTHS[b] and SEGMENTS[b, q] == SEGMENTS[b, k],
    ),
}


def random(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def qkv() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return random((B, L, H, K), 0), random((B, L, G, K), 1), random((B, L, G, K), 2)


def expected(q, k, v, rule: Rule, bias: np.ndarray | None = None, softcap: float | None = None) -> np.ndarray:
    """The definition, one query at a time; a query that sees nothing is NaN."""
    out = np.full((B, L, H, K), np.nan)
    for b, i, h in np.ndindex(B, L, H):
        seen = [j for j in range(L) if rule(b, i, j)]
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


@pytest.fixture(params=[dot_product.BLOCK, 2], ids=["whole", "blocks"])
def blocks(request, monkeypatch) -> int:
    """Queries taken all at once, and in blocks of two."""
    monkeypatch.setattr(dot_product, "BLOCK", request.param)
    return request.param


@pytest.mark.parametrize("name", MASKS)
def test_masks(name, qkv, blocks):
    mask, rule = MASKS[name]
    ours = np.asarray(attend(*qkv, mask, Execution(), scale=K**-0.5))
    assert np.isfinite(ours).all()
    theirs = expected(*qkv, rule)
    sees = ~np.isnan(theirs)
    assert sees.mean() > 0.5
    np.testing.assert_allclose(ours[sees], theirs[sees], atol=2e-6)


def test_bias_and_softcap(qkv, blocks):
    """In that order: the cap is on the scaled scores, the bias comes after it."""
    mask, rule = MASKS["window"]
    bias = random((1, H, L, L), 3)
    ours = attend(*qkv, mask, Execution(), scale=K**-0.5, bias=bias, softcap=0.7)
    np.testing.assert_allclose(ours, expected(*qkv, rule, bias, 0.7), atol=2e-6)


def test_blocks_save_scores():
    def pairs(mask: Mask, length: int) -> int:
        return sum(len(queries) * len(keys) for queries, keys in visible_blocks(mask, length, length))

    assert pairs(Mask(causal=True), 512) == 128 * (128 + 256 + 384 + 512)
    assert pairs(Mask(causal=True, window=64), 512) == 128 * (128 + 3 * (128 + 63))
    for mask in (Mask(), Mask(True, prefix_lengths=PREFIXES)):
        assert visible_blocks(mask, 512, 512) == [(range(512), range(512))]
    for length in (64, 255, 257):
        assert visible_blocks(Mask(causal=True), length, length) == [(range(length), range(length))]


def test_grouped_heads_equal_repeated_heads(qkv):
    q, k, v = qkv
    mask = Mask(causal=True)
    repeated = attend(q, np.repeat(k, H // G, 2), np.repeat(v, H // G, 2), mask, Execution(), scale=0.5)
    np.testing.assert_allclose(attend(q, k, v, mask, Execution(), scale=0.5), repeated, atol=1e-6)


def test_bfloat16_stays_close(qkv):
    mask, rule = MASKS["causal"]
    ours = attend(*(jnp.asarray(a, jnp.bfloat16) for a in qkv), mask, Execution(), scale=K**-0.5)
    assert ours.dtype == jnp.bfloat16
    # Inputs, weights and output are rounded to 8 bits; scores and softmax are not.
    np.testing.assert_allclose(ours.astype(jnp.float32), expected(*qkv, rule), atol=4 * 2**-8)


def test_dropout_on_the_weights():
    """With the identity for values, what comes out are the weights."""
    n = 64
    q, k = random((4, n, 1, n), 0), random((4, n, 1, n), 1)
    v = np.broadcast_to(np.eye(n, dtype=np.float32)[None, :, None], (4, n, 1, n))

    def run(rate, key):
        return np.asarray(attend(q, k, v, Mask(), Execution(), scale=0.125, dropout=rate, dropout_key=key))

    whole, dropped = run(0.25, None), run(0.25, jax.random.key(0))
    np.testing.assert_array_equal(whole, run(0.0, jax.random.key(0)))
    kept = dropped != 0
    # 16,384 draws: five standard deviations of the share are 0.017.
    assert abs(1 - kept.mean() - 0.25) < 0.017
    np.testing.assert_allclose(dropped[kept], whole[kept] / 0.75, rtol=1e-6)


H100 = Execution(platform="cuda", compute_capability=9.0)
A100 = H100._replace(compute_capability=8.0)
GOOD = Case("bfloat16", 256, 256, 64, Mask(causal=True))


@pytest.mark.parametrize(
    "case", [GOOD, GOOD._replace(dtype="float16"), GOOD._replace(mask=Mask(True, 100, LENGTHS)), GOOD._replace(mask=Mask())]
)
def test_cudnn_where_supported(case):
    assert choose(H100, case) == ("cudnn", "supported")
    assert choose(H100._replace(attention="cudnn"), case) == ("cudnn", "supported")
    assert choose(H100._replace(attention="xla"), case) == ("xla", "asked for")


@pytest.mark.parametrize(
    ("execution", "case", "reason"),
    [
        (Execution(), GOOD, "platform is cpu"),
        (H100, GOOD._replace(dtype="float32"), "dtype is float32"),
        (H100, GOOD._replace(head_width=60), "heads of 60 channels"),
        (H100, GOOD._replace(head_width=264), "heads of 264 channels"),
        (A100, GOOD._replace(head_width=192), "up to 128"),
        (H100, GOOD._replace(queries=100), "100 queries"),
        (H100, GOOD._replace(keys=200), "200 keys"),
        (H100, GOOD._replace(softcap=True), "soft-cap"),
        (H100, GOOD._replace(dropout=True), "dropout"),
        (H100, GOOD._replace(mask=Mask(segments=SEGMENTS)), "segments"),
        (H100, GOOD._replace(mask=Mask(True, prefix_lengths=PREFIXES)), "prefix"),
        (H100, GOOD._replace(mask=Mask(window=100)), "window"),
    ],
)
def test_xla_where_cudnn_is_not_supported(execution, case, reason):
    chosen, why = choose(execution, case)
    assert chosen == "xla" and reason in why
    with pytest.raises(ValueError, match="cuDNN attention can't be used") as error:
        choose(execution._replace(attention="cudnn"), case)
    assert reason in str(error.value)


def test_wide_heads_on_hopper():
    assert choose(H100, GOOD._replace(head_width=256))[0] == "cudnn"
    assert choose(A100, GOOD._replace(head_width=128))[0] == "cudnn"


def test_asked_for_but_unsupported_raises_in_a_model_too(qkv):
    with pytest.raises(ValueError, match="platform is cpu"):
        attend(*qkv, Mask(causal=True), Execution(attention="cudnn"), scale=0.5)


def test_kernel_of_a_model():
    model = config.Model(width=256, heads=4, sliding_window=64)
    assert kernel(model, "bfloat16", 1024, H100) == ("cudnn", "supported")
    assert kernel(config.Model(width=256, heads=4, attention_softcap=30.0), "bfloat16", 1024, H100) == ("xla", "attention soft-cap")
    assert kernel(config.Model(width=256, heads=4, attention_dropout=0.1), "bfloat16", 1024, H100) == ("xla", "attention dropout")
    assert kernel(model, "float32", 1024, H100)[0] == kernel(model, "bfloat16", 1000, H100)[0] == "xla"
