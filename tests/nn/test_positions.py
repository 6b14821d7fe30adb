"""Rotary, sinusoidal and ALiBi positions against their papers' formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import config
from jaxlm.nn.positions import (
    Rotation,
    alibi_bias,
    alibi_slopes,
    rotary_frequencies,
    rotate,
    rotation_at,
    sinusoids,
)


def rotary(**fields) -> config.ModelConfig:
    return config.ModelConfig(width=24, heads=3, positions="rotary", **fields)


def turning(model: config.ModelConfig, positions_BL: jax.Array) -> Rotation:
    return rotation_at(model, positions_BL, model.rotary_theta)


@pytest.fixture(scope="module")
def x_BLHK() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (2, 9, 3, 8))


def scores(model: config.ModelConfig, x_BLHK: jax.Array, positions) -> np.ndarray:
    """Every query with every key, both rotated; the queries are the keys reversed in the batch."""
    turned = rotate(x_BLHK, turning(model, jnp.asarray(positions, jnp.int32)[None]))
    return np.einsum("BLHK,BSHK->BHLS", turned, turned[::-1])


def test_rotary_scores_depend_on_distance_only(x_BLHK):
    model = rotary()
    here = scores(model, x_BLHK, np.arange(9))
    # float32 angles up to 1000 are exact to 6e-5 radians, on scores of about 10.
    np.testing.assert_allclose(scores(model, x_BLHK, np.arange(9) + 1000), here, atol=2e-3)
    assert np.abs(scores(model, x_BLHK, 2 * np.arange(9)) - here).max() > 1.0


def test_rotary_keeps_lengths_and_position_zero(x_BLHK):
    turned = rotate(x_BLHK, turning(rotary(), jnp.arange(9)[None]))
    np.testing.assert_array_equal(turned[:, 0], x_BLHK[:, 0])
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x_BLHK, axis=-1), rtol=1e-6
    )


def test_rotary_angles_by_hand():
    """A unit vector in channel 1 turns by position / theta^(2/8) towards channel 1 + 4."""
    x = jnp.zeros((1, 4, 1, 8)).at[..., 1].set(1.0)
    turned = rotate(x, turning(rotary(rotary_theta=16.0), jnp.arange(4)[None]))
    for position in range(4):
        angle = position / 16.0**0.25
        expected = np.zeros(8)
        expected[1], expected[5] = math.cos(angle), math.sin(angle)
        np.testing.assert_allclose(turned[0, position, 0], expected, atol=1e-6)


def test_rotary_keeps_bfloat16(x_BLHK):
    turned = rotate(x_BLHK.astype(jnp.bfloat16), turning(rotary(), jnp.arange(9)[None]))
    assert turned.dtype == jnp.bfloat16


def test_linear_scaling_stretches_positions(x_BLHK):
    stretched = scores(
        rotary(rotary_scaling="linear", rotary_scaling_factor=4.0), x_BLHK, 4 * np.arange(9)
    )
    np.testing.assert_allclose(stretched, scores(rotary(), x_BLHK, np.arange(9)), atol=1e-5)


def test_llama3_scaling_has_three_branches():
    fields = {"rotary_scaling_factor": 8.0, "rotary_original_length": 64, "rotary_theta": 500.0}
    model = config.ModelConfig(
        width=16, heads=1, positions="rotary", rotary_scaling="llama3", **fields
    )
    plain = 500.0 ** (-np.arange(8) / 8)
    waves = 2 * math.pi / plain
    kept, divided = waves < 64 / 4, waves > 64 / 1
    assert kept.any() and divided.any() and (~kept & ~divided).any()
    smooth = (64 / waves - 1.0) / (4.0 - 1.0)
    expected = np.where(
        kept, plain, np.where(divided, plain / 8, (1 - smooth) * plain / 8 + smooth * plain)
    )
    np.testing.assert_allclose(rotary_frequencies(model, 500.0), expected, rtol=1e-12)


def test_yarn_blends_by_channel():
    """Fast channels stay, slow ones are divided, a line lies between.

    Scores grow by the square of the attention factor.
    """
    fields = {
        "rotary_scaling_factor": 8.0,
        "rotary_original_length": 64,
        "rotary_high_frequency_factor": 32.0,
    }
    model = config.ModelConfig(
        width=32, heads=1, positions="rotary", rotary_scaling="yarn", **fields
    )
    plain = 10000.0 ** (-np.arange(16) / 16)
    # The channels that make 32 turns and one turn in 64 positions: before the first, and at 4.03.
    assert [
        math.floor(16 * math.log(64 / (n * 2 * math.pi)) / math.log(10000)) for n in (32, 1)
    ] == [-2, 4]
    share = np.clip(np.arange(16) / 5, 0, 1)
    np.testing.assert_allclose(
        rotary_frequencies(model, 10000.0), plain * (1 - share) + plain / 8 * share, rtol=1e-12
    )
    factor = 0.1 * math.log(8) + 1
    np.testing.assert_allclose(
        rotation_at(model, jnp.zeros((1, 1)), 10000.0).cos, factor, rtol=1e-6
    )
    own = config.ModelConfig(
        width=32,
        heads=1,
        positions="rotary",
        rotary_scaling="yarn",
        rotary_attention_factor=1.5,
        **fields,
    )
    np.testing.assert_allclose(rotation_at(own, jnp.zeros((1, 1)), 10000.0).cos, 1.5, rtol=1e-6)


def test_a_share_of_the_channels_is_rotated(x_BLHK):
    """The first half of each head as a head of half the width, the rest untouched."""
    turned = rotate(x_BLHK, turning(rotary(rotary_share=0.5), jnp.arange(9)[None]))
    narrow = config.ModelConfig(width=12, heads=3, positions="rotary")
    np.testing.assert_array_equal(
        turned[..., :4], rotate(x_BLHK[..., :4], turning(narrow, jnp.arange(9)[None]))
    )
    np.testing.assert_array_equal(turned[..., 4:], x_BLHK[..., 4:])


def test_sinusoids():
    table = sinusoids(jnp.asarray([[0, 1, 50]]), 6)
    for row, position in enumerate((0, 1, 50)):
        angles = [position / 10000 ** (2 * i / 6) for i in range(3)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        np.testing.assert_allclose(table[0, row], expected, atol=1e-5)


def test_alibi_slopes():
    np.testing.assert_allclose(
        alibi_slopes(8), [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    )
    np.testing.assert_allclose(
        alibi_slopes(6), [2**-2.0, 2**-4.0, 2**-6.0, 2**-8.0, 2**-1.0, 2**-3.0]
    )
    np.testing.assert_allclose(alibi_slopes(1), [2**-8.0])


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (3, 7), (7, 3)])
def test_alibi_bias_falls_with_distance_in_both_directions(queries, keys):
    bias = alibi_bias(2, jnp.arange(queries)[None], jnp.arange(keys)[None])
    assert bias.shape == (1, 2, queries, keys)
    for query, key in np.ndindex(queries, keys):
        np.testing.assert_allclose(
            bias[0, :, query, key], [-abs(query - key) / 16, -abs(query - key) / 256]
        )
