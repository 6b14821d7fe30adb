"""FLOPs against closed forms, published figures and XLA's own count."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from support.tiny import product_flops

from jaxlm import config, flops, hardware, models
from jaxlm.plan.traced_flops import traced_pairs
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

SMALL = config.ModelConfig(vocabulary_size=512, layers=2, width=256, heads=4, context_length=128)


def test_gpt2_by_hand():
    """A layer has 12 D^2 weights, and two products of L x L x D in attention.

    The tied table is the head.
    """
    weights, scores = 12 * 12 * 768**2 + 50257 * 768, 12 * 2 * 1024 * 768
    assert flops.forward_flops(GPT2, 1024) == 1024 * 2 * (weights + scores)
    assert flops.training_flops(GPT2, 1024) == 1024 * (6 * weights + 12 * 12 * 768 * 1024)


@pytest.mark.parametrize("length", [128, 1024])
def test_estimate_of_nanogpt(length):
    """6 N + 12 layers width length per token, N without the position table.

    PaLM, arXiv 2204.02311 appendix B. N also counts norms and biases, which take part in no
    product: 0.1% of GPT-2.
    """
    N = models.build(GPT2).parameter_count() - 1024 * 768
    estimate = 6 * N + 12 * 12 * 768 * length
    assert estimate * 0.9985 < flops.training_flops(GPT2, length) / length < estimate


def test_estimate_without_embeddings():
    """Llama has no biases: all weights but the token table and the 45 norms are multiplied."""
    N = models.build(LLAMA).parameter_count() - 32000 * 2048 - 45 * 2048
    assert flops.training_flops(LLAMA, 2048) == 2048 * (6 * N + 12 * 22 * 2048 * 2048)


def test_window_bounds_the_pairs():
    windowed = replace(LLAMA, sliding_window=256)
    saved = flops.forward_flops(LLAMA, 2048) - flops.forward_flops(windowed, 2048)
    assert saved == 22 * 4 * 2048 * 2048 * (2048 - 256)
    assert flops.forward_flops(windowed, 200) == flops.forward_flops(LLAMA, 200)


def test_window_of_an_encoder_lies_on_both_sides():
    """A query sees itself and 15 positions before and after it. Every second layer sees all."""
    encoder = replace(SMALL, family="encoder")
    windowed = replace(encoder, sliding_window=16, attention_pattern=("full", "sliding"))
    saved = flops.forward_flops(encoder, 128) - flops.forward_flops(windowed, 128)
    assert saved == 1 * 4 * 128 * 256 * (128 - 31)


def test_a_narrow_token_table_is_projected_at_both_ends():
    narrow = replace(SMALL, embedding_width=64)
    more = 2 * 2 * 128 * 64 * 256
    less = 2 * 128 * 512 * (256 - 64)
    assert flops.forward_flops(narrow, 128) == flops.forward_flops(SMALL, 128) + more - less


def test_padding_of_the_vocabulary_is_not_counted():
    padded = replace(GPT2, vocabulary_size=50304)
    more = flops.forward_flops(padded, 8) - flops.forward_flops(GPT2, 8)
    assert more == 8 * 2 * 47 * 768


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
    analysis = jax.jit(function).lower(*arguments).compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"]


@pytest.mark.parametrize("name", COUNTED)
def test_count_by_xla(name):
    """XLA also counts norms, softmax and activations.

    They are of the order of 10 operations for each of the 256 channels, so about a percent.
    """
    model_config, batch, lengths = COUNTED[name]
    model = models.build(model_config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    counted = xla_flops(model.apply, params, batch)
    ours = 2 * flops.forward_flops(model_config, *lengths)
    assert ours < counted < 1.03 * ours


@pytest.mark.parametrize(
    ("device_kind", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),  # no L4
        ("NVIDIA A1000", None),  # no A100
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("cpu", None),
    ],
)
def test_peak_flops_go_by_whole_words(device_kind, expected):
    assert hardware.peak_flops(device_kind) == expected


def test_a_causal_mask_lets_half_of_the_scores_through():
    """Each of L queries sees i + 1 keys: L (L + 1) / 2 pairs, and 12 FLOPs a pair and channel."""
    weights, pairs = 12 * 12 * 768**2 + 50257 * 768, 1024 * 1025 // 2
    assert flops.causal_training_flops(GPT2, 1024) == 1024 * 6 * weights + 12 * 12 * pairs * 768


def test_causal_pairs_within_a_window_by_counting():
    for length, window in ((7, None), (7, 3), (7, 7), (5, 9), (1, 1)):
        pairs = [(i, j) for i in range(length) for j in range(i + 1) if i - j < (window or 99)]
        assert flops.causal_pairs(length, window) == len(pairs)

    sliding = replace(GPT2, sliding_window=256)
    weights = flops.training_flops(GPT2, 1024) - 12 * 12 * 1024 * 1024 * 768
    scores = 12 * 12 * flops.causal_pairs(1024, 256) * 768
    assert flops.causal_training_flops(sliding, 1024) == weights + scores


def test_only_the_decoder_of_an_encoder_decoder_is_causal():
    t5 = replace(SMALL, family="encoder_decoder", positions="relative", encoder_layers=5)
    hidden = 12 * 2 * (64 * 64 - 64 * 65 // 2) * 256  # in the decoder's two layers
    both = flops.training_flops(t5, 64, 128), flops.causal_training_flops(t5, 64, 128)
    assert both[0] - both[1] == hidden
    encoder = replace(SMALL, family="encoder")
    assert flops.causal_training_flops(encoder, 64) == flops.training_flops(encoder, 64)


def test_the_rule_of_palm_for_gpt2():
    """6N + 12 L d T with N = 124,439,808, L = 12, d = 768, T = 1024: 859,885,056 per token."""
    assert flops.rule_training_flops(GPT2, 124_439_808, 1024) == 1024 * 859_885_056


@pytest.mark.parametrize("kind", ["sequence", "token"])
@pytest.mark.parametrize("name", ["encoder", "encoder_decoder", "electra", "narrow table"])
def test_classifiers_have_the_products_of_their_program(name, kind):
    """A sample of 128 tokens; an encoder-decoder labels tokens by its encoder alone."""
    fields = {
        "electra": dict(
            family="encoder", embedding_width=64, generator_share=0.25, head_transform=True
        ),
        "narrow table": dict(family="encoder", embedding_width=64),
    }.get(name, dict(family=name))
    classifier = config.ClassifierConfig(kind=kind, labels=("a", "b", "c"))
    model = replace(SMALL, **fields, classifier=classifier)
    ids = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    has_source = name == "encoder_decoder"
    built = models.build(model)
    program = jax.make_jaxpr(built.apply)(
        jax.eval_shape(built.init, jax.random.key(0)),
        Batch(ids, source=ids if has_source else None),
    )

    counted = flops.forward_flops(model, 128, 128 * has_source, 1 if kind == "sequence" else 128)
    # Half of the decoder's scores, which nobody sees, are left out of the program.
    hidden = 2 * flops.score_products(model, 1, 128 * 128 - traced_pairs(model, 128, None))
    is_causal = has_source and kind == "sequence"
    assert product_flops(program.jaxpr) == counted - is_causal * model.layers * hidden
