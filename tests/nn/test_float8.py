"""Products in float8 against numpy's rounding, and which products of a step they are."""

from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from support import random_state, tiny

from jaxlm.config import PrecisionConfig
from jaxlm.nn.matmul import FORWARD8, GRADIENT8, float8_matmul, to_float8

FORMATS = {FORWARD8: ml_dtypes.float8_e4m3fn, GRADIENT8: ml_dtypes.float8_e5m2}
FLOAT8 = PrecisionConfig(compute="bfloat16", matmul="float8")


def rounded(x: np.ndarray, dtype) -> np.ndarray:
    """Return x rounded to float8 with the smallest scale that is a power of two, in float64."""
    largest = float(ml_dtypes.finfo(FORMATS[dtype]).max)
    scale = 2.0 ** np.ceil(np.log2(abs(x).max() / largest))
    return (x / scale).astype(FORMATS[dtype]).astype(np.float64) * scale


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_largest_value_fits_in(dtype):
    """Just below, at and above the values for which the scale changes."""
    limit = float(jnp.finfo(dtype).max)
    for largest in (limit, np.nextafter(np.float32(limit), 1e9), limit * 2, 1e-12, 3.0, 1e30):
        x = np.float32(largest) * np.array([1, -0.4, 0.013, 2e-4], np.float32)
        packed = jax.jit(partial(to_float8, dtype=dtype))(x)
        for wide in (jnp.float32, jnp.bfloat16):
            np.testing.assert_array_equal(
                np.asarray(packed.unpack(wide), np.float64), rounded(x, dtype)
            )


def test_zeros_stay_zeros_and_what_is_no_number_stays_none():
    """So a loss that overflows is seen."""
    assert not np.any(to_float8(jnp.zeros(3), FORWARD8).unpack(jnp.float32))
    for bad in (np.inf, np.nan):
        packed = to_float8(jnp.array([1.0, bad]), GRADIENT8)
        assert not np.any(np.isfinite(packed.unpack(jnp.bfloat16)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_and_gradients_are_those_of_rounded_factors(dtype):
    """Rounded once, and summed exactly: 8 to 40 products in float32."""
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=(2, 24, n)), dtype) for n in (16, 40))
    dy, weight = dy * 1e-6, jnp.asarray(rng.normal(size=(16, 40)) * 0.02, jnp.float32)

    def run(x, weight, dy):
        y, transposed = jax.vjp(partial(float8_matmul, "BLI,IO->BLO"), x, weight)
        return y, *transposed(dy)

    y, dx, dw = jax.jit(run)(x, weight, dy)
    x8 = rounded(np.asarray(x, np.float32), FORWARD8)
    weight8 = rounded(np.asarray(weight.astype(dtype), np.float32), FORWARD8)
    dy8 = rounded(np.asarray(dy, np.float32), GRADIENT8)

    assert (y.dtype, dx.dtype, dw.dtype) == (dtype, dtype, jnp.float32)
    half_a_step = 2.0**-8 if dtype == jnp.bfloat16 else 1e-6  # of the result's rounding
    for found, expected, error in (
        (y, np.einsum("BLI,IO->BLO", x8, weight8), half_a_step),
        (dx, np.einsum("BLO,IO->BLI", dy8, weight8), half_a_step),
        (dw, np.einsum("BLI,BLO->IO", x8, dy8), 1e-6),
    ):
        difference = abs(np.asarray(found, np.float64) - expected)
        assert np.all(difference <= error * abs(expected) + 1e-6 * abs(expected).max())


PRODUCTS = {  # of a layer's attention and MLP
    "decoder": 2 * 7,
    "encoder": 2 * 6,
    "encoder_decoder": 1 * 7 + 2 * (4 + 7),
}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_all_products_of_weights_in_blocks_are_in_float8(family):
    """And no other: not those of scores, embeddings and head."""
    config = replace(tiny.FAMILIES[family], precision=FLOAT8)
    parts = tiny.parts(1, config)
    params, batch = random_state.abstract_state_of(parts).params, tiny.batch(0, config)
    jaxpr = jax.make_jaxpr(parts.gradients)(params, batch).jaxpr
    equations = tiny.equations(jaxpr, one_branch=True)

    formats = Counter(
        equation.params["new_dtype"]
        for equation in equations
        if equation.primitive.name == "convert_element_type"
    )
    assert formats[jnp.dtype(GRADIENT8)] == PRODUCTS[family]
    assert formats[jnp.dtype(FORWARD8)] == 2 * PRODUCTS[family]


MESHES = {
    "zero 3, tensor 2": dict(devices=8, zero=3, data=2, tensor=2),
    "zero 1, microbatches": dict(devices=4, zero=1),
    "zero 2, scanned, recomputed": dict(devices=4, zero=2, blocks="scanned", remat="full"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), zip(tiny.FAMILIES, MESHES, strict=True))
def test_float8_on_a_mesh_has_the_loss_of_one_device(family, name):
    """Each device scales its own rows, so that values are rounded a little differently."""
    config = replace(tiny.FAMILIES[family], precision=FLOAT8)
    batch, losses = tiny.batch(0, config), []
    for options in ({"devices": 1}, MESHES[name]):
        parts = tiny.parts(**options, config=config)
        state, run = parts.place(tiny.initial_state(config)), parts.step()
        for _ in range(3):
            state, metrics = jax.block_until_ready(run(state, parts.put(batch)))
        losses.append(float(metrics.loss))
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
