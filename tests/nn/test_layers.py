"""Activations, norms, products with weights, dropout: against formulas."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import config
from jaxlm.nn.activations import ACTIVATIONS, activate
from jaxlm.nn.attention import AttentionInputs, SelfAttention
from jaxlm.nn.block import Block
from jaxlm.nn.dropout import dropout, site_key
from jaxlm.nn.execution import Execution
from jaxlm.nn.mask import Mask
from jaxlm.nn.matmul import add_bias, add_in_float32, add_in_kernel, matmul
from jaxlm.nn.mlp import MLP
from jaxlm.nn.norms import layer_norm, rms_norm
from jaxlm.nn.parameters import init_params

FORMULAS = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "relu": lambda x: max(x, 0.0),
    "relu_squared": lambda x: max(x, 0.0) ** 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    points = jnp.linspace(-5, 5, 41)
    np.testing.assert_allclose(
        ACTIVATIONS[name](points), [FORMULAS[name](float(x)) for x in points], atol=2e-6
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_rounded_once(name):
    """They and their gradients are computed in float32, whatever the dtype of x."""
    points = jnp.linspace(-5, 5, 202).astype(jnp.bfloat16)  # without 0, where relu has no slope
    formula, step = FORMULAS[name], 1e-4
    run = jax.vmap(jax.value_and_grad(lambda x: activate(name, x)))
    values, slopes = (np.asarray(a, np.float64) for a in run(points))
    assert values.any() and slopes.any()
    for x, value, slope in zip(np.asarray(points, np.float64), values, slopes, strict=True):
        expected = formula(x), (formula(x + step) - formula(x - step)) / (2 * step)
        # Half a unit of bfloat16's last of 8 bits; float32 leaves a few 1e-6 of 1 + tanh near -5,
        # and 1e-4 is left of the difference of two squares.
        for found, exact in zip((value, slope), expected, strict=True):
            assert abs(found - exact) <= 2**-8 * abs(exact) + 5e-6, (x, found, exact)


@pytest.mark.parametrize("gated", [False, True])
def test_only_the_inputs_of_an_activation_are_kept(gated):
    """The exponentials and the gate's result are computed again."""
    rng = np.random.default_rng(3)
    inputs = [jnp.asarray(rng.normal(size=(4, 6)), jnp.bfloat16) for _ in range(1 + gated)]

    def plain(up: jax.Array, *gate: jax.Array) -> jax.Array:
        return jax.nn.silu(gate[0]) * up if gated else jax.nn.silu(up)

    output, backward = jax.vjp(partial(activate, "silu"), *inputs)
    kept = [(x.dtype.name, x.shape) for x in jax.tree.leaves(backward)]
    assert kept == [("bfloat16", (4, 6))] * len(inputs)

    exact, exact_backward = jax.vjp(plain, *(x.astype(jnp.float32) for x in inputs))
    dy = jnp.asarray(rng.normal(size=(4, 6)), jnp.bfloat16)
    found, expected = (
        jax.tree.leaves((y, gradients(dy.astype(y.dtype))))
        for y, gradients in ((output, backward), (exact, exact_backward))
    )
    for ours, theirs in zip(found, expected, strict=True):
        # Half a unit of bfloat16's last of 8 bits.
        assert (jnp.abs(ours.astype(jnp.float32) - theirs) <= 2**-8 * jnp.abs(theirs)).all()


@pytest.mark.parametrize("gated", [False, True])
def test_mlp(gated):
    model = config.ModelConfig(
        width=6, heads=1, mlp_width=10, gated=gated, activation="relu_squared"
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    shapes = jax.eval_shape(MLP(model).init, jax.random.key(0), x)["params"]
    rng = np.random.default_rng(1)
    p = {name: rng.normal(size=box.value.shape).astype(np.float32) for name, box in shapes.items()}
    assert p.keys() == {
        f"{part}_{kind}"
        for part in ["up", "down"] + ["gate"] * gated
        for kind in ("kernel", "bias")
    }
    acted, other = ("gate", "up") if gated else ("up", None)
    hidden = np.maximum(x @ p[f"{acted}_kernel"] + p[f"{acted}_bias"], 0) ** 2
    if other:
        hidden = hidden * (x @ p["up_kernel"] + p["up_bias"])
    np.testing.assert_allclose(
        np.asarray(MLP(model).apply({"params": p}, x)),
        hidden @ p["down_kernel"] + p["down_bias"],
        rtol=1e-4,
        atol=1e-4,
    )


def test_norms():
    rng = np.random.default_rng(0)
    # A mean far from zero: the variance is taken around it.
    x, scale, bias = (
        rng.normal(3, 2, (4, 5, 8)).astype(np.float32),
        rng.normal(size=8),
        rng.normal(size=8),
    )
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    expected = (x - mean) / np.sqrt(variance + 0.1) * scale + bias
    np.testing.assert_allclose(
        layer_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), 0.1), expected, atol=1e-5
    )
    np.testing.assert_allclose(
        layer_norm(jnp.asarray(x), jnp.asarray(scale), None, 0.1), expected - bias, atol=1e-5
    )
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * scale
    np.testing.assert_allclose(
        rms_norm(jnp.asarray(x), jnp.asarray(scale), 0.1), expected, atol=1e-5
    )


@pytest.mark.parametrize("has_bias", [False, True])
def test_the_gradients_of_layer_norm_are_those_of_autodiff(has_bias):
    rng = np.random.default_rng(1)
    x, dy = (jnp.asarray(rng.normal(3, 2, (4, 5, 8)), jnp.float32) for _ in range(2))
    scale, bias = (jnp.asarray(rng.normal(size=8), jnp.float32) for _ in range(2))

    def plain(x: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        y = (x - mean) / jnp.sqrt(variance + 0.1) * scale[None, None]
        return y if bias is None else y + bias[None, None]

    operands = (x, scale, bias if has_bias else None)
    _, backward = jax.vjp(lambda *xs: layer_norm(*xs, 0.1), *operands)
    found, expected = jax.jit(backward)(dy), jax.jit(jax.vjp(plain, *operands)[1])(dy)
    assert len(jax.tree.leaves(found)) == 2 + has_bias
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6), found, expected)

    rounded = jax.vjp(lambda *xs: layer_norm(*xs, 0.1), x.astype(jnp.bfloat16), *operands[1:])[1]
    gradients = rounded(dy.astype(jnp.bfloat16))
    assert [g.dtype for g in jax.tree.leaves(gradients)] == ["bfloat16"] + ["float32"] * (
        1 + has_bias
    )
    for ours, exact in zip(jax.tree.leaves(gradients), jax.tree.leaves(found), strict=True):
        # x, dy and the result are rounded to 8 bits: 2**-9 each, by the norm.
        error = np.linalg.norm(np.asarray(ours, np.float32) - exact)
        assert error <= 0.01 * np.linalg.norm(exact)


def test_norms_of_bfloat16_are_computed_in_float32():
    """1000 + small differences: squares and means in bfloat16 (8 bits) would lose them."""
    x = jnp.asarray([[1000.0, 1008.0, 1016.0, 1024.0]], jnp.bfloat16)
    y = layer_norm(x, jnp.ones(4), None, 1e-6)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), [[-1.342, -0.447, 0.447, 1.342]], rtol=2**-8)


@pytest.mark.parametrize("spec", ["BLD,DHK->BLHK", "BLHK,HKD->BLD", "BLI,IO->BLO", "BLD,VD->BLV"])
def test_matmul_is_einsum_with_its_gradient(spec):
    sizes = dict(zip("BLDHKIOV", (2, 3, 8, 4, 5, 6, 7, 9), strict=True))
    left, right = spec.split("->")[0].split(",")
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=[sizes[a] for a in axes]).astype(np.float32) for axes in (left, right))

    def loss(product):
        return lambda x, w: jnp.sum(jnp.sin(product(spec, x, w)))

    ours, theirs = (
        jax.jit(jax.value_and_grad(loss(product), argnums=(0, 1)))(x, w)
        for product in (matmul, jnp.einsum)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


@pytest.mark.parametrize(
    ("x_dtype", "w_dtype"),
    [("bfloat16", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")],
)
def test_matmul_dtypes(x_dtype, w_dtype):
    x, w = jnp.ones((1, 5, 3), x_dtype), jnp.ones((3, 2), w_dtype)
    y, back = jax.vjp(lambda x, w: matmul("BLI,IO->BLO", x, w), x, w)
    dx, dw = back(y)
    assert (y.dtype, dx.dtype, dw.dtype) == (x_dtype, x_dtype, w_dtype)
    assert matmul("BLI,IO->BLO", x, w, jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("spec", ["BLI,IO->BLO", "BLI,OI->BLO"])
def test_weight_gradient_is_not_rounded(spec):
    """1 + 2^-10 needs 11 bits: a float32 weight gets it from bfloat16 activations."""
    x = jnp.asarray([1.0, 2.0**-10], jnp.bfloat16).reshape(1, 2, 1)
    gradient = jax.grad(lambda w: jnp.sum(matmul(spec, x, w).astype(jnp.float32)))(jnp.ones((1, 1)))
    assert float(gradient[0, 0]) == 1.0 + 2.0**-10


@pytest.mark.parametrize("axes", [1, 2])
def test_the_sum_with_a_bias_is_the_same_on_gpus(axes):
    rng = np.random.default_rng(5)
    y = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.bfloat16)
    bias = jnp.asarray(rng.normal(size=y.shape[-axes:]), jnp.bfloat16)
    np.testing.assert_array_equal(add_in_kernel(y, bias), add_in_float32(y, bias))

    # There it has the form that XLA makes a part of the product's kernel: in bfloat16.
    lowered = jax.jit(add_bias).trace(y, bias).lower(lowering_platforms=("cuda",)).as_text()
    (line,) = re.findall(r"stablehlo\.add.*", lowered)
    assert line.endswith(f"tensor<{'2x3x20' if axes == 2 else '2x3x4x5'}xbf16>")


def test_bias_gradient_is_not_rounded():
    gradient = jax.grad(
        lambda b: jnp.sum(add_bias(jnp.zeros((1, 1025, 1), jnp.bfloat16), b).astype(jnp.float32))
    )(jnp.zeros(1))
    assert float(gradient[0]) == 1025.0


def test_dropout_rate():
    x = jnp.full((100_000,), 3.0)
    y = np.asarray(dropout(x, 0.3, jax.random.key(0)))
    # Five standard deviations of the share of 100,000 draws: 5 sqrt(0.3 * 0.7 / 100,000).
    assert abs((y == 0).mean() - 0.3) < 0.0073
    np.testing.assert_allclose(y[y != 0], 3.0 / 0.7, rtol=1e-6)


def test_dropout_off():
    x = jnp.arange(8.0)
    assert dropout(x, 0.5, None) is x and dropout(x, 0.0, jax.random.key(0)) is x
    assert site_key(None, 3) is None
    assert config.ModelConfig().dropout == config.ModelConfig().attention_dropout == 0.0


def test_dropout_keys_of_sites_differ():
    x, key = jnp.ones((64,)), jax.random.key(0)
    masks = {tuple(np.asarray(dropout(x, 0.5, site_key(key, site)))) for site in range(4)}
    assert len(masks) == 4


def test_dropout_of_the_sublayers_is_independent():
    """If kernels are 0 and output biases 1, y is x + dropout(1) + dropout(1), each 0 or 2."""
    model = config.ModelConfig(width=64, heads=1, dropout=0.5)
    x, inputs = jnp.zeros((2, 8, 64)), AttentionInputs(Mask(causal=True))
    shapes = jax.eval_shape(
        lambda key: init_params(Block(model), key, lambda: (x, inputs)), jax.random.key(0)
    )
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes)
    params["attention"]["output_bias"] = params["mlp"]["down_bias"] = np.ones(64)
    y, _ = jax.jit(lambda key: Block(model).apply({"params": params}, x, inputs, key))(
        jax.random.key(0, impl="rbg")
    )
    # 1,024 draws: five standard deviations of a share are 0.08.
    values, counts = np.unique(y, return_counts=True)
    assert values.tolist() == [0.0, 2.0, 4.0]
    np.testing.assert_allclose(counts / y.size, [0.25, 0.5, 0.25], atol=0.08)


@pytest.mark.parametrize(("kv_heads", "shards"), [(1, 2), (2, 4), (2, 8), (4, 8)])
def test_copies_of_key_and_value_heads_change_nothing(kv_heads, shards):
    """More devices than heads of keys and values: each gets those that its queries read."""
    shape = config.ModelConfig(width=32, heads=8, kv_heads=kv_heads, positions="none")
    x, inputs = jax.random.normal(jax.random.key(1), (2, 6, 32)), AttentionInputs(Mask(causal=True))
    params = init_params(SelfAttention(shape), jax.random.key(0), lambda: (x, inputs))

    def outputs(execution: Execution) -> jax.Array:
        layer = SelfAttention(shape, execution)
        return layer.apply({"params": params}, x, inputs)[0]  # type: ignore[return-value]

    np.testing.assert_allclose(
        outputs(Execution(head_shards=shards)), outputs(Execution()), rtol=1e-5, atol=1e-6
    )
