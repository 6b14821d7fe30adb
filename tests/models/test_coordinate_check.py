"""The coordinate check of muP: activations keep their size at every width while a model trains.

Yang et al. 2022 (arXiv 2203.03466), appendix D.1. Every activation is measured: the embeddings, the
outputs of attention, MLP and block in each layer, the scores of attention, and the logits by their
change since the start. Heads start at 0 (appendix D.2): what others add in the first steps is that
of their initial values, which shrinks with the root of the width.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.activations import growth, spread, training_activations

from jaxlm.config import ModelConfig, OptimizerConfig
from jaxlm.types import Batch

BASE, HEAD_WIDTH, VOCABULARY = 128, 32, 512
OPTIMIZER = OptimizerConfig(learning_rate=2e-3, schedule="constant", warmup_steps=0)

# One standard deviation for all, as GPT-2, BERT and Llama have it: 1 / sqrt(width) at the base.
INITIALIZER: dict[str, Any] = {"initializer": "normal", "initializer_std": BASE**-0.5}

DECODER = ModelConfig(
    vocabulary_size=VOCABULARY,
    layers=2,
    context_length=32,
    norm="rmsnorm",
    positions="rotary",
    activation="silu",
    gated=True,
    attention_bias=False,
    attention_output_bias=False,
    mlp_bias=False,
    tied_head=False,
    **INITIALIZER,
)
FAMILIES = {
    "decoder": DECODER,
    # As BERT.
    "encoder": ModelConfig(
        family="encoder",
        vocabulary_size=VOCABULARY,
        layers=2,
        context_length=32,
        norm_placement="post",
        embedding_norm=True,
        activation="gelu",
        head_bias=True,
        head_transform=True,
        tied_head=False,
        **INITIALIZER,
    ),
    # As T5 1.1.
    "encoder_decoder": replace(
        DECODER,
        family="encoder_decoder",
        positions="relative",
        attention_scale=1.0,
        activation="gelu_tanh",
        initializer="t5",
    ),
}


def tokens(seed: int, length: int) -> np.ndarray:
    """Return int32 [8, length], drawn by Zipf's law as the tokens of texts are."""
    shares = 1 / np.arange(1, VOCABULARY + 1)
    random = np.random.default_rng(seed)
    return random.choice(VOCABULARY, (8, length), p=shares / shares.sum()).astype(np.int32)


def check(model: ModelConfig, widths: tuple[int, ...], steps: int) -> dict[str, float]:
    """Return by how much each activation's RMS differs over the widths, at the start and later."""
    text = tokens(0, 33)
    batch = Batch(tokens=text[:, :-1], targets=text[:, 1:])
    if model.family == "encoder_decoder":
        batch = batch._replace(source=tokens(1, 32))

    histories = [
        training_activations(
            replace(model, width=width, heads=width // HEAD_WIDTH), OPTIMIZER, batch, steps
        )
        for width in widths
    ]
    return spread(growth(histories))


def in_mup(model: ModelConfig) -> ModelConfig:
    model = replace(model, width=BASE, heads=4, parametrization="mup", mup_base_width=BASE)
    return replace(model, zero_head=True)


def test_activations_keep_their_size():
    one_layer = replace(DECODER, layers=1)
    mup = check(in_mup(one_layer), (128, 512), steps=2)
    assert max(mup.values()) < 1.5, mup
    assert len(mup) == 6


@pytest.mark.slow
def test_a_head_that_starts_at_random_changes_the_logits_of_narrow_models_more():
    one_layer = replace(in_mup(replace(DECODER, layers=1)), zero_head=False)
    mup = check(one_layer, (128, 512), steps=2)
    # At four times the width its share is half of what it was.
    assert 1.5 < mup.pop("logits") < 2.1
    assert max(mup.values()) < 1.5, mup


def test_under_the_standard_parametrization_they_grow():
    standard = check(replace(DECODER, layers=1), (128, 512), steps=2)
    assert max(standard.values()) > 4, standard


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_coordinate_check(family):
    widths = 128, 256, 512, 1024
    mup = check(in_mup(FAMILIES[family]), widths, steps=5)
    print(f"\n{family}, mup:", {name: round(x, 2) for name, x in mup.items()})
    assert max(mup.values()) < 1.5, mup

    standard = check(FAMILIES[family], (128, 1024), steps=5)
    print(f"{family}, standard:", {name: round(x, 2) for name, x in standard.items()})
    assert max(standard.values()) > 4, standard
