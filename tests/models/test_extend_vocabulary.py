"""More tokens for a model: its old scores keep their bits, and new rows are means of old ones."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from support import tiny
from support.conversions import MADE
from support.marks import quick_and_slow
from support.trees import random_params

from jaxlm import models
from jaxlm.types import Batch, is_axes

ELECTRA = replace(tiny.ENCODER.model, embedding_width=16, generator_share=0.5, initializer="normal")
ENCODER_DECODER = tiny.ENCODER_DECODER.model
MODELS = {
    "decoder, tied": tiny.CONFIG.model,
    "decoder, untied with a bias": replace(tiny.CONFIG.model, tied_head=False, head_bias=True),
    "encoder": tiny.ENCODER.model,
    "encoder-decoder, one table": ENCODER_DECODER,
    "encoder-decoder, two tables": replace(ENCODER_DECODER, shared_embedding=False),
    "bart": MADE["bart"][2],
    "electra": ELECTRA,
    "factorised": replace(tiny.CONFIG.model, embedding_width=16),
}
PIECES = {300: [5], 301: [7, 9, 280], 303: [0, 299]}  # 302: an id that no token has
# Ids of 300: the table of 384 rows keeps its size; 384: it grows.
CASES = [(name, offset) for name in MODELS for offset in (0, 84)]


def batch_of(model):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 300, (2, 12)).astype(np.int32)
    source = tokens[:, ::-1] if model.family == "encoder_decoder" else None
    return Batch(tokens=tokens, source=source)


def scores_of(model, params, batch):
    """Logits of the tokens, [B, L, V]; of ELECTRA those of its generator."""
    built = model.generator or model
    return np.asarray(jax.jit(built.apply)(params, batch))


@pytest.mark.parametrize(
    ("name", "offset"),
    quick_and_slow([("decoder, untied with a bias", 84), ("electra", 0)], CASES),
)
def test_old_scores_keep_their_bits(name, offset):
    config = replace(MODELS[name], vocabulary_size=300)
    model = models.build(config)
    params = random_params(model)
    pieces = {number + offset: ids for number, ids in PIECES.items()}
    new_config, new_params = models.extend_vocabulary(model, params, pieces)
    assert new_config == replace(config, vocabulary_size=304 + offset)

    extended, batch = models.build(new_config), batch_of(config)
    shapes = jax.eval_shape(extended.init, jax.random.key(0))
    assert jax.tree.map(np.shape, new_params) == jax.tree.map(np.shape, shapes)
    before, after = scores_of(model, params, batch), scores_of(extended, new_params, batch)
    assert before.tobytes() == after[..., :300].tobytes()
    assert (before[0, 0] != before[0, 1]).any()
    if name == "electra":
        np.testing.assert_array_equal(model.apply(params, batch), extended.apply(new_params, batch))


@pytest.mark.parametrize("name", MODELS)
def test_new_rows_are_the_means_of_their_pieces(name):
    """In every array with an axis of the vocabulary, by numpy; all else keeps its bits."""
    model = models.build(replace(MODELS[name], vocabulary_size=300))
    params = random_params(model)
    _, new_params = models.extend_vocabulary(model, params, PIECES)

    arrays = []
    jax.tree.map(
        lambda axes, old, new: arrays.append((axes, old, np.asarray(new))),
        model.axes,
        params,
        new_params,
        is_leaf=is_axes,
    )
    grown = 0
    for axes, old, new in arrays:
        if "vocabulary" not in axes:
            assert old.tobytes() == new.tobytes()
            continue
        grown += 1
        axis = axes.index("vocabulary")
        old, new = np.moveaxis(old, axis, 0), np.moveaxis(new, axis, 0)
        np.testing.assert_array_equal(new[:300], old[:300])
        np.testing.assert_array_equal(new[300], old[5])
        np.testing.assert_allclose(new[301], (old[7] + old[9] + old[280]) / 3, atol=1e-6)
        np.testing.assert_allclose(new[303], (old[0] + old[299]) / 2, atol=1e-6)
        assert not new[302].any() and not new[304:].any()
    assert grown >= 1


def test_a_token_within_the_vocabulary_takes_its_row():
    """T5 has 32,128 rows for 32,100 tokens."""
    model = models.build(replace(tiny.CONFIG.model, vocabulary_size=300))
    params = random_params(model)
    config, new_params = models.extend_vocabulary(model, params, {290: [3]})
    table, new_table = (tree["embedding"]["tokens"] for tree in (params, new_params))
    assert config.vocabulary_size == 300
    np.testing.assert_array_equal(new_table[290], table[3])
    np.testing.assert_array_equal(
        np.delete(new_table, 290, 0)[:299], np.delete(table, 290, 0)[:299]
    )
