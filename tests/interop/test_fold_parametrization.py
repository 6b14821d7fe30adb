"""Models of muP as `transformers` computes them: their factors are in the weights of an export."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from support.hf_directories import random_weights
from support.parity import LOGITS_TOLERANCE, logits_difference, reference_logits, samples

from jaxlm import interop, models
from jaxlm.config import ModelConfig
from jaxlm.interop.fold_parametrization import fold_parametrization

QUICK = {"xla_backend_optimization_level": 0}  # to compile takes much longer than to run

MUP = ModelConfig(
    parametrization="mup",
    mup_base_width=8,
    vocabulary_size=97,
    layers=2,
    width=32,
    heads=4,
    context_length=22,
)
RMSNORM = dict(
    norm="rmsnorm",
    gated=True,
    attention_bias=False,
    attention_output_bias=False,
    mlp_bias=False,
    norm_epsilon=1e-6,
)
LLAMA = replace(MUP, **RMSNORM, positions="rotary", activation="silu", tied_head=False)
BERT = replace(
    MUP,
    family="encoder",
    norm_placement="post",
    embedding_norm=True,
    token_types=2,
    activation="gelu",
    head_bias=True,
    head_transform=True,
    norm_epsilon=1e-12,
)
T5 = replace(
    MUP,
    **RMSNORM,
    family="encoder_decoder",
    positions="relative",
    attention_scale=1.0,
    encoder_layers=1,
    head_width=6,
)
WIDE = {"parametrization": "mup_wide_heads"}
ELECTRA = replace(BERT, **WIDE, embedding_width=16, generator_share=0.5)
CASES = {
    "gpt2": MUP,
    "llama": LLAMA,
    "bert": BERT,
    "t5, a tied head": replace(T5, **WIDE, head_scaling=True, gated=False, activation="relu"),
    "t5": T5,
    "gpt2, wide heads, untied": replace(MUP, **WIDE, tied_head=False),
    "llama, tied": replace(LLAMA, tied_head=True),
    "gemma2": replace(
        LLAMA,
        **WIDE,
        norm_placement="both",
        norm_offset=True,
        embedding_scaling=True,
        activation="gelu_tanh",
        attention_softcap=5.0,
        logit_softcap=5.0,
        tied_head=True,
    ),
    "qwen3": replace(LLAMA, **WIDE, query_key_norm=True),
    "bert, untied": replace(BERT, tied_head=False),
    "opt": replace(
        MUP, activation="relu", position_offset=2, embedding_width=16, norm_placement="post"
    ),
    "bart": replace(
        MUP,
        **WIDE,
        family="encoder_decoder",
        norm_placement="post",
        embedding_norm=True,
        embedding_scaling=True,
        activation="gelu",
        position_offset=2,
        head_bias=True,
    ),
}
# Each of the others takes seconds.
QUICK_CASES = ("gpt2", "llama", "t5, a tied head")
marked = [
    pytest.param(name, marks=[] if name in QUICK_CASES else [pytest.mark.slow]) for name in CASES
]


def logits_of(model, params, batch):
    """Return the logits of a model, compiled fast."""
    return jax.jit(model.apply, compiler_options=QUICK)(params, batch)


@pytest.mark.parametrize("name", marked)
def test_transformers_computes_the_same_logits(tmp_path, name):
    config = CASES[name]
    params, batch = random_weights(config), samples(config)
    ours = logits_of(models.build(config), params, batch)

    interop.save(tmp_path, config, params)
    written = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    theirs = getattr(transformers, written).from_pretrained(tmp_path, attn_implementation="eager")
    with torch.no_grad():
        expected = reference_logits(theirs.eval(), batch)
    assert logits_difference(ours, expected, batch) <= LOGITS_TOLERANCE

    # The factors are not 1.
    _, folded = fold_parametrization(config, params)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (params, folded)), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_both_networks_of_electra_are_folded(tmp_path, tied):
    config = replace(ELECTRA, tied_head=tied)
    params, batch = random_weights(config), samples(config)
    folded_config, folded = fold_parametrization(config, params)
    model, folded_model = models.build(config), models.build(folded_config)
    pairs = [(model, folded_model), (model.generator, folded_model.generator)]
    for one, other in pairs:
        before, after = logits_of(one, params, batch), logits_of(other, folded, batch)
        np.testing.assert_allclose(before, after, atol=LOGITS_TOLERANCE)
        assert np.abs(before - logits_of(other, params, batch)).max() > 0.1


def test_a_read_export_is_a_standard_model(tmp_path):
    params = random_weights(MUP)
    interop.save(tmp_path, MUP, params)
    again, _ = interop.load(tmp_path)
    assert (again.parametrization, again.mup_base_width) == ("standard", None)
