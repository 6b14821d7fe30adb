"""BLOOM: ALiBi, a norm behind the embeddings; query, key and value are one tensor, head by head."""

from typing import Any

from jaxlm import config
from jaxlm.interop.architectures.common import check_heads, known, refuse_extras
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, Weights


def read(settings: HFConfig, weights: Weights) -> config.ModelConfig:
    """No context length is part of the model: `seq_length` is what it was trained with."""
    refuse_extras(settings)
    width, heads = (
        known(settings, ("n_embed", "hidden_size"), 64),
        known(settings, ("n_head", "num_attention_heads"), 8),
    )
    check_heads(settings, width, heads)
    return config.ModelConfig(
        family="decoder",
        vocabulary_size=settings.number("vocab_size", 250880),
        layers=known(settings, ("n_layer", "num_hidden_layers"), 2),
        heads=heads,
        width=width,
        context_length=settings.number("seq_length", 2048),
        norm_epsilon=settings.number("layer_norm_epsilon", 1e-5, float),
        residual=settings.choice(
            "apply_residual_connection_post_layernorm", {False: "serial", True: "normed"}, False
        ),
        embedding_norm=True,
        positions="alibi",
        activation="gelu_tanh",
        tied_head=settings.number("tie_word_embeddings", True, bool),
        dropout=settings.number("hidden_dropout", 0.0, float),
        attention_dropout=settings.number("attention_dropout", 0.0, float),
        initializer="normal",
        initializer_std=settings.number("initializer_range", 0.02, float),
    )


def write(model: config.ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocabulary_size,
        "hidden_size": model.width,
        "n_layer": model.layers,
        "n_head": model.heads,
        "seq_length": model.context_length,
        "layer_norm_epsilon": model.norm_epsilon,
        "apply_residual_connection_post_layernorm": model.residual == "normed",
        "tie_word_embeddings": model.tied_head,
        "hidden_dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "initializer_range": model.initializer_std,
    }


BLOCK = "transformer.h.{}"
RULES = (
    Rule("transformer.word_embeddings.weight", "v d", ("embedding.tokens",), "vd"),
    Rule("transformer.word_embeddings_layernorm.weight", "d", ("embedding.norm.scale",), "d"),
    Rule("transformer.word_embeddings_layernorm.bias", "d", ("embedding.norm.bias",), "d"),
    Rule(f"{BLOCK}.input_layernorm.weight", "d", ("blocks.attention_norm.scale",), "d"),
    Rule(f"{BLOCK}.input_layernorm.bias", "d", ("blocks.attention_norm.bias",), "d"),
    Rule(
        f"{BLOCK}.self_attention.query_key_value.weight",
        "h3k d",
        (
            "blocks.attention.query_kernel",
            "blocks.attention.key_kernel",
            "blocks.attention.value_kernel",
        ),
        "dhk",
    ),
    Rule(
        f"{BLOCK}.self_attention.query_key_value.bias",
        "h3k",
        ("blocks.attention.query_bias", "blocks.attention.key_bias", "blocks.attention.value_bias"),
        "hk",
    ),
    Rule(
        f"{BLOCK}.self_attention.dense.weight", "d hk", ("blocks.attention.output_kernel",), "hkd"
    ),
    Rule(f"{BLOCK}.self_attention.dense.bias", "d", ("blocks.attention.output_bias",), "d"),
    Rule(f"{BLOCK}.post_attention_layernorm.weight", "d", ("blocks.mlp_norm.scale",), "d"),
    Rule(f"{BLOCK}.post_attention_layernorm.bias", "d", ("blocks.mlp_norm.bias",), "d"),
    Rule(f"{BLOCK}.mlp.dense_h_to_4h.weight", "f d", ("blocks.mlp.up_kernel",), "df"),
    Rule(f"{BLOCK}.mlp.dense_h_to_4h.bias", "f", ("blocks.mlp.up_bias",), "f"),
    Rule(f"{BLOCK}.mlp.dense_4h_to_h.weight", "d f", ("blocks.mlp.down_kernel",), "fd"),
    Rule(f"{BLOCK}.mlp.dense_4h_to_h.bias", "d", ("blocks.mlp.down_bias",), "d"),
    Rule("transformer.ln_f.weight", "d", ("final_norm.scale",), "d"),
    Rule("transformer.ln_f.bias", "d", ("final_norm.bias",), "d"),
    Rule("lm_head.weight", "v d", ("head.kernel",), "dv"),
)

BLOOM = Architecture(
    model_type="bloom",
    classes=("BloomForCausalLM", "BloomModel"),
    family="decoder",
    read=read,
    write=write,
    rules=RULES,
    root="transformer.",
    aliases={"lm_head.weight": "transformer.word_embeddings.weight"},
)
