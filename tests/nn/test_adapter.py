"""The product of a weight with an adapter: rounded weights, dropout, and what it keeps."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import AdapterConfig
from jaxlm.nn.adapter import AdaptedWeight, adapted
from jaxlm.nn.matmul import matmul
from jaxlm.nn.quantized_product import quantized_matmul
from jaxlm.quantization import dequantize, quantize

SPECS = {  # of a layer's products: shapes of x and of the weight, its logical axes
    "BLD,DHK->BLHK": ((32,), (32, 4, 8), ("embed", "heads", "head")),
    "BLHK,HKD->BLD": ((4, 8), (4, 8, 16), ("heads", "head", "embed")),
    "BLI,IO->BLO": ((32,), (32, 48), ("embed", "mlp")),
}
FORWARD = adapted(matmul)


def example(spec: str, rows: int = 3, dtype=jnp.float32):
    """Return x [2, rows, ...], a weight, its axes and a gradient of the product."""
    inputs, shape, axes = SPECS[spec]
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, rows, *inputs), dtype)
    weight = jax.random.normal(keys[1], shape)
    gradient = jax.random.normal(keys[2], jax.eval_shape(lambda: FORWARD(spec, x, weight)).shape)
    return x, weight, axes, gradient.astype(dtype)


@pytest.mark.parametrize("rows", [3, 20])  # few are multiplied as integers where nothing is trained
@pytest.mark.parametrize("spec", SPECS)
def test_the_gradient_of_x_is_that_of_the_dequantised_weight(spec, rows):
    x, weight, axes, gradient = example(spec, rows)
    rounded = quantize(weight, axes, bits=8)
    whole = dequantize(rounded, axes, weight.shape)

    def loss(product, x):
        return jnp.sum(product(x) * gradient)

    ours = jax.grad(lambda x: loss(lambda x: FORWARD(spec, x, rounded), x))(x)
    expected = jax.grad(lambda x: loss(lambda x: jnp.einsum(spec, x, whole), x))(x)
    np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=2e-5)
    y, backward = jax.vjp(lambda x: quantized_matmul(spec, x, rounded), x)
    np.testing.assert_allclose(y, jnp.einsum(spec, x, whole), rtol=2e-6, atol=2e-5)
    np.testing.assert_allclose(backward(gradient)[0], expected, rtol=2e-6, atol=2e-5)


def test_rounded_products_in_bfloat16_round_no_more_than_others():
    spec = "BLI,IO->BLO"
    x, weight, axes, gradient = example(spec, 20, jnp.bfloat16)
    rounded = quantize(weight, axes, bits=8)
    whole = dequantize(rounded, axes, weight.shape)

    exact = jnp.einsum("blo,io->bli", gradient.astype(jnp.float32), whole)
    errors = {}
    for name, kernel in {"rounded": rounded, "bfloat16": whole}.items():
        _, backward = jax.vjp(lambda x, kernel=kernel: FORWARD(spec, x, kernel), x)
        difference = backward(gradient)[0].astype(jnp.float32) - exact
        errors[name] = float(jnp.linalg.norm(difference) / jnp.linalg.norm(exact))
    assert errors["rounded"] < 1.5 * errors["bfloat16"] < 1e-2


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dora", [False, True])
def test_the_product_is_that_of_the_formula(spec, dora):
    """In numpy, in float64: x (W + s A B), with DoRA m times it over the norms."""
    x, weight, axes, _ = example(spec)
    config = AdapterConfig(rank=3, alpha=6.0, dora=dora)
    inputs = len(SPECS[spec][0])
    random = np.random.default_rng(1)
    a = random.normal(size=(*weight.shape[:inputs], 3)).astype(np.float32)
    b = random.normal(size=(3, *weight.shape[inputs:])).astype(np.float32)
    magnitude = random.normal(size=b.shape[1:]).astype(np.float32) if dora else None
    y = FORWARD(spec, x, AdaptedWeight(weight, axes, a, b, magnitude, config, None))

    size = np.prod(weight.shape[:inputs])
    wide = [np.asarray(w, np.float64) for w in (weight, a, b)]
    total = wide[0].reshape(size, -1) + 2 * wide[1].reshape(size, 3) @ wide[2].reshape(3, -1)
    if magnitude is not None:
        total *= magnitude.reshape(-1) / np.linalg.norm(total, axis=0)
    expected = np.asarray(x, np.float64).reshape(-1, size) @ total
    np.testing.assert_allclose(y, expected.reshape(y.shape), rtol=1e-5, atol=1e-5)


def test_dropout_is_on_the_input_of_a_alone_and_follows_its_key():
    spec = "BLI,IO->BLO"
    x, weight, axes, _ = example(spec, 100)
    a, b = jnp.eye(32)[:, :3], jnp.zeros((3, 48)).at[0, 0].set(1.0)
    config = AdapterConfig(rank=3, alpha=3.0, dropout=0.25)
    adapter = AdaptedWeight(weight, axes, a, b, None, config, jax.random.key(0))

    def change(adapter: AdaptedWeight):
        return np.asarray(FORWARD(spec, x, adapter) - FORWARD(spec, x, weight))

    dropped = change(adapter)
    assert np.all(dropped[..., 1:] == 0)  # B reaches the first output
    kept = dropped[..., 0] / np.asarray(x[..., 0])
    assert 0.15 < np.mean(np.abs(kept) < 1e-4) < 0.35
    np.testing.assert_allclose(kept[np.abs(kept) > 1e-4], 1 / 0.75, rtol=1e-2)
    np.testing.assert_array_equal(dropped, change(adapter))
    assert np.any(dropped != change(adapter._replace(key=jax.random.key(1))))
    without = adapter._replace(config=replace(config, dropout=0.0))
    np.testing.assert_allclose(change(without)[..., 0], x[..., 0], atol=1e-5)
