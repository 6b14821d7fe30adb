"""Classifiers on meshes: the training step and the scores are those of one device."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from support import tiny
from support.tiny_classifiers import classifier_batch, classifier_config

from jaxlm import step

CASES = [
    ("encoder", "sequence", "single_label"),
    ("decoder", "token", "single_label"),
    ("encoder_decoder", "sequence", "multi_label"),
    ("encoder", "token", "single_label"),
    ("encoder_decoder", "token", "single_label"),
    ("decoder", "sequence", "regression"),
]
QUICK = [("encoder", "sequence", "single_label")]


def classifier_parts(case: tuple[str, str, str], devices: int, *, microbatches: int = 1, **mesh):
    family, kind, problem = case
    config = classifier_config(family, kind, problem=problem)
    training = replace(config.training, microbatches=microbatches)
    return tiny.parts(devices, replace(config, training=training), **mesh)


def train_and_score(parts: tiny.Parts) -> tuple[list[tuple[float, float]], np.ndarray]:
    """Return (loss, gradient norm) of two steps, and then the scores of a batch."""
    state, update = parts.place(tiny.initial_state(parts.config)), parts.step()
    metrics = []
    for number in range(2):
        state, found = update(state, parts.put(classifier_batch(number, parts.config)))
        metrics.append((float(found.loss), float(found.grad_norm)))

    score = step.score_step(parts.model, parts.placement, state.params)
    scores = score(state.params, parts.put(classifier_batch(2, parts.config)))
    assert scores.sharding.is_fully_replicated and scores.dtype == np.float32
    return metrics, np.asarray(scores)


@cache
def one_device(case: tuple[str, str, str]):
    return train_and_score(classifier_parts(case, 1))


@pytest.mark.parametrize(
    "case",
    [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
    ids="-".join,
)
def test_zero_3_with_tensor_and_microbatches(case):
    """What is dropped follows the row, so dropout is the same on every mesh."""
    parts = classifier_parts(case, 4, microbatches=2, zero=3, tensor=2)
    (metrics, scores), (expected, expected_scores) = train_and_score(parts), one_device(case)
    np.testing.assert_allclose(metrics, expected, rtol=1e-5)
    # AdamW turns rounding of the gradients into steps; a wrong row is above 0.1.
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=2e-4)
    rows, length = parts.config.training.batch_size, parts.config.data.sequence_length
    assert scores.shape == ((rows, length, 3) if case[1] == "token" else (rows, 3))


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_other_stages(zero):
    case = CASES[0]
    parts = classifier_parts(case, 4, microbatches=2, zero=zero, fsdp=2, data=2)
    np.testing.assert_allclose(train_and_score(parts)[0], one_device(case)[0], rtol=1e-5)


def test_bytes_of_a_head_are_split(case=CASES[0]):
    """ZeRO splits the kernels of the head along the width, and keeps their biases whole."""
    parts = classifier_parts(case, 4, zero=3)
    shapes = jax.eval_shape(parts.model.init, jax.random.key(0))
    specs = jax.tree.map(lambda s: s.spec, parts.placement.tree("parameters", shapes))
    assert list(specs["classifier"]["kernel"]) == ["fsdp", None]
    assert list(specs["pooler"]["dense_kernel"]) == ["fsdp", None]
    assert list(specs["classifier"]["bias"]) == [None]
