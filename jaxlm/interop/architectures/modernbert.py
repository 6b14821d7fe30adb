"""ModernBERT (ModernBertForMaskedLM): pre-norm, rotary, gated, most layers with a window.

The attention of the first layer has no norm.
"""

from collections.abc import Sequence
from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.interop.architectures.bert import head_transform_rules, norm_rules
from jaxlm.interop.architectures.common import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    LAYER_TYPES,
    check_heads,
    none_if,
    read_windows,
    refuse_unsupported,
    write_layer_types,
)
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, TensorPresence

FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
# Defaults of the class, which refuses them in a smaller vocabulary.
MODERNBERT_TOKEN_IDS = {
    "pad_token_id": 50283,
    "eos_token_id": 50282,
    "bos_token_id": 50281,
    "cls_token_id": 50281,
    "sep_token_id": 50282,
}


def read_modernbert(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    refuse_unsupported(hf_config)
    hf_config.require({"is_decoder": False, "position_embedding_type": ("absolute", "sans_pos")})
    width = hf_config.scalar("hidden_size", 768)
    heads = hf_config.scalar("num_attention_heads", 12)
    check_heads(hf_config, width, heads)
    hf_config.require({"head_dim": width // max(1, heads)})
    activation = hf_config.choice("hidden_activation", ACTIVATIONS, "gelu")

    return ModelConfig(
        family="encoder",
        vocabulary_size=hf_config.scalar("vocab_size", 50368),
        layers=hf_config.scalar("num_hidden_layers", 22),
        heads=heads,
        mlp_width=none_if(hf_config.scalar("intermediate_size", 1152), 4 * width),
        width=width,
        context_length=hf_config.scalar("max_position_embeddings", 8192),
        norm_epsilon=hf_config.scalar("norm_eps", 1e-5, float),
        first_norm=False,
        embedding_norm=True,
        **read_modernbert_attention(hf_config),
        activation=activation,
        gated=True,
        attention_bias=hf_config.scalar("attention_bias", False, bool),
        attention_output_bias=hf_config.scalar("attention_bias", False, bool),
        mlp_bias=hf_config.scalar("mlp_bias", False, bool),
        norm_bias=hf_config.scalar("norm_bias", False, bool),
        head_bias=hf_config.scalar("decoder_bias", True, bool),
        head_transform=True,
        head_transform_bias=hf_config.scalar("classifier_bias", False, bool),
        head_activation=none_if(
            hf_config.choice("classifier_activation", ACTIVATIONS, "gelu"), activation
        ),
        tied_head=hf_config.scalar("tie_word_embeddings", True, bool),
        dropout=hf_config.scalar("embedding_dropout", 0.0, float),
        attention_dropout=hf_config.scalar("attention_dropout", 0.0, float),
        initializer="normal",
        initializer_std=hf_config.scalar("initializer_range", 0.02, float),
    )


def read_modernbert_attention(hf_config: HFConfig) -> dict[str, Any]:
    """Return the fields of windows and rotary positions.

    `local_attention` counts both sides, without the token itself.
    """
    layers = hf_config.scalar("num_hidden_layers", 22)
    half = hf_config.scalar("local_attention", 128) // 2
    hf_config.require({"sliding_window": half})
    fields = read_windows(hf_config, read_layer_types(hf_config, layers), layers, half + 1)
    full = read_modernbert_theta(hf_config, FULL_ATTENTION, "global_rope_theta", 160000.0)
    sliding = read_modernbert_theta(hf_config, SLIDING_ATTENTION, "local_rope_theta", 10000.0)
    if fields["sliding_window"] is None:
        thetas = {"rotary_theta": full}
    elif not fields.get("attention_pattern"):
        thetas = {"rotary_theta": sliding}
    else:
        thetas = {"rotary_theta": full, "rotary_theta_sliding": none_if(sliding, full)}

    return {"positions": "rotary"} | fields | thetas


def read_layer_types(hf_config: HFConfig, layers: int) -> Sequence[str]:
    """Return the type of each layer, from either of the two keys."""
    layer_types = hf_config.strings("layer_types")
    period = hf_config.scalar("global_attn_every_n_layers", 3)
    if layer_types is not None:
        return layer_types
    if period < 1:
        hf_config.refuse("global_attn_every_n_layers", f"must be at least 1, got {period}")
    return alternating_layer_types(period, layers)


def alternating_layer_types(period: int, layers: int) -> list[str]:
    """Return full attention for every `period`-th layer, beginning with the first."""
    return [SLIDING_ATTENTION if i % period else FULL_ATTENTION for i in range(layers)]


def read_modernbert_theta(
    hf_config: HFConfig, layer_type: str, old_key: str, default: float
) -> float:
    """Return the rotary base of a type of layers.

    transformers 4 has it under `old_key`, 5 in `rope_parameters`. Where a file has both they must
    agree.
    """
    hf_config.require({"rope_scaling": ({"rope_type": "default"}, {"type": "default"})})
    parameters = hf_config.nested("rope_parameters")
    for key in parameters.values if parameters else ():
        if key not in LAYER_TYPES:
            hf_config.refuse(
                "rope_parameters",
                f"{key!r} is not supported; "
                f"there must be one object for each of {' and '.join(LAYER_TYPES)}",
            )
    section = parameters.nested(layer_type) if parameters else None
    new = None
    if section is not None:
        section.require({"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0})
        new = section.scalar("rope_theta", None, float)
    theta = hf_config.scalar(old_key, default if new is None else new, float)
    if new is not None and theta != new:
        hf_config.refuse(
            old_key, f"{theta} contradicts rope_parameters.{layer_type}.rope_theta ({new})"
        )

    return theta


def write_modernbert(model: ModelConfig) -> dict[str, Any]:
    layer_types = write_layer_types(model)
    sliding = model.rotary_theta_sliding or model.rotary_theta
    head_activation = model.head_activation or model.activation
    # A period of 0 stops transformers 4, which reads only the period, where that isn't the pattern.
    period = next(
        (
            n
            for n in range(1, model.layers + 1)
            if alternating_layer_types(n, model.layers) == layer_types
        ),
        0,
    )
    tokens = {
        name: None
        for name, default in MODERNBERT_TOKEN_IDS.items()
        if default >= model.vocabulary_size
    }

    return tokens | {
        "vocab_size": model.vocabulary_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": model.hidden_width,
        "max_position_embeddings": model.context_length,
        "norm_eps": model.norm_epsilon,
        "norm_bias": model.norm_bias,
        "hidden_activation": ACTIVATION_NAMES[model.activation],
        "attention_bias": model.attention_bias,
        "mlp_bias": model.mlp_bias,
        "layer_types": layer_types,
        "global_attn_every_n_layers": period,
        "local_attention": 2 * ((model.sliding_window or 65) - 1),
        "rope_parameters": {
            FULL_ATTENTION: {"rope_type": "default", "rope_theta": model.rotary_theta},
            SLIDING_ATTENTION: {"rope_type": "default", "rope_theta": sliding},
        },
        "global_rope_theta": model.rotary_theta,
        "local_rope_theta": sliding,
        "classifier_bias": model.head_transform_bias,
        "classifier_activation": ACTIVATION_NAMES[head_activation],
        "decoder_bias": model.head_bias,
        "tie_word_embeddings": model.tied_head,
        "embedding_dropout": model.dropout,
        "mlp_dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "initializer_range": model.initializer_std,
    }


MODERNBERT_LAYER = "model.layers.{}"
QUERY_KEY_VALUE = ("query", "key", "value")
MODERNBERT = Architecture(
    model_type="modernbert",
    classes=("ModernBertForMaskedLM",),
    family="encoder",
    read=read_modernbert,
    write=write_modernbert,
    rules=(
        Rule("model.embeddings.tok_embeddings.weight", "v d", ("embedding.tokens",), "vd"),
        *norm_rules("model.embeddings.norm", "embedding.norm"),
        Rule(
            f"{MODERNBERT_LAYER}.attn_norm.weight",
            "d",
            ("blocks.attention_norm.scale",),
            "d",
            first_layer=1,
        ),
        Rule(
            f"{MODERNBERT_LAYER}.attn_norm.bias",
            "d",
            ("blocks.attention_norm.bias",),
            "d",
            first_layer=1,
        ),
        Rule(
            f"{MODERNBERT_LAYER}.attn.Wqkv.weight",
            "3hk d",
            tuple(f"blocks.attention.{name}_kernel" for name in QUERY_KEY_VALUE),
            "dhk",
        ),
        Rule(
            f"{MODERNBERT_LAYER}.attn.Wqkv.bias",
            "3hk",
            tuple(f"blocks.attention.{name}_bias" for name in QUERY_KEY_VALUE),
            "hk",
        ),
        Rule(
            f"{MODERNBERT_LAYER}.attn.Wo.weight", "d hk", ("blocks.attention.output_kernel",), "hkd"
        ),
        Rule(f"{MODERNBERT_LAYER}.attn.Wo.bias", "d", ("blocks.attention.output_bias",), "d"),
        *norm_rules(f"{MODERNBERT_LAYER}.mlp_norm", "blocks.mlp_norm"),
        Rule(
            f"{MODERNBERT_LAYER}.mlp.Wi.weight",
            "2f d",
            ("blocks.mlp.gate_kernel", "blocks.mlp.up_kernel"),
            "df",
        ),
        Rule(
            f"{MODERNBERT_LAYER}.mlp.Wi.bias",
            "2f",
            ("blocks.mlp.gate_bias", "blocks.mlp.up_bias"),
            "f",
        ),
        Rule(f"{MODERNBERT_LAYER}.mlp.Wo.weight", "d f", ("blocks.mlp.down_kernel",), "fd"),
        Rule(f"{MODERNBERT_LAYER}.mlp.Wo.bias", "d", ("blocks.mlp.down_bias",), "d"),
        *norm_rules("model.final_norm", "final_norm"),
        *head_transform_rules("head.dense", "head.norm"),
        Rule("decoder.weight", "v d", ("head.kernel",), "dv"),
        Rule("decoder.bias", "v", ("head.bias",), "v"),
    ),
    root="model.",
    aliases={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)
