"""BART (BartForConditionalGeneration): post-norm, learned positions, one table of tokens for both stacks and the head."""

from typing import Any

from jaxlm import config
from jaxlm.interop.architectures.bert import from_heads, mlp, norm, to_heads
from jaxlm.interop.architectures.common import ACTIVATIONS, NAMES, known, unless
from jaxlm.interop.architectures.t5 import refuse_decoder_extras
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, Weights

OFFSET = 2  # rows of the position tables that no position uses
# What very old files say of variants that were dropped.
DROPPED = {
    "normalize_before": False,
    "normalize_embedding": True,
    "add_final_layer_norm": False,
    "static_position_embeddings": False,
    "extra_pos_embeddings": OFFSET,
}


# What a config.json leaves out.
SIZES = {
    "vocabulary_size": 50265,
    "width": 1024,
    "heads": 16,
    "layers": 12,
    "encoder_layers": 12,
    "mlp_width": 4096,
    "context_length": 1024,
}


def read(settings: HFConfig, weights: Weights) -> config.ModelConfig:
    settings.fixed(DROPPED | {"tie_word_embeddings": True})
    return config.ModelConfig(
        **read_stacks(settings, weights, SIZES),
        norm_placement="post",
        embedding_norm=True,
        position_offset=OFFSET,
    )


def read_stacks(settings: HFConfig, weights: Weights, sizes: dict[str, int]) -> dict[str, Any]:
    """What BART's relatives call the same; `sizes` are the class's own defaults.

    The bias of the logits is in every file, but stays zero unless somebody fills it: then it is read as none.
    """
    refuse_decoder_extras(settings)
    width = known(settings, ("d_model", "hidden_size"), sizes["width"])
    encoder_heads = known(
        settings, ("encoder_attention_heads", "num_attention_heads"), sizes["heads"]
    )
    heads = settings.number("decoder_attention_heads", sizes["heads"])
    for key, value in {
        "encoder_attention_heads": encoder_heads,
        "decoder_attention_heads": heads,
    }.items():
        if value > 0 and width % value:
            settings.refuse(key, f"{value} does not divide d_model ({width})")
    encoder_layers, layers = (
        settings.number("encoder_layers", sizes["encoder_layers"]),
        settings.number("decoder_layers", sizes["layers"]),
    )
    encoder_mlp, mlp_width = (
        settings.number("encoder_ffn_dim", sizes["mlp_width"]),
        settings.number("decoder_ffn_dim", sizes["mlp_width"]),
    )
    return {
        "family": "encoder_decoder",
        "vocabulary_size": settings.number("vocab_size", sizes["vocabulary_size"]),
        "layers": layers,
        "heads": heads,
        "mlp_width": unless(mlp_width, 4 * width),
        "encoder_layers": unless(encoder_layers, layers),
        "encoder_heads": unless(encoder_heads, heads),
        "encoder_mlp_width": unless(encoder_mlp, mlp_width),
        "width": width,
        "context_length": settings.number("max_position_embeddings", sizes["context_length"]),
        "embedding_scaling": settings.number("scale_embedding", False, bool),
        "activation": settings.choice("activation_function", ACTIVATIONS, "gelu"),
        "head_bias": weights.any("final_logits_bias"),
        "dropout": settings.number("dropout", 0.1, float),
        "attention_dropout": settings.number("attention_dropout", 0.0, float),
        "initializer": "normal",
        "initializer_std": settings.number("init_std", 0.02, float),
    }


def write(model: config.ModelConfig) -> dict[str, Any]:
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
        "activation_function": NAMES[model.activation],
        "scale_embedding": model.embedding_scaling,
        "tie_word_embeddings": True,
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "init_std": model.initializer_std,
        "is_encoder_decoder": True,
    }


def attention(theirs: str, ours: str) -> tuple[Rule, ...]:
    return (
        *to_heads(f"{theirs}.q_proj", f"{ours}.query"),
        *to_heads(f"{theirs}.k_proj", f"{ours}.key"),
        *to_heads(f"{theirs}.v_proj", f"{ours}.value"),
        *from_heads(f"{theirs}.out_proj", f"{ours}.output"),
    )


def stack(name: str) -> tuple[Rule, ...]:
    layer, blocks = f"model.{name}.layers.{{}}", f"{name}.blocks"
    return (
        Rule(f"model.{name}.embed_positions.weight", "p d", (f"{name}.embedding.positions",), "pd"),
        *norm(f"model.{name}.layernorm_embedding", f"{name}.embedding.norm"),
        *attention(f"{layer}.self_attn", f"{blocks}.attention"),
        *norm(f"{layer}.self_attn_layer_norm", f"{blocks}.attention_norm"),
        *mlp(f"{layer}.fc1", f"{layer}.fc2", f"{blocks}.mlp"),
        *norm(f"{layer}.final_layer_norm", f"{blocks}.mlp_norm"),
    )


CROSS = "model.decoder.layers.{}.encoder_attn"
TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
BART = Architecture(
    model_type="bart",
    classes=("BartForConditionalGeneration", "BartModel"),
    family="encoder_decoder",
    read=read,
    write=write,
    rules=(
        Rule("model.shared.weight", "v d", ("encoder.embedding.tokens",), "vd"),
        *stack("encoder"),
        *stack("decoder"),
        *attention(CROSS, "decoder.blocks.cross_attention"),
        *norm(f"{CROSS}_layer_norm", "decoder.blocks.cross_attention_norm"),
        Rule("final_logits_bias", "o v", ("decoder.head.bias",), "v", zeros=True),
    ),
    root="model.",
    ignored=(r"(model\.)?(encoder|decoder)\.version",),
    aliases=dict.fromkeys((*TABLES, "lm_head.weight"), "model.shared.weight"),
)
