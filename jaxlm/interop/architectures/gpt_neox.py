"""GPT-NeoX (Pythia): attention and MLP side by side, part of a head's channels rotated.

Query, key and value are one tensor, head by head.
"""

from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.interop.architectures.common import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    check_heads,
    none_if,
    refuse_unsupported,
)
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, TensorPresence
from jaxlm.interop.rope import read_rope, write_rope


def read_gpt_neox(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    refuse_unsupported(hf_config)
    width = hf_config.scalar("hidden_size", 6144)
    heads = hf_config.scalar("num_attention_heads", 64)
    check_heads(hf_config, width, heads)
    if hf_config.get("head_dim") is not None and heads > 0:
        hf_config.require({"head_dim": width // heads})
    length = hf_config.scalar("max_position_embeddings", 2048)
    bias = hf_config.scalar("attention_bias", True, bool)

    return ModelConfig(
        family="decoder",
        vocabulary_size=hf_config.scalar("vocab_size", 50432),
        layers=hf_config.scalar("num_hidden_layers", 44),
        heads=heads,
        mlp_width=none_if(hf_config.scalar("intermediate_size", 24576), 4 * width),
        width=width,
        context_length=length,
        norm_epsilon=hf_config.scalar("layer_norm_eps", 1e-5, float),
        residual=hf_config.choice(
            "use_parallel_residual", {True: "parallel", False: "serial"}, True
        ),
        positions="rotary",
        **read_rope(
            hf_config,
            length,
            theta_key="rotary_emb_base",
            share_key="rotary_pct",
            default_share=0.25,
        ),
        activation=hf_config.choice("hidden_act", ACTIVATIONS, "gelu"),
        attention_bias=bias,
        attention_output_bias=bias,
        tied_head=hf_config.scalar("tie_word_embeddings", False, bool),
        dropout=hf_config.scalar("hidden_dropout", 0.0, float),
        attention_dropout=hf_config.scalar("attention_dropout", 0.0, float),
        initializer="normal",
        initializer_std=hf_config.scalar("initializer_range", 0.02, float),
    )


def write_gpt_neox(model: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocabulary_size,
        "hidden_size": model.width,
        "intermediate_size": model.hidden_width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "max_position_embeddings": model.context_length,
        "layer_norm_eps": model.norm_epsilon,
        "hidden_act": ACTIVATION_NAMES[model.activation],
        "use_parallel_residual": model.residual == "parallel",
        "attention_bias": model.attention_bias,
        "tie_word_embeddings": model.tied_head,
        "hidden_dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "initializer_range": model.initializer_std,
        "rotary_pct": model.rotary_share,
        "rotary_emb_base": model.rotary_theta,
        **write_rope(model, write_share=True),
    }


GPT_NEOX_BLOCK = "gpt_neox.layers.{}"
GPT_NEOX_RULES = (
    Rule("gpt_neox.embed_in.weight", "v d", ("embedding.tokens",), "vd"),
    Rule(f"{GPT_NEOX_BLOCK}.input_layernorm.weight", "d", ("blocks.attention_norm.scale",), "d"),
    Rule(f"{GPT_NEOX_BLOCK}.input_layernorm.bias", "d", ("blocks.attention_norm.bias",), "d"),
    Rule(
        f"{GPT_NEOX_BLOCK}.attention.query_key_value.weight",
        "h3k d",
        (
            "blocks.attention.query_kernel",
            "blocks.attention.key_kernel",
            "blocks.attention.value_kernel",
        ),
        "dhk",
    ),
    Rule(
        f"{GPT_NEOX_BLOCK}.attention.query_key_value.bias",
        "h3k",
        ("blocks.attention.query_bias", "blocks.attention.key_bias", "blocks.attention.value_bias"),
        "hk",
    ),
    Rule(
        f"{GPT_NEOX_BLOCK}.attention.dense.weight",
        "d hk",
        ("blocks.attention.output_kernel",),
        "hkd",
    ),
    Rule(f"{GPT_NEOX_BLOCK}.attention.dense.bias", "d", ("blocks.attention.output_bias",), "d"),
    Rule(f"{GPT_NEOX_BLOCK}.post_attention_layernorm.weight", "d", ("blocks.mlp_norm.scale",), "d"),
    Rule(f"{GPT_NEOX_BLOCK}.post_attention_layernorm.bias", "d", ("blocks.mlp_norm.bias",), "d"),
    Rule(f"{GPT_NEOX_BLOCK}.mlp.dense_h_to_4h.weight", "f d", ("blocks.mlp.up_kernel",), "df"),
    Rule(f"{GPT_NEOX_BLOCK}.mlp.dense_h_to_4h.bias", "f", ("blocks.mlp.up_bias",), "f"),
    Rule(f"{GPT_NEOX_BLOCK}.mlp.dense_4h_to_h.weight", "d f", ("blocks.mlp.down_kernel",), "fd"),
    Rule(f"{GPT_NEOX_BLOCK}.mlp.dense_4h_to_h.bias", "d", ("blocks.mlp.down_bias",), "d"),
    Rule("gpt_neox.final_layer_norm.weight", "d", ("final_norm.scale",), "d"),
    Rule("gpt_neox.final_layer_norm.bias", "d", ("final_norm.bias",), "d"),
    Rule("embed_out.weight", "v d", ("head.kernel",), "dv"),
)

GPT_NEOX = Architecture(
    model_type="gpt_neox",
    classes=("GPTNeoXForCausalLM",),
    family="decoder",
    read=read_gpt_neox,
    write=write_gpt_neox,
    rules=GPT_NEOX_RULES,
    root="gpt_neox.",
    ignored=(
        r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
        r"(gpt_neox\.)?rotary_emb\.inv_freq",
    ),
    aliases={"embed_out.weight": "gpt_neox.embed_in.weight"},
)
