"""Parameter counts of published models, from their configs, without making an array."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxlm import config, models

BARE = {"attention_bias": False, "attention_output_bias": False, "mlp_bias": False}
LLAMA: dict[str, Any] = {
    "norm": "rmsnorm",
    "positions": "rotary",
    "activation": "silu",
    "gated": True,
    "tied_head": False,
    **BARE,
}
BLOOM: dict[str, Any] = {"positions": "alibi", "embedding_norm": True}


def sizes(
    vocabulary: int, layers: int, width: int, heads: int, mlp_width: int | None = None, **fields
) -> config.ModelConfig:
    return config.ModelConfig(
        vocabulary_size=vocabulary,
        layers=layers,
        width=width,
        heads=heads,
        mlp_width=mlp_width,
        **fields,
    )


MODELS = {
    "GPT-2": (sizes(50257, 12, 768, 12), 124_439_808),
    "GPT-2 medium": (sizes(50257, 24, 1024, 16), 354_823_168),
    "GPT-2 XL": (sizes(50257, 48, 1600, 25), 1_557_611_200),
    "Llama 2 7B": (sizes(32000, 32, 4096, 32, 11008, **LLAMA), 6_738_415_616),
    "TinyLlama 1.1B": (sizes(32000, 22, 2048, 32, 5632, kv_heads=4, **LLAMA), 1_100_048_384),
    "Llama 3 8B": (sizes(128256, 32, 4096, 32, 14336, kv_heads=8, **LLAMA), 8_030_261_248),
    "Mistral 7B": (
        sizes(32000, 32, 4096, 32, 14336, kv_heads=8, sliding_window=4096, **LLAMA),
        7_241_732_096,
    ),
    "Qwen3 0.6B": (
        sizes(
            151936,
            28,
            1024,
            16,
            3072,
            kv_heads=8,
            head_width=128,
            query_key_norm=True,
            **(LLAMA | {"tied_head": True}),
        ),
        596_049_920,
    ),
    "BLOOM 560M": (sizes(250880, 24, 1024, 16, **BLOOM), 559_214_592),
    "BLOOM 176B": (sizes(250880, 70, 14336, 112, **BLOOM), 176_247_271_424),
    "BloombergGPT": (sizes(131072, 70, 7680, 40, **BLOOM), 50_558_868_480),
}


@pytest.mark.parametrize("name", MODELS)
def test_published_counts(name):
    model, published = MODELS[name]
    assert models.build(model).parameter_count() == published


THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2LMHeadModel", {}),
    "Llama 2 7B": ("LlamaForCausalLM", {}),
    "Mistral 7B": ("MistralForCausalLM", {}),
    "Qwen3 0.6B": (
        "Qwen3ForCausalLM",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
        },
    ),
    "BLOOM 560M": ("BloomForCausalLM", {"hidden_size": 1024, "n_layer": 24, "n_head": 16}),
}


@pytest.mark.parametrize("name", THEIRS)
def test_counts_of_transformers(name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    cls, fields = THEIRS[name]
    peer = getattr(transformers, cls)
    with torch.device("meta"):
        theirs = sum(
            parameter.numel() for parameter in peer(peer.config_class(**fields)).parameters()
        )
    assert models.build(MODELS[name][0]).parameter_count() == theirs


BASE = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
BART = {
    "d_model": 768,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
}
T5 = {
    "d_model": 768,
    "d_ff": 2048,
    "num_layers": 12,
    "num_heads": 12,
    "feed_forward_proj": "gated-gelu",
}

RECIPES: dict[str, tuple[float, str, dict[str, Any]]] = {
    "bert_base": (109.5, "BertForMaskedLM", {}),
    "roberta_base": (124.7, "RobertaForMaskedLM", BASE),
    "t5_base": (247.6, "T5ForConditionalGeneration", T5),
    "bart_base": (
        139.4,
        "BartForConditionalGeneration",
        BART | {"encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072},
    ),
    "bloom_560m": (
        559.2,
        "BloomForCausalLM",
        {"vocab_size": 250880, "hidden_size": 1024, "n_layer": 24, "n_head": 16},
    ),
}


def recipe_count(name: str) -> int:
    recipe = config.load(Path(__file__).parents[2] / "configs" / f"{name}.py")
    return models.build(recipe.model).parameter_count()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_published_size(name):
    """In millions, to the digit."""
    assert round(recipe_count(name) / 1e6, 1) == RECIPES[name][0]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_size_of_transformers(name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    _, cls, fields = RECIPES[name]
    with torch.device("meta"):
        peer = getattr(transformers, cls)(getattr(transformers, cls).config_class(**fields))
        if name == "t5_base":
            # transformers 5 ties the head of every T5 that it builds, and unties it only when a
            # checkpoint has one.
            peer.lm_head.weight = torch.nn.Parameter(torch.empty_like(peer.lm_head.weight))
    assert recipe_count(name) == sum(parameter.numel() for parameter in peer.parameters())


def test_count_is_the_arrays_without_padding():
    model = sizes(130, 2, 12, 3, context_length=8, head_bias=True, tied_head=False)
    built = models.build(model)
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    in_memory = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    # 130 rows are padded to 256 in the table, in the head and in its bias.
    assert built.parameter_count() == in_memory - (256 - 130) * (12 + 12 + 1)


@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
def test_the_first_norm_of_each_stack_does_not_count_where_it_is_left_out(family):
    counts = [
        models.build(
            sizes(130, 2, 12, 3, context_length=8, family=family, first_norm=first_norm)
        ).parameter_count()
        for first_norm in (True, False)
    ]
    stacks = 2 if family == "encoder_decoder" else 1
    assert counts[0] - counts[1] == stacks * (12 + 12)  # a scale and a bias
