"""Which configs are the same function, and which an architecture of `transformers` can hold."""

from dataclasses import replace

import pytest
from support.hf_directories import random_weights
from support.interop_models import GPT2, T5

from jaxlm import interop
from jaxlm.config import UserError
from jaxlm.interop.match_architecture import canonical_fields

UNSPEAKABLE = {
    "decoder": (
        replace(GPT2, norm="rmsnorm", positions="sinusoidal"),
        r"no supported architecture of transformers fits this model: the closest, \w+, has model\.",
    ),
    "one field": (
        replace(GPT2, logit_softcap=3.0),
        r"the closest, gpt2, has model\.logit_softcap = None \(here 3\.0\)$",
    ),
}


@pytest.mark.parametrize("case", UNSPEAKABLE)
def test_a_model_that_no_architecture_is(tmp_path, case):
    model, expected = UNSPEAKABLE[case]
    with pytest.raises(UserError, match=expected):
        interop.save(tmp_path / "out", model, random_weights(model))
    assert not (tmp_path / "out").exists()


LLAMA = dict(
    norm="rmsnorm",
    positions="rotary",
    activation="silu",
    gated=True,
    attention_bias=False,
    mlp_bias=False,
)
EQUAL = {
    "kv_heads": (GPT2, dict(kv_heads=4)),
    "sizes that None stands for": (
        GPT2,
        dict(mlp_width=192, head_width=12, attention_scale=12**-0.5),
    ),
    "training": (
        GPT2,
        dict(initializer="normal", initializer_std=0.3, dropout=0.1, attention_dropout=0.2),
    ),
    "unused rotary": (GPT2, dict(rotary_theta=5.0, rotary_scaling_factor=3.0)),
    "unused buckets": (GPT2, dict(relative_buckets=8)),
    "positions without a table": (replace(GPT2, **LLAMA), dict(context_length=999)),
    "biases that RMSNorm has not": (replace(GPT2, **LLAMA), dict(norm_bias=False)),
    "a pattern without an end": (
        replace(GPT2, sliding_window=4, attention_pattern=("full", "sliding")),
        dict(attention_pattern=("full", "sliding", "full")),
    ),
    "all sliding": (replace(GPT2, sliding_window=4), dict(attention_pattern=("sliding",))),
    "none sliding": (GPT2, dict(sliding_window=4, attention_pattern=("full",))),
    "scaling by 1 part": (
        replace(GPT2, **LLAMA, rotary_scaling="linear"),
        dict(rotary_original_length=7),
    ),
    "yarn's factor of attention": (
        replace(GPT2, **LLAMA, rotary_scaling="yarn", rotary_scaling_factor=4.0),
        dict(rotary_attention_factor=1.138629436111989),  # 0.1 ln 4 + 1
    ),
    "encoder": (T5, dict(encoder_heads=4, encoder_mlp_width=40)),
}
UNEQUAL = {
    "rows": (GPT2, dict(context_length=33)),
    "theta": (replace(GPT2, **LLAMA), dict(rotary_theta=5.0)),
    "share": (replace(GPT2, **LLAMA), dict(rotary_share=0.5)),
    "window": (replace(GPT2, sliding_window=4), dict(sliding_window=5)),
    "pattern": (replace(GPT2, sliding_window=4), dict(attention_pattern=("full", "sliding"))),
    "encoder": (T5, dict(encoder_layers=4)),
    "buckets": (T5, dict(relative_max_distance=64)),
    "scaling": (replace(GPT2, **LLAMA, rotary_scaling="llama3"), dict(rotary_original_length=7)),
}


@pytest.mark.parametrize("case", EQUAL)
def test_fields_that_change_nothing_are_equal(case):
    model, fields = EQUAL[case]
    assert canonical_fields(model) == canonical_fields(replace(model, **fields))


@pytest.mark.parametrize("case", UNEQUAL)
def test_fields_that_change_the_function_are_not(case):
    model, fields = UNEQUAL[case]
    assert canonical_fields(model) != canonical_fields(replace(model, **fields))
