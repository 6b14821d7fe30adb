"""FLOPs against closed forms, published figures and XLA's own count."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxlm import config, flops, models
from jaxlm.types import Batch

GPT2 = config.ModelConfig(vocabulary_size=50257, layers=12, width=768, heads=12)
LLAMA = config.ModelConfig(
    vocabulary_size=32000,
    layers=22,
    width=2048,
    heads=32,
    kv_heads=4,
    mlp_width=5632,
    norm="rmsnorm",
    positions="rotary",
    gated=True,
    activation="silu",
    attention_bias=False,
    attention_output_bias=False,
    mlp_bias=False,
    tied_head=False,
)


def test_gpt2_by_hand():
    """12 D^2 weights a layer and the tied table as the head; two products of L x L x D a layer in attention."""
    weights, scores = 12 * 12 * 768**2 + 50257 * 768, 12 * 2 * 1024 * 768
    assert flops.forward_flops(GPT2, 1024) == 1024 * 2 * (weights + scores)
    assert flops.training_flops(GPT2, 1024) == 1024 * (6 * weights + 12 * 12 * 768 * 1024)


@pytest.mark.parametrize("length", [128, 1024])
def test_estimate_of_nanogpt(length):
    """6 N + 12 layers width length a token, N without the position table (PaLM, arXiv 2204.02311 appendix B).

    N also counts norms and biases, which take part in no product: 0.1% of GPT-2.
    """
    N = models.build(GPT2).parameter_count() - 1024 * 768
    estimate = 6 * N + 12 * 12 * 768 * length
    assert estimate * 0.9985 < flops.training_flops(GPT2, length) / length < estimate


def test_estimate_without_embeddings():
    """Llama has no biases: N without the token table and the 45 norms is exactly what is multiplied."""
    N = models.build(LLAMA).parameter_count() - 32000 * 2048 - 45 * 2048
    assert flops.training_flops(LLAMA, 2048) == 2048 * (6 * N + 12 * 22 * 2048 * 2048)


def test_window_bounds_the_pairs():
    windowed = replace(LLAMA, sliding_window=256)
    assert flops.forward_flops(LLAMA, 2048) - flops.forward_flops(
        windowed, 2048
    ) == 22 * 4 * 2048 * 2048 * (2048 - 256)
    assert flops.forward_flops(windowed, 200) == flops.forward_flops(LLAMA, 200)


def test_padding_of_the_vocabulary_is_not_counted():
    assert (
        flops.forward_flops(replace(GPT2, vocabulary_size=50304), 8) - flops.forward_flops(GPT2, 8)
        == 8 * 2 * 47 * 768
    )


SMALL = config.ModelConfig(vocabulary_size=512, layers=2, width=256, heads=4, context_length=128)
IDS, SOURCE, PREDICT = (jax.ShapeDtypeStruct((2, length), jnp.int32) for length in (128, 96, 16))
COUNTED = {
    "gpt2": (SMALL, Batch(IDS), (128,)),
    "llama": (
        replace(
            LLAMA,
            vocabulary_size=512,
            layers=2,
            width=256,
            heads=8,
            kv_heads=2,
            head_width=48,
            mlp_width=640,
        ),
        Batch(IDS),
        (128,),
    ),
    "bert": (
        replace(SMALL, family="encoder", head_transform=True),
        Batch(IDS, predict=PREDICT),
        (128, 0, 16),
    ),
    "bart": (
        replace(
            SMALL,
            family="encoder_decoder",
            encoder_layers=3,
            encoder_heads=2,
            encoder_mlp_width=640,
        ),
        Batch(IDS, source=SOURCE),
        (128, 96),
    ),
}


def xla_flops(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("name", COUNTED)
def test_count_by_xla(name):
    """XLA also counts norms, softmax and activations: of the order of 10 operations for each of the 256 channels, so about a percent."""
    settings, batch, lengths = COUNTED[name]
    model = models.build(settings)
    params = jax.eval_shape(model.init, jax.random.key(0))
    counted = xla_flops(model.apply, params, batch)
    ours = 2 * flops.forward_flops(settings, *lengths)
    assert ours < counted < 1.03 * ours
