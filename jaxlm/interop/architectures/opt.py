"""OPT: learned positions from row 2 on.

The model of 350M is post-norm, and its table of tokens is narrower than the model.
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


def read_opt(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    refuse_unsupported(hf_config)
    hf_config.require({"layer_norm_elementwise_affine": True})
    placement = hf_config.choice("do_layer_norm_before", {True: "pre", False: "post"}, True)
    if placement == "pre":
        hf_config.require({"_remove_final_layer_norm": False})
    width = hf_config.scalar("hidden_size", 768)
    heads = hf_config.scalar("num_attention_heads", 12)
    check_heads(hf_config, width, heads)
    bias = hf_config.scalar("enable_bias", True, bool)

    return ModelConfig(
        family="decoder",
        vocabulary_size=hf_config.scalar("vocab_size", 50272),
        layers=hf_config.scalar("num_hidden_layers", 12),
        heads=heads,
        mlp_width=none_if(hf_config.scalar("ffn_dim", 3072), 4 * width),
        width=width,
        context_length=hf_config.scalar("max_position_embeddings", 2048),
        norm_placement=placement,
        embedding_width=none_if(hf_config.scalar("word_embed_proj_dim", None), width),
        positions="learned",
        position_offset=2,
        activation=hf_config.choice("activation_function", ACTIVATIONS, "relu"),
        attention_bias=bias,
        attention_output_bias=bias,
        mlp_bias=bias,
        tied_head=hf_config.scalar("tie_word_embeddings", True, bool),
        dropout=hf_config.scalar("dropout", 0.1, float),
        attention_dropout=hf_config.scalar("attention_dropout", 0.0, float),
        initializer="normal",
        initializer_std=hf_config.scalar("init_std", 0.02, float),
    )


def write_opt(model: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocabulary_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "ffn_dim": model.hidden_width,
        "num_attention_heads": model.heads,
        "max_position_embeddings": model.context_length,
        "do_layer_norm_before": model.norm_placement == "pre",
        "word_embed_proj_dim": model.token_width,
        "activation_function": ACTIVATION_NAMES[model.activation],
        "enable_bias": model.attention_bias,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": model.tied_head,
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "layerdrop": 0.0,
        "init_std": model.initializer_std,
    }


OPT_DECODER = "model.decoder"
OPT_BLOCK = f"{OPT_DECODER}.layers.{{}}"
OPT_RULES = (
    Rule(f"{OPT_DECODER}.embed_tokens.weight", "v e", ("embedding.tokens",), "ve"),
    Rule(f"{OPT_DECODER}.embed_positions.weight", "p d", ("embedding.positions",), "pd"),
    Rule(f"{OPT_DECODER}.project_in.weight", "d e", ("embedding.projection",), "ed"),
    Rule(f"{OPT_DECODER}.project_out.weight", "e d", ("head.projection",), "de"),
    Rule(f"{OPT_BLOCK}.self_attn_layer_norm.weight", "d", ("blocks.attention_norm.scale",), "d"),
    Rule(f"{OPT_BLOCK}.self_attn_layer_norm.bias", "d", ("blocks.attention_norm.bias",), "d"),
    Rule(f"{OPT_BLOCK}.self_attn.q_proj.weight", "hk d", ("blocks.attention.query_kernel",), "dhk"),
    Rule(f"{OPT_BLOCK}.self_attn.q_proj.bias", "hk", ("blocks.attention.query_bias",), "hk"),
    Rule(f"{OPT_BLOCK}.self_attn.k_proj.weight", "hk d", ("blocks.attention.key_kernel",), "dhk"),
    Rule(f"{OPT_BLOCK}.self_attn.k_proj.bias", "hk", ("blocks.attention.key_bias",), "hk"),
    Rule(f"{OPT_BLOCK}.self_attn.v_proj.weight", "hk d", ("blocks.attention.value_kernel",), "dhk"),
    Rule(f"{OPT_BLOCK}.self_attn.v_proj.bias", "hk", ("blocks.attention.value_bias",), "hk"),
    Rule(
        f"{OPT_BLOCK}.self_attn.out_proj.weight", "d hk", ("blocks.attention.output_kernel",), "hkd"
    ),
    Rule(f"{OPT_BLOCK}.self_attn.out_proj.bias", "d", ("blocks.attention.output_bias",), "d"),
    Rule(f"{OPT_BLOCK}.final_layer_norm.weight", "d", ("blocks.mlp_norm.scale",), "d"),
    Rule(f"{OPT_BLOCK}.final_layer_norm.bias", "d", ("blocks.mlp_norm.bias",), "d"),
    Rule(f"{OPT_BLOCK}.fc1.weight", "f d", ("blocks.mlp.up_kernel",), "df"),
    Rule(f"{OPT_BLOCK}.fc1.bias", "f", ("blocks.mlp.up_bias",), "f"),
    Rule(f"{OPT_BLOCK}.fc2.weight", "d f", ("blocks.mlp.down_kernel",), "fd"),
    Rule(f"{OPT_BLOCK}.fc2.bias", "d", ("blocks.mlp.down_bias",), "d"),
    Rule(f"{OPT_DECODER}.final_layer_norm.weight", "d", ("final_norm.scale",), "d"),
    Rule(f"{OPT_DECODER}.final_layer_norm.bias", "d", ("final_norm.bias",), "d"),
    Rule("lm_head.weight", "v e", ("head.kernel",), "ev"),
)

OPT = Architecture(
    model_type="opt",
    classes=("OPTForCausalLM", "OPTModel"),
    family="decoder",
    read=read_opt,
    write=write_opt,
    rules=OPT_RULES,
    root="model.",
    aliases={"lm_head.weight": f"{OPT_DECODER}.embed_tokens.weight"},
)
