"""Dropout at each of its places: the embeddings, every sublayer's output, the attention weights."""

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from jaxlm import models
from jaxlm.config import ModelConfig
from jaxlm.types import Batch, Tree

RATE, WIDTH = 0.5, 16
SIZES = dict(vocabulary_size=64, layers=1, width=WIDTH, heads=2, context_length=8)
IDS = np.random.default_rng(0).integers(0, 64, (2, 8), np.int32)
BATCHES = {
    "decoder": Batch(IDS),
    "encoder": Batch(IDS),
    "encoder_decoder": Batch(IDS, source=IDS[:, ::-1]),
}

# The only parameters that are not zero, beside the norms' scales: what they add to the stream is
# all there is to drop.
SITES = {
    "embedding": "'embedding']['tokens",
    "attention": "'attention']['output_bias",
    "cross attention": "'cross_attention']['output_bias",
    "MLP": "'mlp']['down_bias",
}


@cache
def features(family: Any, **fields):
    """Build the jitted (params, dropout key or None) -> features [B, L, D], and the shapes."""
    config = ModelConfig(family=family, **SIZES, **fields, norm="rmsnorm", positions="none")
    model = models.build(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.jit(lambda params, key: model.features(params, BATCHES[family], key)), shapes


def params_with(shapes: Tree, is_random) -> Tree:
    """Build parameters: random where `is_random(path)`, else zero; scales of norms are 1."""
    rng = np.random.default_rng(1)

    def values(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        if "scale" in name:
            return np.ones(leaf.shape, np.float32)
        return rng.normal(size=leaf.shape).astype(np.float32) * is_random(name)

    return jax.tree_util.tree_map_with_path(values, shapes)


PLACES = [
    (family, site)
    for family in BATCHES
    for site in SITES
    if site != "cross attention" or family == "encoder_decoder"
]


@pytest.mark.parametrize(("family", "site"), PLACES)
def test_each_site_drops_its_share(family, site):
    run, shapes = features(family, dropout=RATE)
    # The decoder of an encoder-decoder reads the token table of its encoder.
    stack = "'decoder']" if family == "encoder_decoder" and site != "embedding" else ""
    params = params_with(shapes, lambda name: SITES[site] in name and stack in name)

    plain, first, again, other = (
        np.asarray(run(params, key))
        for key in (None, jax.random.key(0), jax.random.key(0), jax.random.key(1))
    )
    assert plain.all()
    # 256 values: 5 standard deviations are 0.16.
    assert abs((first == 0).mean() - RATE) < 0.16
    np.testing.assert_array_equal(first, again)
    assert ((first == 0) != (other == 0)).any()


@pytest.mark.parametrize("family", BATCHES)
def test_attention_weights_are_dropped(family):
    """And nothing else is: without values to weigh, the output does not depend on the key."""
    run, shapes = features(family, attention_dropout=RATE)
    key = jax.random.key(0)
    params = params_with(shapes, lambda name: True)
    assert abs(run(params, key) - run(params, None)).max() > 0.1

    params = params_with(shapes, lambda name: "value" not in name)
    np.testing.assert_allclose(run(params, key), run(params, None), atol=1e-5)


def without_encoder_blocks(params: Tree) -> Tree:
    blocks = jax.tree.map(np.zeros_like, params["encoder"]["blocks"])
    return params | {"encoder": params["encoder"] | {"blocks": blocks}}


def test_cross_attention_weights_are_dropped():
    """Seen where no self attention has values to weigh."""
    run, shapes = features("encoder_decoder", attention_dropout=RATE)
    params = params_with(shapes, lambda name: "'attention']['value" not in name)
    params = without_encoder_blocks(params)
    assert abs(run(params, jax.random.key(0)) - run(params, None)).max() > 0.1


def test_the_encoder_of_an_encoder_decoder_drops_too():
    """The decoder's stream is here the output of cross attention alone.

    Its own dropout and norm keep the proportions of the channels that are left. Other proportions
    come from an encoder that drops.
    """
    run, shapes = features("encoder_decoder", dropout=RATE, shared_embedding=False)
    params = params_with(
        shapes, lambda name: "cross_attention" in name or "'encoder']['embedding" in name
    )
    params = without_encoder_blocks(params)

    plain, dropped = (np.asarray(run(params, key)) for key in (None, jax.random.key(0)))
    ratios = np.where(dropped == 0, np.nan, dropped / plain)
    spread = np.nanmax(ratios, axis=-1) / np.nanmin(ratios, axis=-1) - 1
    assert abs(spread).max() > 0.1
