"""Values that are derived from the fields of a config."""

from typing import Any

import pytest

from jaxlm.config import Config, ModelConfig, ObjectiveConfig, TokenizerConfig

MODEL = [  # fields, property, value
    ({"heads": 12}, "key_value_heads", 12),
    ({"heads": 12, "kv_heads": 4}, "key_value_heads", 4),
    ({"width": 96, "heads": 4}, "width_per_head", 24),
    ({"width": 96, "heads": 4, "head_width": 32}, "width_per_head", 32),
    ({"width": 96}, "hidden_width", 384),
    ({"width": 96, "mlp_width": 200}, "hidden_width", 200),
    ({"width": 96, "heads": 4, "rotary_share": 0.25}, "rotary_width", 6),
    ({"width": 96}, "token_width", 96),
    ({"width": 96, "embedding_width": 48}, "token_width", 48),
    ({}, "windows", (None,)),
    ({"sliding_window": 8}, "windows", (8,)),
    (
        {"sliding_window": 8, "attention_pattern": ("full", "sliding", "sliding")},
        "windows",
        (None, 8, 8),
    ),
]


@pytest.mark.parametrize(("values", "name", "expected"), MODEL)
def test_a_property_of_the_model(values, name, expected):
    assert getattr(ModelConfig(**values), name) == expected


def encoder_sizes(**values):
    """Return layers, heads, key-value heads and MLP width of an encoder-decoder's encoder."""
    sizes: Any = {"layers": 4, "heads": 6, "kv_heads": 3, "mlp_width": 100}
    model = ModelConfig(family="encoder_decoder", **sizes, **values)
    assert model.stacks == {"": model, "encoder_": model.encoder}
    encoder = model.encoder
    assert encoder.family == "encoder" and encoder.width == model.width
    return encoder.layers, encoder.heads, encoder.kv_heads, encoder.mlp_width


def test_an_encoder_has_the_sizes_of_its_own():
    assert encoder_sizes() == (4, 6, 3, 100)
    assert encoder_sizes(encoder_layers=2) == (2, 6, 3, 100)
    assert encoder_sizes(encoder_kv_heads=2) == (4, 6, 2, 100)
    assert encoder_sizes(encoder_mlp_width=50) == (4, 6, 3, 50)
    # With another number of heads the decoder's key-value heads mean nothing.
    assert encoder_sizes(encoder_heads=4) == (4, 4, None, 100)
    assert encoder_sizes(encoder_heads=4, encoder_kv_heads=2) == (4, 4, 2, 100)


def test_other_families_have_one_stack():
    model = ModelConfig(family="encoder")
    assert model.stacks == {"": model}


OBJECTIVES = [  # kind, share of hidden tokens, first input of the decoder, special tokens
    ("causal", 0.15, "pad", ()),
    ("prefix", 0.15, "pad", ()),
    ("fill_in_the_middle", 0.15, "pad", ("fim",)),
    ("masked", 0.15, "pad", ("pad", "mask")),
    ("span", 0.15, "pad", ("pad", "sentinels")),
    ("infilling", 0.3, "end_of_text", ("pad", "mask")),
    ("pairs", 0.15, "pad", ("pad",)),
    ("mixture_of_denoisers", 0.15, "pad", ("pad", "sentinels", "denoisers")),
]


@pytest.mark.parametrize(("kind", "noise", "start", "needs"), OBJECTIVES)
def test_what_an_objective_needs(kind, noise, start, needs):
    objective = ObjectiveConfig(kind=kind)
    assert (objective.noise, objective.start, objective.needs) == (noise, start, needs)
    chosen = ObjectiveConfig(kind=kind, noise_share=0.4, decoder_start="pad")
    assert (chosen.noise, chosen.start) == (0.4, "pad")


def test_a_mixture_needs_what_its_parts_need():
    parts = [ObjectiveConfig(kind=kind, decoder_start="pad") for kind in ("infilling", "span")]
    mixture = ObjectiveConfig(kind="mixture", parts=tuple(parts))
    assert mixture.needs == ("pad", "mask", "sentinels")
    assert (mixture.families, mixture.start) == (("encoder_decoder",), "pad")


def test_special_tokens_are_counted():
    tokenizer = TokenizerConfig(sentinels=5)
    assert tokenizer.special_count(()) == 0
    assert tokenizer.special_count(("pad", "mask")) == 2
    assert tokenizer.special_count(("pad", "sentinels")) == 6
    assert tokenizer.special_count(("fim",)) == tokenizer.special_count(("denoisers",)) == 3
    assert TokenizerConfig(begin_of_text="<s>").special_count(("pad",)) == 2


def test_a_trained_tokenizer_has_the_models_size_unless_it_says_otherwise():
    config = Config(model=ModelConfig(vocabulary_size=1000))
    assert config.tokenizer_vocabulary_size == 1000
    config = Config(tokenizer=TokenizerConfig(vocabulary_size=500))
    assert config.tokenizer_vocabulary_size == 500
