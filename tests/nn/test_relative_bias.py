"""T5's relative bias against transformers' buckets and the definition.

Row i, column j is the table's row of the bucket of j - i.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import config
from jaxlm.nn.positions import RelativeBias, relative_buckets

SIZES = [(32, 128), (8, 20), (16, 300), (64, 33), (4, 1000)]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("count", "farthest"), SIZES)
def test_buckets_of_transformers(count, farthest, bidirectional):
    """All distances up to 2,000 both ways: exact, the buckets' edges included.

    One size has far buckets narrower than a distance.
    """
    torch, t5 = (
        pytest.importorskip("torch"),
        pytest.importorskip("transformers.models.t5.modeling_t5"),
    )
    distances = np.arange(-2000, 2001)
    theirs = t5.T5Attention._relative_position_bucket(
        torch.from_numpy(distances), bidirectional, count, farthest
    ).numpy()
    np.testing.assert_array_equal(
        relative_buckets(distances, count, farthest, bidirectional), theirs
    )
    assert theirs.max() == count - 1


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (4, 13), (13, 4), (1, 6), (6, 1)])
def test_bias_and_gradient_are_the_definition(queries, keys, bidirectional):
    model = config.ModelConfig(
        width=12, heads=3, positions="relative", relative_buckets=8, relative_max_distance=10
    )
    layer = RelativeBias(model, bidirectional)
    rng = np.random.default_rng(0)
    table, gradient = (
        rng.normal(size=(8, 3)).astype(np.float32),
        rng.normal(size=(1, 3, queries, keys)).astype(np.float32),
    )
    buckets = relative_buckets(
        np.arange(keys)[None, :] - np.arange(queries)[:, None], 8, 10, bidirectional
    )
    bias, back = jax.vjp(
        lambda table: layer.apply({"params": {"table": table}}, queries, keys), table
    )
    np.testing.assert_array_equal(bias, table[buckets].transpose(2, 0, 1)[None])
    summed = np.zeros_like(table)
    np.add.at(summed, buckets, gradient[0].transpose(1, 2, 0))
    # Sums of up to 169 values in another order.
    np.testing.assert_allclose(back(jnp.asarray(gradient))[0], summed, atol=1e-5)
