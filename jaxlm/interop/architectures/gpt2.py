"""GPT-2 (GPT2LMHeadModel). Its weights are [in, out], and query, key and value are one tensor."""

from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.interop.architectures.common import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    aliased_scalar,
    none_if,
    refuse_unsupported,
)
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, TensorPresence


def read_gpt2(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    refuse_unsupported(hf_config)
    hf_config.require({"scale_attn_by_inverse_layer_idx": False})
    width = aliased_scalar(hf_config, ("n_embd", "hidden_size"), 768)

    return ModelConfig(
        family="decoder",
        vocabulary_size=hf_config.scalar("vocab_size", 50257),
        layers=aliased_scalar(hf_config, ("n_layer", "num_hidden_layers"), 12),
        heads=aliased_scalar(hf_config, ("n_head", "num_attention_heads"), 12),
        mlp_width=none_if(hf_config.scalar("n_inner", None), 4 * width),
        width=width,
        context_length=aliased_scalar(hf_config, ("n_positions", "max_position_embeddings"), 1024),
        norm_epsilon=hf_config.scalar("layer_norm_epsilon", 1e-5, float),
        positions="learned",
        activation=hf_config.choice("activation_function", ACTIVATIONS, "gelu_new"),
        attention_scale=hf_config.choice("scale_attn_weights", {True: None, False: 1.0}, True),
        tied_head=hf_config.scalar("tie_word_embeddings", True, bool),
        dropout=hf_config.scalar("resid_pdrop", 0.1, float),
        attention_dropout=hf_config.scalar("attn_pdrop", 0.1, float),
        initializer="gpt2",
        initializer_std=hf_config.scalar("initializer_range", 0.02, float),
    )


def write_gpt2(model: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocabulary_size,
        "n_positions": model.context_length,
        "n_embd": model.width,
        "n_layer": model.layers,
        "n_head": model.heads,
        "n_inner": model.hidden_width,
        "activation_function": "gelu_new"
        if model.activation == "gelu_tanh"
        else ACTIVATION_NAMES[model.activation],
        "layer_norm_epsilon": model.norm_epsilon,
        "scale_attn_weights": model.attention_scale != 1.0,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": model.tied_head,
        "resid_pdrop": model.dropout,
        "embd_pdrop": model.dropout,
        "attn_pdrop": model.attention_dropout,
        "initializer_range": model.initializer_std,
    }


GPT2_BLOCK = "transformer.h.{}"
GPT2_RULES = (
    Rule("transformer.wte.weight", "v d", ("embedding.tokens",), "vd"),
    Rule("transformer.wpe.weight", "p d", ("embedding.positions",), "pd"),
    Rule(f"{GPT2_BLOCK}.ln_1.weight", "d", ("blocks.attention_norm.scale",), "d"),
    Rule(f"{GPT2_BLOCK}.ln_1.bias", "d", ("blocks.attention_norm.bias",), "d"),
    Rule(
        f"{GPT2_BLOCK}.attn.c_attn.weight",
        "d 3hk",
        (
            "blocks.attention.query_kernel",
            "blocks.attention.key_kernel",
            "blocks.attention.value_kernel",
        ),
        "dhk",
    ),
    Rule(
        f"{GPT2_BLOCK}.attn.c_attn.bias",
        "3hk",
        ("blocks.attention.query_bias", "blocks.attention.key_bias", "blocks.attention.value_bias"),
        "hk",
    ),
    Rule(f"{GPT2_BLOCK}.attn.c_proj.weight", "hk d", ("blocks.attention.output_kernel",), "hkd"),
    Rule(f"{GPT2_BLOCK}.attn.c_proj.bias", "d", ("blocks.attention.output_bias",), "d"),
    Rule(f"{GPT2_BLOCK}.ln_2.weight", "d", ("blocks.mlp_norm.scale",), "d"),
    Rule(f"{GPT2_BLOCK}.ln_2.bias", "d", ("blocks.mlp_norm.bias",), "d"),
    Rule(f"{GPT2_BLOCK}.mlp.c_fc.weight", "d f", ("blocks.mlp.up_kernel",), "df"),
    Rule(f"{GPT2_BLOCK}.mlp.c_fc.bias", "f", ("blocks.mlp.up_bias",), "f"),
    Rule(f"{GPT2_BLOCK}.mlp.c_proj.weight", "f d", ("blocks.mlp.down_kernel",), "fd"),
    Rule(f"{GPT2_BLOCK}.mlp.c_proj.bias", "d", ("blocks.mlp.down_bias",), "d"),
    Rule("transformer.ln_f.weight", "d", ("final_norm.scale",), "d"),
    Rule("transformer.ln_f.bias", "d", ("final_norm.bias",), "d"),
    Rule("lm_head.weight", "v d", ("head.kernel",), "dv"),
)

GPT2 = Architecture(
    model_type="gpt2",
    classes=("GPT2LMHeadModel", "GPT2Model"),
    family="decoder",
    read=read_gpt2,
    write=write_gpt2,
    rules=GPT2_RULES,
    root="transformer.",
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    aliases={"lm_head.weight": "transformer.wte.weight"},
)
