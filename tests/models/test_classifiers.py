"""Classifiers against those of `transformers`: scores and training from the same weights."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support import tiny
from support.classifier_cases import CLASSES, build_classifier, read_as, reference_output, sample
from support.parity import LENGTH, LENGTHS, LOGITS_TOLERANCE, real_positions
from support.torch_adamw import OUR_ADAMW, STEPS, reference_adamw, reference_rate

from jaxlm import interop, models
from jaxlm.config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    SourceConfig,
    TokenizerConfig,
    TrainingConfig,
)
from jaxlm.state import state_from_params
from jaxlm.types import Tree

# After 20 steps the rounding of both sides adds up to 1e-6 of a loss; a wrong dropout, decay or
# normalisation is above 1e-3.
LOSS_TOLERANCE = 1e-4
SOURCE = SourceConfig(name="labelled", path="labelled.jsonl", format="labelled")  # never read


def load(reference: Any, folder: Any) -> tuple[ModelConfig, Tree]:
    """Return our model of a reference, and its parameters."""
    reference.save_pretrained(folder)
    return interop.load(folder)


def some_quick(names: Sequence[str], *quick: str) -> list[Any]:
    """Return the names as cases, of which all but the `quick` ones are slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize(
    "name", some_quick(CLASSES, "BertForSequenceClassification", "T5ForSequenceClassification")
)
def test_scores(name, tmp_path):
    """Those of padded positions are never read."""
    reference = build_classifier(name)
    config, params = load(reference, tmp_path)
    given = sample(config)
    batch = read_as(reference, config, given)

    with torch.no_grad():
        theirs = reference_output(reference, given).logits.numpy()
    ours = np.asarray(jax.jit(models.build(config).apply)(params, batch))
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    if config.classifier.kind == "token":
        real = real_positions(LENGTHS, LENGTH)
        ours, theirs = ours[real], theirs[real]
    assert theirs.std() > 0.3
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=LOGITS_TOLERANCE)


def train_both(reference: Any, folder: Any) -> None:
    """Train the reference by its own loss, and our model by the step of a run, on equal batches."""
    config, params = load(reference, folder)
    run_config = replace(
        tiny.CONFIG,
        model=config,
        objective=ObjectiveConfig(kind="classify"),
        tokenizer=TokenizerConfig(kind="file", path="tokenizer.json"),  # nothing reads it
        data=DataConfig(sequence_length=LENGTH, sources=(SOURCE,)),
        optimizer=OUR_ADAMW,
        training=TrainingConfig(steps=STEPS, batch_size=len(LENGTHS)),
    )
    parts = tiny.parts(1, run_config)
    state = state_from_params(parts.model, parts.optimizer, parts.placement, params)
    step, adamw, losses = parts.step(), reference_adamw(reference), []

    for index in range(STEPS):
        given = sample(config, seed=index % 4)
        for group in adamw.param_groups:
            group["lr"] = reference_rate(index)
        adamw.zero_grad()
        expected = reference_output(reference, given, labels=True).loss
        expected.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        adamw.step()

        state, metrics = step(state, read_as(reference, config, given))
        losses.append(expected.item())
        assert float(metrics.loss) == pytest.approx(losses[-1], abs=LOSS_TOLERANCE), index
    assert losses[-1] < 0.8 * losses[0]  # there was something to learn


@pytest.mark.parametrize("name", some_quick(CLASSES))
def test_twenty_adamw_steps(name, tmp_path):
    train_both(build_classifier(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_twenty_steps_on_other_problems(problem, tmp_path):
    train_both(build_classifier("BertForSequenceClassification", problem_type=problem), tmp_path)
