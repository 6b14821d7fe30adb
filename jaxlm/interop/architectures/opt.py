"""OPT: learned positions from row 2 on; its 350M is post-norm, with a token table that is narrower than the model."""

from typing import Any

from jaxlm import config
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
    settings.fixed({"layer_norm_elementwise_affine": True})
    placement = settings.choice("do_layer_norm_before", {True: "pre", False: "post"}, True)
    if placement == "pre":
        settings.fixed({"_remove_final_layer_norm": False})
    width, heads = settings.number("hidden_size", 768), settings.number("num_attention_heads", 12)
    check_heads(settings, width, heads)
    bias = settings.number("enable_bias", True, bool)
    return config.ModelConfig(
        family="decoder",
        vocabulary_size=settings.number("vocab_size", 50272),
        layers=settings.number("num_hidden_layers", 12),
        heads=heads,
        mlp_width=unless(settings.number("ffn_dim", 3072), 4 * width),
        width=width,
        context_length=settings.number("max_position_embeddings", 2048),
        norm_placement=placement,
        embedding_width=unless(settings.number("word_embed_proj_dim", None), width),
        positions="learned",
        position_offset=2,
        activation=settings.choice("activation_function", ACTIVATIONS, "relu"),
        attention_bias=bias,
        attention_output_bias=bias,
        mlp_bias=bias,
        tied_head=settings.number("tie_word_embeddings", True, bool),
        dropout=settings.number("dropout", 0.1, float),
        attention_dropout=settings.number("attention_dropout", 0.0, float),
        initializer="normal",
        initializer_std=settings.number("init_std", 0.02, float),
    )


def write(model: config.ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocabulary_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "ffn_dim": model.hidden_width,
        "num_attention_heads": model.heads,
        "max_position_embeddings": model.context_length,
        "do_layer_norm_before": model.norm_placement == "pre",
        "word_embed_proj_dim": model.token_width,
        "activation_function": NAMES[model.activation],
        "enable_bias": model.attention_bias,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": model.tied_head,
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "layerdrop": 0.0,
        "init_std": model.initializer_std,
    }


DECODER = "model.decoder"
BLOCK = f"{DECODER}.layers.{{}}"
RULES = (
    Rule(f"{DECODER}.embed_tokens.weight", "v e", ("embedding.tokens",), "ve"),
    Rule(f"{DECODER}.embed_positions.weight", "p d", ("embedding.positions",), "pd"),
    Rule(f"{DECODER}.project_in.weight", "d e", ("embedding.projection",), "ed"),
    Rule(f"{DECODER}.project_out.weight", "e d", ("head.projection",), "de"),
    Rule(f"{BLOCK}.self_attn_layer_norm.weight", "d", ("blocks.attention_norm.scale",), "d"),
    Rule(f"{BLOCK}.self_attn_layer_norm.bias", "d", ("blocks.attention_norm.bias",), "d"),
    Rule(f"{BLOCK}.self_attn.q_proj.weight", "hk d", ("blocks.attention.query_kernel",), "dhk"),
    Rule(f"{BLOCK}.self_attn.q_proj.bias", "hk", ("blocks.attention.query_bias",), "hk"),
    Rule(f"{BLOCK}.self_attn.k_proj.weight", "hk d", ("blocks.attention.key_kernel",), "dhk"),
    Rule(f"{BLOCK}.self_attn.k_proj.bias", "hk", ("blocks.attention.key_bias",), "hk"),
    Rule(f"{BLOCK}.self_attn.v_proj.weight", "hk d", ("blocks.attention.value_kernel",), "dhk"),
    Rule(f"{BLOCK}.self_attn.v_proj.bias", "hk", ("blocks.attention.value_bias",), "hk"),
    Rule(f"{BLOCK}.self_attn.out_proj.weight", "d hk", ("blocks.attention.output_kernel",), "hkd"),
    Rule(f"{BLOCK}.self_attn.out_proj.bias", "d", ("blocks.attention.output_bias",), "d"),
    Rule(f"{BLOCK}.final_layer_norm.weight", "d", ("blocks.mlp_norm.scale",), "d"),
    Rule(f"{BLOCK}.final_layer_norm.bias", "d", ("blocks.mlp_norm.bias",), "d"),
    Rule(f"{BLOCK}.fc1.weight", "f d", ("blocks.mlp.up_kernel",), "df"),
    Rule(f"{BLOCK}.fc1.bias", "f", ("blocks.mlp.up_bias",), "f"),
    Rule(f"{BLOCK}.fc2.weight", "d f", ("blocks.mlp.down_kernel",), "fd"),
    Rule(f"{BLOCK}.fc2.bias", "d", ("blocks.mlp.down_bias",), "d"),
    Rule(f"{DECODER}.final_layer_norm.weight", "d", ("final_norm.scale",), "d"),
    Rule(f"{DECODER}.final_layer_norm.bias", "d", ("final_norm.bias",), "d"),
    Rule("lm_head.weight", "v e", ("head.kernel",), "ev"),
)

OPT = Architecture(
    model_type="opt",
    classes=("OPTForCausalLM", "OPTModel"),
    family="decoder",
    read=read,
    write=write,
    rules=RULES,
    root="model.",
    aliases={"lm_head.weight": f"{DECODER}.embed_tokens.weight"},
)
