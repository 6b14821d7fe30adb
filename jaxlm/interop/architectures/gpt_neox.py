"""GPT-NeoX (Pythia): attention and MLP side by side, part of a head's channels rotated; query, key and value fused head by head."""

from typing import Any

from jaxlm import config
from jaxlm.interop import rope
from jaxlm.interop.architectures.common import (
    ACTIVATIONS,
    NAMES,
    check_heads,
    refuse_extras,
    unless,
)
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, Weights


def read(settings: HFConfig, weights: Weights) -> config.ModelConfig:
    refuse_extras(settings)
    width, heads = settings.number("hidden_size", 6144), settings.number("num_attention_heads", 64)
    check_heads(settings, width, heads)
    if settings.get("head_dim") is not None and heads > 0:
        settings.fixed({"head_dim": width // heads})
    length = settings.number("max_position_embeddings", 2048)
    bias = settings.number("attention_bias", True, bool)
    return config.ModelConfig(
        family="decoder",
        vocabulary_size=settings.number("vocab_size", 50432),
        layers=settings.number("num_hidden_layers", 44),
        heads=heads,
        mlp_width=unless(settings.number("intermediate_size", 24576), 4 * width),
        width=width,
        context_length=length,
        norm_epsilon=settings.number("layer_norm_eps", 1e-5, float),
        residual=settings.choice(
            "use_parallel_residual", {True: "parallel", False: "serial"}, True
        ),
        positions="rotary",
        **rope.read(
            settings, length, theta="rotary_emb_base", share="rotary_pct", default_share=0.25
        ),
        activation=settings.choice("hidden_act", ACTIVATIONS, "gelu"),
        attention_bias=bias,
        attention_output_bias=bias,
        tied_head=settings.number("tie_word_embeddings", False, bool),
        dropout=settings.number("hidden_dropout", 0.0, float),
        attention_dropout=settings.number("attention_dropout", 0.0, float),
        initializer="normal",
        initializer_std=settings.number("initializer_range", 0.02, float),
    )


def write(model: config.ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocabulary_size,
        "hidden_size": model.width,
        "intermediate_size": model.hidden_width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "max_position_embeddings": model.context_length,
        "layer_norm_eps": model.norm_epsilon,
        "hidden_act": NAMES[model.activation],
        "use_parallel_residual": model.residual == "parallel",
        "attention_bias": model.attention_bias,
        "tie_word_embeddings": model.tied_head,
        "hidden_dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "initializer_range": model.initializer_std,
        "rotary_pct": model.rotary_share,
        "rotary_emb_base": model.rotary_theta,
        **rope.write(model, share=True),
    }


BLOCK = "gpt_neox.layers.{}"
RULES = (
    Rule("gpt_neox.embed_in.weight", "v d", ("embedding.tokens",), "vd"),
    Rule(f"{BLOCK}.input_layernorm.weight", "d", ("blocks.attention_norm.scale",), "d"),
    Rule(f"{BLOCK}.input_layernorm.bias", "d", ("blocks.attention_norm.bias",), "d"),
    Rule(
        f"{BLOCK}.attention.query_key_value.weight",
        "h3k d",
        (
            "blocks.attention.query_kernel",
            "blocks.attention.key_kernel",
            "blocks.attention.value_kernel",
        ),
        "dhk",
    ),
    Rule(
        f"{BLOCK}.attention.query_key_value.bias",
        "h3k",
        ("blocks.attention.query_bias", "blocks.attention.key_bias", "blocks.attention.value_bias"),
        "hk",
    ),
    Rule(f"{BLOCK}.attention.dense.weight", "d hk", ("blocks.attention.output_kernel",), "hkd"),
    Rule(f"{BLOCK}.attention.dense.bias", "d", ("blocks.attention.output_bias",), "d"),
    Rule(f"{BLOCK}.post_attention_layernorm.weight", "d", ("blocks.mlp_norm.scale",), "d"),
    Rule(f"{BLOCK}.post_attention_layernorm.bias", "d", ("blocks.mlp_norm.bias",), "d"),
    Rule(f"{BLOCK}.mlp.dense_h_to_4h.weight", "f d", ("blocks.mlp.up_kernel",), "df"),
    Rule(f"{BLOCK}.mlp.dense_h_to_4h.bias", "f", ("blocks.mlp.up_bias",), "f"),
    Rule(f"{BLOCK}.mlp.dense_4h_to_h.weight", "d f", ("blocks.mlp.down_kernel",), "fd"),
    Rule(f"{BLOCK}.mlp.dense_4h_to_h.bias", "d", ("blocks.mlp.down_bias",), "d"),
    Rule("gpt_neox.final_layer_norm.weight", "d", ("final_norm.scale",), "d"),
    Rule("gpt_neox.final_layer_norm.bias", "d", ("final_norm.bias",), "d"),
    Rule("embed_out.weight", "v d", ("head.kernel",), "dv"),
)

GPT_NEOX = Architecture(
    model_type="gpt_neox",
    classes=("GPTNeoXForCausalLM",),
    family="decoder",
    read=read,
    write=write,
    rules=RULES,
    root="gpt_neox.",
    ignored=(
        r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
        r"(gpt_neox\.)?rotary_emb\.inv_freq",
    ),
    aliases={"embed_out.weight": "gpt_neox.embed_in.weight"},
)
