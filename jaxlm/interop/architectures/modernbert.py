"""ModernBERT (ModernBertForMaskedLM): pre-norm, rotary, gated, most layers with a window. The first layer's attention has no norm."""

from collections.abc import Sequence
from typing import Any

from jaxlm import config
from jaxlm.interop.architectures.bert import norm, transform
from jaxlm.interop.architectures.common import (
    ACTIVATIONS,
    KINDS,
    NAMES,
    check_heads,
    layer_types,
    read_windows,
    refuse_extras,
    unless,
)
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, Weights

FULL, SLIDING = "full_attention", "sliding_attention"
# Their defaults, which are refused where the vocabulary ends before.
TOKENS = {
    "pad_token_id": 50283,
    "eos_token_id": 50282,
    "bos_token_id": 50281,
    "cls_token_id": 50281,
    "sep_token_id": 50282,
}


def read(settings: HFConfig, weights: Weights) -> config.ModelConfig:
    refuse_extras(settings)
    settings.fixed({"is_decoder": False, "position_embedding_type": ("absolute", "sans_pos")})
    width, heads = settings.number("hidden_size", 768), settings.number("num_attention_heads", 12)
    check_heads(settings, width, heads)
    settings.fixed({"head_dim": width // max(1, heads)})
    activation = settings.choice("hidden_activation", ACTIVATIONS, "gelu")
    return config.ModelConfig(
        family="encoder",
        vocabulary_size=settings.number("vocab_size", 50368),
        layers=settings.number("num_hidden_layers", 22),
        heads=heads,
        mlp_width=unless(settings.number("intermediate_size", 1152), 4 * width),
        width=width,
        context_length=settings.number("max_position_embeddings", 8192),
        norm_epsilon=settings.number("norm_eps", 1e-5, float),
        first_norm=False,
        embedding_norm=True,
        **read_attention(settings),
        activation=activation,
        gated=True,
        attention_bias=settings.number("attention_bias", False, bool),
        attention_output_bias=settings.number("attention_bias", False, bool),
        mlp_bias=settings.number("mlp_bias", False, bool),
        norm_bias=settings.number("norm_bias", False, bool),
        head_bias=settings.number("decoder_bias", True, bool),
        head_transform=True,
        head_transform_bias=settings.number("classifier_bias", False, bool),
        head_activation=unless(
            settings.choice("classifier_activation", ACTIVATIONS, "gelu"), activation
        ),
        tied_head=settings.number("tie_word_embeddings", True, bool),
        dropout=settings.number("embedding_dropout", 0.0, float),
        attention_dropout=settings.number("attention_dropout", 0.0, float),
        initializer="normal",
        initializer_std=settings.number("initializer_range", 0.02, float),
    )


def read_attention(settings: HFConfig) -> dict[str, Any]:
    """Windows and rotary positions. `local_attention` counts both sides, without the token itself."""
    layers, half = (
        settings.number("num_hidden_layers", 22),
        settings.number("local_attention", 128) // 2,
    )
    settings.fixed({"sliding_window": half})
    fields = read_windows(settings, read_kinds(settings, layers), layers, half + 1)
    full, sliding = (
        read_theta(settings, FULL, "global_rope_theta", 160000.0),
        read_theta(settings, SLIDING, "local_rope_theta", 10000.0),
    )
    if (
        fields["sliding_window"] is None
        or "attention_pattern" not in fields
        or not fields["attention_pattern"]
    ):
        thetas = {"rotary_theta": full if fields["sliding_window"] is None else sliding}
    else:
        thetas = {"rotary_theta": full, "rotary_theta_sliding": unless(sliding, full)}
    return {"positions": "rotary"} | fields | thetas


def read_kinds(settings: HFConfig, layers: int) -> Sequence[str]:
    kinds, period = settings.words("layer_types"), settings.number("global_attn_every_n_layers", 3)
    if kinds is not None:
        return kinds
    if period < 1:
        settings.refuse("global_attn_every_n_layers", f"must be at least 1, got {period}")
    return every(period, layers)


def every(period: int, layers: int) -> list[str]:
    return [SLIDING if i % period else FULL for i in range(layers)]


def read_theta(settings: HFConfig, kind: str, old: str, default: float) -> float:
    """The base of a kind of layers, in the form of transformers 4 or 5. Both may be there, but must agree."""
    settings.fixed({"rope_scaling": ({"rope_type": "default"}, {"type": "default"})})
    parameters = settings.section("rope_parameters")
    for key in parameters.values if parameters else ():
        if key not in KINDS:
            settings.refuse(
                "rope_parameters",
                f"{key!r} is not supported; it has one object for each of {' and '.join(KINDS)}",
            )
    section = parameters.section(kind) if parameters else None
    new = None
    if section is not None:
        section.fixed({"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0})
        new = section.number("rope_theta", None, float)
    theta = settings.number(old, default if new is None else new, float)
    if new is not None and theta != new:
        settings.refuse(old, f"{theta} contradicts rope_parameters.{kind}.rope_theta ({new})")
    return theta


def write(model: config.ModelConfig) -> dict[str, Any]:
    kinds = layer_types(model)
    sliding = model.rotary_theta_sliding or model.rotary_theta
    head_activation = model.head_activation or model.activation
    # Where it doesn't say the pattern, transformers 4, which reads nothing else, stops at 0.
    period = next((n for n in range(1, model.layers + 1) if every(n, model.layers) == kinds), 0)
    tokens = {name: None for name, default in TOKENS.items() if default >= model.vocabulary_size}
    return tokens | {
        "vocab_size": model.vocabulary_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "intermediate_size": model.hidden_width,
        "max_position_embeddings": model.context_length,
        "norm_eps": model.norm_epsilon,
        "norm_bias": model.norm_bias,
        "hidden_activation": NAMES[model.activation],
        "attention_bias": model.attention_bias,
        "mlp_bias": model.mlp_bias,
        "layer_types": kinds,
        "global_attn_every_n_layers": period,
        "local_attention": 2 * ((model.sliding_window or 65) - 1),
        "rope_parameters": {
            FULL: {"rope_type": "default", "rope_theta": model.rotary_theta},
            SLIDING: {"rope_type": "default", "rope_theta": sliding},
        },
        "global_rope_theta": model.rotary_theta,
        "local_rope_theta": sliding,
        "classifier_bias": model.head_transform_bias,
        "classifier_activation": NAMES[head_activation],
        "decoder_bias": model.head_bias,
        "tie_word_embeddings": model.tied_head,
        "embedding_dropout": model.dropout,
        "mlp_dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "initializer_range": model.initializer_std,
    }


LAYER = "model.layers.{}"
QUERY_KEY_VALUE = ("query", "key", "value")
MODERNBERT = Architecture(
    model_type="modernbert",
    classes=("ModernBertForMaskedLM",),
    family="encoder",
    read=read,
    write=write,
    rules=(
        Rule("model.embeddings.tok_embeddings.weight", "v d", ("embedding.tokens",), "vd"),
        *norm("model.embeddings.norm", "embedding.norm"),
        Rule(f"{LAYER}.attn_norm.weight", "d", ("blocks.attention_norm.scale",), "d", first=1),
        Rule(f"{LAYER}.attn_norm.bias", "d", ("blocks.attention_norm.bias",), "d", first=1),
        Rule(
            f"{LAYER}.attn.Wqkv.weight",
            "3hk d",
            tuple(f"blocks.attention.{name}_kernel" for name in QUERY_KEY_VALUE),
            "dhk",
        ),
        Rule(
            f"{LAYER}.attn.Wqkv.bias",
            "3hk",
            tuple(f"blocks.attention.{name}_bias" for name in QUERY_KEY_VALUE),
            "hk",
        ),
        Rule(f"{LAYER}.attn.Wo.weight", "d hk", ("blocks.attention.output_kernel",), "hkd"),
        Rule(f"{LAYER}.attn.Wo.bias", "d", ("blocks.attention.output_bias",), "d"),
        *norm(f"{LAYER}.mlp_norm", "blocks.mlp_norm"),
        Rule(
            f"{LAYER}.mlp.Wi.weight",
            "2f d",
            ("blocks.mlp.gate_kernel", "blocks.mlp.up_kernel"),
            "df",
        ),
        Rule(f"{LAYER}.mlp.Wi.bias", "2f", ("blocks.mlp.gate_bias", "blocks.mlp.up_bias"), "f"),
        Rule(f"{LAYER}.mlp.Wo.weight", "d f", ("blocks.mlp.down_kernel",), "fd"),
        Rule(f"{LAYER}.mlp.Wo.bias", "d", ("blocks.mlp.down_bias",), "d"),
        *norm("model.final_norm", "final_norm"),
        *transform("head.dense", "head.norm"),
        Rule("decoder.weight", "v d", ("head.kernel",), "dv"),
        Rule("decoder.bias", "v", ("head.bias",), "v"),
    ),
    root="model.",
    aliases={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)
