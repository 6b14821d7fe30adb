"""The ends of a classifier: which features are read, and what is dropped on the way."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from support import tiny
from support.tiny_classifiers import classifier_batch, classifier_config

from jaxlm import models
from jaxlm.config import PrecisionConfig
from jaxlm.nn.classifier import pool

LENGTHS = np.array([5, 1, 3], np.int32)


@pytest.mark.parametrize("lengths", [LENGTHS, None], ids=["padded", "whole"])
def test_pooled_features_are_those_of_numpy(lengths):
    x_BLD = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    rows = [x[:n] for x, n in zip(x_BLD, [5, 5, 5] if lengths is None else lengths, strict=True)]
    expected = {
        "first": [x[0] for x in rows],
        "last": [x[-1] for x in rows],
        "mean": [x.mean(axis=0) for x in rows],
    }
    for pooling, features in expected.items():
        found = pool(x_BLD, lengths, pooling)
        np.testing.assert_allclose(found, np.stack(features)[:, None], rtol=0, atol=1e-6)
    assert pool(x_BLD, lengths, None) is x_BLD


def test_a_text_without_tokens_has_finite_features():
    x_BLD = np.ones((2, 4, 3), np.float32)
    for pooling in ("first", "last", "mean"):
        assert np.isfinite(pool(x_BLD, np.array([0, 4], np.int32), pooling)).all()


@pytest.mark.parametrize("before_transform", [False, True])
def test_features_are_dropped_before_the_scores_and_as_asked_before_the_transform(before_transform):
    """Where the features are all 1, those that are left are 2."""
    config = classifier_config("encoder", "sequence", dropout=0.5).model
    classifier = replace(config.classifier, transform_dropout=before_transform, transform="relu")
    model = models.build(replace(config, classifier=classifier))
    params = tiny.initial_state(classifier_config("encoder", "sequence")).params
    batch = classifier_batch(0, classifier_config("encoder", "sequence"))

    # The last norm gives ones, and the dense layer is the identity.
    norm = {"scale": np.zeros((2, 64), np.float32), "bias": np.ones((2, 64), np.float32)}
    dense = {"dense_kernel": np.eye(64, dtype=np.float32), "dense_bias": np.zeros(64, np.float32)}
    params = params | {"blocks": params["blocks"] | {"mlp_norm": norm}, "pooler": dense}
    np.testing.assert_allclose(model.features(params, batch), 1.0)
    found = np.asarray(model.features(params, batch, jax.random.key(0)))
    kept = 4.0 if before_transform else 2.0
    assert set(np.unique(found)) == {0.0, kept}
    # 1,024 numbers: 5 standard deviations are 0.08.
    assert abs((found > 0).mean() - 1 / kept) < 0.08


def test_scores_are_float32_whatever_the_model_computes_in():
    config = classifier_config("decoder", "token").model
    model = models.build(config, PrecisionConfig(compute="bfloat16"))
    batch = classifier_batch(0, classifier_config("decoder", "token"))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    scores = jax.eval_shape(model.apply, shapes, batch)
    assert (scores.dtype, scores.shape) == (np.float32, (16, 32, 3))


def test_a_classifier_writes_no_text():
    model = models.build(classifier_config("decoder", "sequence").model)
    with pytest.raises(ValueError, match="have no cache"):
        model.cache(1, 8)


def test_the_labels_are_read_from_the_last_token_of_a_decoder():
    """What comes after the text changes nothing, and its last token does."""
    config = classifier_config("decoder", "sequence")
    model, params = models.build(config.model), tiny.initial_state(config).params
    batch = classifier_batch(0, config)
    apply = jax.jit(model.apply)
    scores = np.asarray(apply(params, batch))
    at, rows = np.asarray(batch.lengths), np.arange(len(batch.tokens))
    padded = batch.tokens.copy()
    padded[rows, np.minimum(at, 31)] = 7  # a text of 32 tokens has nothing after it
    short = at < 32
    np.testing.assert_array_equal(
        apply(params, batch._replace(tokens=padded))[short], scores[short]
    )
    changed = batch.tokens.copy()
    changed[rows, at - 1] = (changed[rows, at - 1] + 1) % 300
    assert (np.asarray(apply(params, batch._replace(tokens=changed))) != scores).any(axis=1).all()
