"""Rounded weights: the rounding, the products that read them, and training with them."""

import itertools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sharding.test_sharding import train
from support import tiny
from support.hf_directories import random_weights
from support.interop_models import MODELS
from support.marks import quick_and_slow
from support.parity import samples

from jaxlm import models, quantization, step
from jaxlm.decoding.constraints import StopTokens
from jaxlm.decoding.engine import Engine
from jaxlm.nn.quantized_product import (
    MOST_INTEGER_INPUTS,
    MOST_INTEGER_ROWS,
    quantized_product,
)
from jaxlm.quantization import QuantizedWeight
from jaxlm.types import is_axes

KINDS = {  # axes and shape of each kind of matrix; how many of the axes are inputs, and where
    "projection": (("embed", "heads", "head"), (64, 3, 8), "first"),
    "output": (("heads", "head", "embed"), (8, 8, 5), "heads"),
    "up": (("embed", "mlp"), (64, 7), "first"),
    "table": (("vocabulary", "embed"), (9, 64), "last"),
    "stacked": (("layers", "heads", "head", "embed"), (2, 8, 8, 5), "heads"),
}


def numpy_rounded(weight: np.ndarray, kind: str, bits: int, group: int) -> np.ndarray:
    """Return the rounded weight by loops over its layers and output channels."""
    largest = {8: 127, 4: 7}[bits]

    def rounded(row: np.ndarray) -> np.ndarray:
        parts = row.reshape(-1, len(row) if bits == 8 else group)
        scales = np.abs(parts).max(1, keepdims=True) * np.float32(1 / largest)
        scales[scales == 0] = 1
        return (np.rint(parts / scales) * scales).reshape(row.shape)

    if kind == "stacked":
        return np.stack([numpy_rounded(layer, "output", bits, group) for layer in weight])
    where = KINDS[kind][2]
    if where == "last":
        return np.stack([rounded(row) for row in weight])
    inputs = 2 if where == "heads" else 1
    flat = weight.reshape(math.prod(weight.shape[:inputs]), -1)
    return np.stack([rounded(column) for column in flat.T], 1).reshape(weight.shape)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_that_of_numpy_bit_for_bit(kind, bits):
    axes, shape, _ = KINDS[kind]
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weight.reshape(-1)[:: 64 * 3] = 0
    round_trip = jax.jit(
        lambda w: quantization.dequantize(quantization.quantize(w, axes, bits), axes, shape)
    )
    np.testing.assert_array_equal(round_trip(weight), numpy_rounded(weight, kind, bits, 32))
    trained = quantization.round_params({"w": axes}, {"w": jnp.asarray(weight)}, f"int{bits}")
    np.testing.assert_array_equal(trained["w"], numpy_rounded(weight, kind, bits, 32))


def test_a_channel_of_zeros_stays_zero_and_the_largest_weight_is_exact():
    weight = np.zeros((32, 2), np.float32)
    weight[3, 1] = -0.7
    rounded = quantization.quantize(jnp.asarray(weight), ("embed", "mlp"), 8)
    np.testing.assert_array_equal(rounded.scales, [1, np.float32(0.7) * np.float32(1 / 127)])
    assert rounded.values[3, 1] == -127
    assert np.count_nonzero(rounded.values) == 1


def test_vectors_stay_float():
    for axes in (
        ("norm",),
        ("layers", "norm"),
        ("heads", "head"),
        ("mlp",),
        ("position", "heads"),
        ("embed", "labels"),
    ):
        assert quantization.input_axes(axes) is None


@pytest.mark.parametrize("rows", [1, MOST_INTEGER_ROWS + 1])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("spec", "axes", "shape", "x_shape"),
    [
        ("BLD,DHK->BLHK", ("embed", "heads", "head"), (96, 3, 8), (1, -1, 96)),
        ("BLHK,HKD->BLD", ("heads", "head", "embed"), (4, 16, 10), (1, -1, 4, 16)),
        ("BD,VD->BV", ("vocabulary", "embed"), (50, 96), (-1, 96)),
        # More inputs than are multiplied at once.
        ("BLF,FD->BLD", ("mlp", "embed"), (MOST_INTEGER_INPUTS + 32, 10), (1, -1, -2)),
    ],
)
def test_products_are_those_of_the_dequantised_weight(spec, axes, shape, x_shape, bits, rows):
    rng = np.random.default_rng(1)
    sizes = {-1: rows, -2: shape[0]}
    x_shape = tuple(sizes.get(size, size) for size in x_shape)
    x = rng.normal(size=x_shape).astype(np.float32)
    x.reshape(-1)[0] = 40.0  # the others must not lose their bits beside it
    weight = quantization.quantize(jnp.asarray(rng.normal(size=shape), jnp.float32), axes, bits)

    exact = quantization.dequantize(weight, axes, shape)
    expected = np.einsum(spec, x.astype(np.float64), np.asarray(exact, np.float64))
    found = jax.jit(lambda x, w: quantized_product(spec, x, w))(x, weight)
    # float32 itself is within 2e-6 of this size; digits of two numbers would be off by 1e-4.
    np.testing.assert_allclose(found, expected, atol=4e-6 * np.abs(expected).max())
    short = quantized_product(spec, jnp.asarray(x, jnp.bfloat16), weight)
    assert short.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        short.astype(jnp.float32), expected, atol=2e-2 * np.abs(expected).max()
    )


@pytest.mark.parametrize(
    ("name", "bits"), quick_and_slow([("gpt2", 8)], itertools.product(MODELS, (8, 4)))
)
def test_a_model_of_rounded_weights_has_the_logits_of_the_dequantised_one(name, bits):
    config = MODELS[name]
    model, params, batch = models.build(config), random_weights(config), samples(config)
    rounded = quantization.quantize_params(model.axes, params, bits, 8)

    def exact(axes, weight, original):
        if not isinstance(weight, QuantizedWeight):
            return weight
        return quantization.dequantize(weight, axes, original.shape)

    expected = jax.tree.map(exact, model.axes, rounded, params, is_leaf=is_axes)
    apply = jax.jit(model.apply)
    reference = np.asarray(apply(expected, batch))
    tolerance = 1e-5 * np.abs(reference).max()
    np.testing.assert_allclose(apply(rounded, batch), reference, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_generation_keeps_no_dequantised_weights(bits):
    """XLA would move what dequantises a weight out of the loop over tokens, and keep them all."""
    config = replace(MODELS["gpt2"], width=256, layers=4, heads=4, tied_head=False)
    model = models.build(config)
    params = model.init(jax.random.key(0))
    weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    rounded = models.unstacked(quantization.quantize_params(model.axes, params, bits))

    engine = Engine(model, rounded, StopTokens((0,)))
    arguments = []
    decode = engine._decode
    engine._decode = lambda *args: arguments.append(args) or decode(*args)  # type: ignore
    engine.generate([np.array([5, 7])], [8])
    (called,) = arguments
    memory = decode.lower(called[0], *jax.eval_shape(lambda *a: a, *called[1:])).compile()
    assert memory.memory_analysis().temp_size_in_bytes < 0.2 * weight_bytes


# Training


def rounded_config(config, weights, start=0.0):
    precision = replace(config.precision, weights=weights, weights_start=start)
    return replace(config, precision=precision)


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_a_step_has_the_gradient_of_rounded_weights_from_their_start_on(start):
    config = rounded_config(tiny.CONFIG, "int4", start)
    found = train(tiny.parts(1, config), 1)
    plain = tiny.parts(1, tiny.CONFIG)
    fresh = tiny.initial_state(tiny.CONFIG)
    rounded = quantization.round_params(plain.model.axes, fresh.params, "int4")
    gradients = jax.jit(
        step.batch_gradients(plain.model, config.training, plain.placement, rounded)
    )
    rows = step.number_rows(tiny.batch(0, tiny.CONFIG))
    used, other = (rounded, fresh.params) if start == 0 else (fresh.params, rounded)
    sums, expected = gradients(used, rows, None)
    np.testing.assert_allclose(found.losses[0], sums.loss / sums.count, rtol=1e-6)
    norm = math.sqrt(sum(float(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(expected)))
    np.testing.assert_allclose(found.grad_norm, norm, rtol=1e-5)
    sums, _ = gradients(other, rows, None)
    assert abs(found.losses[0] - sums.loss / sums.count) > 1e-5


SLOW = pytest.mark.slow
ROUNDED_MESHES = [
    pytest.param("decoder", "int4", dict(zero=3), marks=SLOW),
    pytest.param("decoder", "int8", dict(zero=1, tensor=2), marks=SLOW),
    pytest.param("decoder", "int4", dict(zero=3, tensor=2, blocks="unrolled"), marks=SLOW),
    pytest.param("decoder", "int8", dict(zero=2), marks=SLOW),
    pytest.param("decoder", "int8", dict(zero=0), marks=SLOW),
    pytest.param("encoder", "int4", dict(zero=3), marks=SLOW),
    pytest.param("encoder_decoder", "int4", dict(zero=3, tensor=2), marks=SLOW),
]


@pytest.mark.parametrize(("family", "weights", "parallel"), ROUNDED_MESHES)
def test_every_mesh_rounds_as_one_device_does(family, weights, parallel):
    config = rounded_config(tiny.FAMILIES[family], weights)
    expected, found = train(tiny.parts(1, config), 2), train(tiny.parts(8, config, **parallel), 2)
    # The first step sees equal weights. Then sums in another order may move one weight in a million
    # to the next level.
    np.testing.assert_allclose(found.losses[0], expected.losses[0], rtol=2e-6)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=2e-4)

    total = math.sqrt(sum(float(np.sum(np.square(g))) for g in expected.gradients.values()))
    for path, gradient in found.gradients.items():
        size = max(np.linalg.norm(expected.gradients[path]), 1e-3 * total)
        assert np.linalg.norm(gradient - expected.gradients[path]) / size < 1e-5, path
