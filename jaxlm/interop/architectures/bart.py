"""BART (BartForConditionalGeneration): post-norm, learned positions.

Both stacks and the head share one table of tokens.
"""

from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.interop.architectures.bert import (
    input_projection_rules,
    mlp_rules,
    norm_rules,
    output_projection_rules,
)
from jaxlm.interop.architectures.common import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    aliased_scalar,
    none_if,
)
from jaxlm.interop.architectures.t5 import refuse_unsupported_stacks
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, TensorPresence

BART_POSITION_OFFSET = 2  # rows of the position tables that no position uses
# Keys of variants that old files still have. Only the values of BART itself are read.
BART_DROPPED_KEYS = {
    "normalize_before": False,
    "normalize_embedding": True,
    "add_final_layer_norm": False,
    "static_position_embeddings": False,
    "extra_pos_embeddings": BART_POSITION_OFFSET,
}


# Values that a config.json may leave out.
BART_DEFAULTS = {
    "vocabulary_size": 50265,
    "width": 1024,
    "heads": 16,
    "layers": 12,
    "encoder_layers": 12,
    "mlp_width": 4096,
    "context_length": 1024,
}


def read_bart(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    hf_config.require(BART_DROPPED_KEYS | {"tie_word_embeddings": True})
    return ModelConfig(
        **read_bart_stacks(hf_config, tensors, BART_DEFAULTS),
        norm_placement="post",
        embedding_norm=True,
        position_offset=BART_POSITION_OFFSET,
    )


def read_bart_stacks(
    hf_config: HFConfig, tensors: TensorPresence, defaults: dict[str, int]
) -> dict[str, Any]:
    """Return the fields that BART and its relatives have in common.

    `defaults` are those of the class. Every file has a bias of the logits, but nothing trains it:
    if it is all zeros, the model has none.
    """
    refuse_unsupported_stacks(hf_config)
    width = aliased_scalar(hf_config, ("d_model", "hidden_size"), defaults["width"])
    encoder_heads = aliased_scalar(
        hf_config, ("encoder_attention_heads", "num_attention_heads"), defaults["heads"]
    )
    heads = hf_config.scalar("decoder_attention_heads", defaults["heads"])
    for key, value in {
        "encoder_attention_heads": encoder_heads,
        "decoder_attention_heads": heads,
    }.items():
        if value > 0 and width % value:
            hf_config.refuse(key, f"{value} does not divide d_model ({width})")
    encoder_layers = hf_config.scalar("encoder_layers", defaults["encoder_layers"])
    layers = hf_config.scalar("decoder_layers", defaults["layers"])
    encoder_mlp = hf_config.scalar("encoder_ffn_dim", defaults["mlp_width"])
    mlp_width = hf_config.scalar("decoder_ffn_dim", defaults["mlp_width"])

    return {
        "family": "encoder_decoder",
        "vocabulary_size": hf_config.scalar("vocab_size", defaults["vocabulary_size"]),
        "layers": layers,
        "heads": heads,
        "mlp_width": none_if(mlp_width, 4 * width),
        "encoder_layers": none_if(encoder_layers, layers),
        "encoder_heads": none_if(encoder_heads, heads),
        "encoder_mlp_width": none_if(encoder_mlp, mlp_width),
        "width": width,
        "context_length": hf_config.scalar("max_position_embeddings", defaults["context_length"]),
        "embedding_scaling": hf_config.scalar("scale_embedding", False, bool),
        "activation": hf_config.choice("activation_function", ACTIVATIONS, "gelu"),
        "head_bias": tensors.any("final_logits_bias"),
        "dropout": hf_config.scalar("dropout", 0.1, float),
        "attention_dropout": hf_config.scalar("attention_dropout", 0.0, float),
        "initializer": "normal",
        "initializer_std": hf_config.scalar("init_std", 0.02, float),
    }


def write_bart(model: ModelConfig) -> dict[str, Any]:
    encoder = model.encoder
    return {
        "vocab_size": model.vocabulary_size,
        "d_model": model.width,
        "encoder_layers": encoder.layers,
        "encoder_attention_heads": encoder.heads,
        "encoder_ffn_dim": encoder.hidden_width,
        "decoder_layers": model.layers,
        "decoder_attention_heads": model.heads,
        "decoder_ffn_dim": model.hidden_width,
        "max_position_embeddings": model.context_length,
        "activation_function": ACTIVATION_NAMES[model.activation],
        "scale_embedding": model.embedding_scaling,
        "tie_word_embeddings": True,
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "init_std": model.initializer_std,
        "is_encoder_decoder": True,
    }


def bart_attention_rules(tensor: str, parameter: str) -> tuple[Rule, ...]:
    return (
        *input_projection_rules(f"{tensor}.q_proj", f"{parameter}.query"),
        *input_projection_rules(f"{tensor}.k_proj", f"{parameter}.key"),
        *input_projection_rules(f"{tensor}.v_proj", f"{parameter}.value"),
        *output_projection_rules(f"{tensor}.out_proj", f"{parameter}.output"),
    )


def bart_stack_rules(name: str) -> tuple[Rule, ...]:
    layer, blocks = f"model.{name}.layers.{{}}", f"{name}.blocks"
    return (
        Rule(f"model.{name}.embed_positions.weight", "p d", (f"{name}.embedding.positions",), "pd"),
        *norm_rules(f"model.{name}.layernorm_embedding", f"{name}.embedding.norm"),
        *bart_attention_rules(f"{layer}.self_attn", f"{blocks}.attention"),
        *norm_rules(f"{layer}.self_attn_layer_norm", f"{blocks}.attention_norm"),
        *mlp_rules(f"{layer}.fc1", f"{layer}.fc2", f"{blocks}.mlp"),
        *norm_rules(f"{layer}.final_layer_norm", f"{blocks}.mlp_norm"),
    )


BART_CROSS_ATTENTION = "model.decoder.layers.{}.encoder_attn"
BART_TOKEN_TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
BART = Architecture(
    model_type="bart",
    classes=("BartForConditionalGeneration", "BartModel"),
    family="encoder_decoder",
    read=read_bart,
    write=write_bart,
    rules=(
        Rule("model.shared.weight", "v d", ("encoder.embedding.tokens",), "vd"),
        *bart_stack_rules("encoder"),
        *bart_stack_rules("decoder"),
        *bart_attention_rules(BART_CROSS_ATTENTION, "decoder.blocks.cross_attention"),
        *norm_rules(f"{BART_CROSS_ATTENTION}_layer_norm", "decoder.blocks.cross_attention_norm"),
        Rule("final_logits_bias", "o v", ("decoder.head.bias",), "v", zeros=True),
    ),
    root="model.",
    ignored=(r"(model\.)?(encoder|decoder)\.version",),
    aliases=dict.fromkeys((*BART_TOKEN_TABLES, "lm_head.weight"), "model.shared.weight"),
)
