"""Attention by blocks against the XLA path: outputs, gradients, tiles and memory."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.trees import random_params

from jaxlm import config, models
from jaxlm.models.stack import REMAT
from jaxlm.nn import tiles
from jaxlm.nn.blockwise import blockwise_attention
from jaxlm.nn.dot_product import attend, xla_attention
from jaxlm.nn.execution import Execution
from jaxlm.nn.mask import Mask, visible_BLS
from jaxlm.nn.tiles import cut_tiles
from jaxlm.types import Batch

B, H, G, K = 2, 4, 2, 8

# Roundings of float32 (6e-8 each) in sums of at most 64 terms, three of them in a row for some
# gradients, as a share of the largest element. Up to 1e-6 is seen.
CLOSE = 4e-6


def random(*shape: int, seed: int = 0) -> jax.Array:
    rng = np.random.default_rng([seed, *shape])
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def documents(length: int, *ends: int) -> Any:
    """Return segments [2, length]: the second row has one border."""
    places = np.arange(length)
    return jnp.asarray([np.searchsorted(ends, places, "right"), places >= length // 3], jnp.int32)


def lengths(*values: int) -> Any:
    return jnp.asarray(values, jnp.int32)


class Example:
    """A call of attention; `bias` is its number of rows."""

    def __init__(self, queries: int, keys: int, mask: Mask, softcap: Any = None, bias: int = 0):
        self.mask, self.softcap = mask, softcap
        self.queries, self.keys, self.has_bias = queries, keys, bias > 0
        self.operands = {
            "q_BLHK": random(B, queries, H, K),
            "k_BSGK": random(B, keys, G, K, seed=1),
            "v_BSGK": random(B, keys, G, K, seed=2),
        }
        if bias:
            self.operands["bias"] = random(bias, H, queries, keys, seed=3)

    def visible(self) -> np.ndarray:
        """Return bool [B, L, S]."""
        visible = visible_BLS(self.mask, range(self.queries), range(self.keys))
        shape = (B, self.queries, self.keys)
        return np.broadcast_to(True if visible is None else np.asarray(visible), shape)

    def run(self, attention: Any, dy: jax.Array, dtype: Any = jnp.float32) -> dict[str, Any]:
        """Return the output and the gradient of each operand."""

        def call(operands: Any) -> jax.Array:
            return attention(**operands, mask=self.mask, scale=0.4, softcap=self.softcap)

        operands = {name: x.astype(dtype) for name, x in self.operands.items()}
        output, backward = jax.vjp(call, operands)
        return {"output": output, **backward(dy.astype(dtype))[0]}


EXAMPLES = {
    "everything, grouped heads": Example(24, 24, Mask()),
    "causal, odd length": Example(37, 37, Mask(causal=True)),
    "causal, soft-cap": Example(37, 37, Mask(causal=True), softcap=1.5),
    "causal, weak soft-cap": Example(37, 37, Mask(causal=True), softcap=100.0),
    "causal window": Example(40, 40, Mask(causal=True, window=9), softcap=1.5),
    "two-sided window": Example(61, 61, Mask(window=7, segments=documents(61, 20, 50))),
    "prefix, window": Example(
        40, 40, Mask(causal=True, window=25, prefix_lengths=lengths(17, 0)), bias=1
    ),
    "lengths, bias of rows": Example(
        21, 21, Mask(lengths=lengths(21, 9), query_lengths=lengths(21, 9)), softcap=2.0, bias=B
    ),
    "packed": Example(40, 40, Mask(causal=True, segments=documents(40, 7, 23))),
    "cross": Example(
        19, 45, Mask(segments=documents(19, 5, 11), key_segments=documents(45, 20, 40))
    ),
    "cross, fewer keys": Example(45, 19, Mask(window=10)),  # queries from 28 on see nothing
    "hidden rows": Example(24, 24, Mask(causal=True, lengths=lengths(24, 0))),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, request):
    """Take blocks of 4 or 8 positions, and up to 12 of them side by side."""
    if "full_size" in request.fixturenames:
        return
    monkeypatch.setattr(tiles, "SMALLEST_BLOCK", 4)
    monkeypatch.setattr(tiles, "LARGEST_BLOCK", 8)
    monkeypatch.setattr(tiles, "TILE_BYTES", 3 * 4 * B * H * 8 * 8)


@pytest.fixture
def full_size() -> None:
    """Keep the sizes that runs have."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_outputs_and_gradients_are_those_of_the_xla_path(name):
    """A query that sees nothing gives 0, and passes no gradient on."""
    example = EXAMPLES[name]
    sees = jnp.asarray(example.visible().any(axis=2))[:, :, None, None]
    assert bool(sees.all()) == (name not in ("cross, fewer keys", "hidden rows"))
    dy = random(B, example.queries, H, K, seed=4)

    @jax.jit
    def both() -> Any:
        ours, theirs = example.run(blockwise_attention, dy), example.run(xla_attention, dy * sees)
        return ours, theirs | {"output": theirs["output"] * sees}

    ours, theirs = both()
    assert ours.keys() == theirs.keys() and ("bias" in ours) == example.has_bias
    for key, expected in theirs.items():
        atol = CLOSE * np.abs(expected).max()
        np.testing.assert_allclose(ours[key], expected, rtol=0, atol=atol, err_msg=key)


@pytest.mark.parametrize(
    ("softcap", "dtype", "bias", "passes"),
    [
        (1.5, "float32", 0, 0),
        (50, "bfloat16", 0, 0),
        (90, "float32", 0, 1),
        (50, "float16", 0, 1),
        (50, "float32", 100, 1),
    ],
)
def test_soft_caps_need_no_largest_score_where_all_exponentials_fit(softcap, dtype, bias, passes):
    """Scores of +-softcap for all keys of a query, and for one of them."""
    example = Example(16, 16, Mask(causal=True), softcap=float(softcap), bias=bias and 1)
    if bias:
        example.operands["bias"] = jnp.full_like(example.operands["bias"], bias)
    dy = random(B, 16, H, K, seed=4)
    run = partial(example.run, blockwise_attention, dy, jnp.dtype(dtype))
    assert str(jax.make_jaxpr(run)()).count("reduce_max") == passes

    q, k = (np.zeros(example.operands[name].shape) for name in ("q_BLHK", "k_BSGK"))
    q[..., 0], q[0, ::2, :, 0], k[..., 0] = 1e4, -1e4, 1e4
    k[:, 5, :, 0] = -1e4
    example.operands |= {"q_BLHK": jnp.asarray(q), "k_BSGK": jnp.asarray(k)}
    ours, exact = jax.jit(lambda: (run(), example.run(xla_attention, dy)))()
    # The log-sum-exp, which the backward pass reads, is rounded in proportion to its size.
    rounding = 4 * float(jnp.finfo(dtype).eps) + (softcap + bias) * float(
        jnp.finfo(jnp.float32).eps
    )
    for key in ("output", "v_BSGK"):
        error = np.abs(np.asarray(ours[key], np.float64) - exact[key]).max()
        assert error <= rounding * np.abs(exact[key]).max(), key


def test_bfloat16_stays_close():
    example = EXAMPLES["causal, soft-cap"]
    dy = random(B, example.queries, H, K, seed=4)
    run = partial(example.run, blockwise_attention, dy, jnp.bfloat16)
    ours = jax.jit(run)()
    exact = example.run(xla_attention, dy)
    for key, expected in exact.items():
        assert ours[key].dtype == jnp.bfloat16
        # Operands, weights, their gradients and results are rounded by up to 2**-9 of themselves;
        # statistics are float32.
        error = jnp.linalg.norm(ours[key].astype(jnp.float32) - expected)
        assert 0 < error < 4 * 2**-9 * jnp.linalg.norm(expected), key

    # Two products forward, five backward. None is rounded before it is used.
    products = re.findall(r"\w+:(\w+)\[[\d,]*\] = dot_general", str(jax.make_jaxpr(run)()))
    assert products == 7 * ["f32"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_visible_pair_is_in_one_tile(name):
    example = EXAMPLES[name]
    tiling = cut_tiles(
        example.mask,
        example.queries,
        example.keys,
        rows_and_heads=B * H,
        has_bias=example.has_bias,
    )
    block, front = tiling.block, tiling.front
    times = np.zeros((tiling.queries * block, tiling.keys * block), int)
    for query, key in tiling.tiles:
        for part in range(tiling.strip):
            rows = slice((query + part) * block, (query + part + 1) * block)
            columns = slice((key + part) * block, (key + part + tiling.width) * block)
            assert times[rows, columns].shape == (block, tiling.width * block)
            times[rows, columns] += 1
    assert times.sum() == tiling.pairs
    # The keys of a narrow window are met at once.
    is_narrow = name in ("causal window", "two-sided window", "cross, fewer keys")
    assert (tiling.width > 1) == is_narrow

    assert times.max() == 1
    pairs = times[: example.queries, front * block : front * block + example.keys]
    assert pairs[example.visible().any(axis=0)].all()


def computed(mask: Mask, length: int, heads: int = 64) -> float:
    """Return the pairs of positions that are computed, per query."""
    tiling = cut_tiles(mask, length, length, rows_and_heads=heads)
    return tiling.pairs / length


def test_hidden_blocks_are_not_computed(full_size):
    for length in (4096, 8192):
        assert computed(Mask(), length) == length
        assert computed(Mask(causal=True), length) <= 0.63 * length
        assert computed(Mask(window=65), length) == 3 * 128  # ModernBERT: 64 to either side
        assert computed(Mask(causal=True, window=1024), length) <= 1.3 * 1024
        # As wide as the sequence, which leaves a triangle of it.
        assert computed(Mask(causal=True, window=length), length, heads=8) <= 0.75 * length
    # Where a prefix ends is in the data.
    assert computed(Mask(causal=True, prefix_lengths=lengths(9, 4)), 4096) == 4096


def compiled(length: int, mask: Mask) -> tuple[int, int]:
    """Return the elements of the largest array of the two passes, and their temporary bytes."""
    q, k = (jax.ShapeDtypeStruct((1, length, n, 32), jnp.bfloat16) for n in (2, 1))

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        y = blockwise_attention(q, k, v, mask, scale=0.2, softcap=50.0)
        return y.astype(jnp.float32).sum()

    program = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, k, k).compile()
    shapes = re.findall(r"(?:f32|bf16|pred|s32)\[([\d,]+)\]", program.as_text() or "")
    assert shapes
    largest = max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)
    return largest, program.memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_length_alone(full_size):
    """A tile has at most 1,024 x 1,024 pairs of each head, whatever the length."""
    (small, small_bytes), (large, large_bytes) = (
        compiled(length, Mask(causal=True)) for length in (4096, 8192)
    )
    assert small == large == 2 * 1024**2 < 4096**2 / 4
    # Beside a tile there are some arrays of the size of q: these double.
    tile = 4 * small
    assert large_bytes - small_bytes <= 4096 * 2 * 32 * 4 * 8
    assert small_bytes <= large_bytes <= 6 * tile


MODELS: dict[str, tuple[dict[str, Any], Batch]] = {
    "Gemma 2": (
        {
            "layers": 2,
            "sliding_window": 6,
            "attention_pattern": ("sliding", "full"),
            "attention_softcap": 1.5,
            "logit_softcap": 3.0,
            "norm_placement": "both",
            "kv_heads": 2,
        },
        Batch(tokens=None),
    ),
    "prefix LM": ({"layers": 1}, Batch(tokens=None, prefix_lengths=np.array([9, 14], np.int32))),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_same_loss_and_gradients(name):
    fields, batch = MODELS[name]
    model_config = config.ModelConfig(vocabulary_size=64, width=32, heads=4, **fields)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 22)).astype(np.int32)
    batch = batch._replace(tokens=tokens)
    precision = config.PrecisionConfig(compute="float32")

    def loss(attention: str, params: Any) -> jax.Array:
        model = models.build(model_config, precision, Execution(attention=attention))
        assert {kernel for kernel, _ in model.kernels(batch).values()} == {attention}
        log_probabilities = jax.nn.log_softmax(model.apply(params, batch))[:, :-1]
        return -jnp.take_along_axis(log_probabilities, tokens[:, 1:, None], axis=2).mean()

    params = random_params(models.build(model_config, precision))
    (ours, ours_grads), (theirs, their_grads) = jax.jit(
        lambda params: [
            jax.value_and_grad(partial(loss, attention))(params)
            for attention in ("blockwise", "xla")
        ]
    )(params)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    for (path, found), expected in zip(
        jax.tree_util.tree_leaves_with_path(ours_grads), jax.tree.leaves(their_grads), strict=True
    ):
        # Roundings pass through two layers and their norms. The keys' biases have no gradient.
        atol = 1e-5 * max(float(jnp.abs(expected).max()), 1e-3)
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=str(path))


def test_recomputation_keeps_the_output():
    """The backward pass runs the forward loop again under "full", but not under "weights"."""
    example = EXAMPLES["causal, soft-cap"]

    def loops(remat: str) -> int:
        def total(operands: Any) -> jax.Array:
            return blockwise_attention(**operands, mask=example.mask, scale=0.4).sum()

        gradient = jax.grad(jax.checkpoint(total, policy=REMAT[remat]))
        return str(jax.make_jaxpr(gradient)(example.operands)).count("= scan[")

    assert (loops("weights"), loops("full")) == (2, 3)


# Asked for


def test_blockwise_attention_can_be_asked_for():
    asked = Execution(attention="blockwise")
    example = EXAMPLES["causal, soft-cap"]
    call = partial(attend, **example.operands, mask=example.mask, scale=0.4, softcap=1.5)
    text = str(jax.make_jaxpr(lambda: call(execution=asked))())
    assert "scan" in text and "scan" not in str(
        jax.make_jaxpr(lambda: call(execution=Execution()))()
    )


def test_the_keys_of_a_cache_are_refused():
    example = EXAMPLES["causal, soft-cap"]
    cache = Mask(positions=(jnp.zeros((1, 1)), jnp.zeros((1, 1))))
    with pytest.raises(ValueError, match="keys of a cache"):
        blockwise_attention(**example.operands, mask=cache, scale=1.0)
