"""Which published model a shape is like, and what it is made of in words."""

from typing import Any, NamedTuple

from jaxlm.config import ModelConfig


class SimilarModel(NamedTuple):
    name: str
    family: str
    same: dict[str, Any]  # fields of config.ModelConfig that must be like this


# The first that fits. What is left open is size; biases and the like that vary within a family of models are too.
PUBLISHED = (
    SimilarModel(
        "Gemma 2",
        "decoder",
        {"norm_placement": "both", "norm": "rmsnorm", "positions": "rotary", "gated": True},
    ),
    SimilarModel(
        "GPT-NeoX",
        "decoder",
        {"residual": "parallel", "positions": "rotary", "norm": "layernorm", "gated": False},
    ),
    SimilarModel(
        "BLOOM",
        "decoder",
        {"positions": "alibi", "norm": "layernorm", "embedding_norm": True, "gated": False},
    ),
    SimilarModel(
        "Llama",
        "decoder",
        {
            "positions": "rotary",
            "norm": "rmsnorm",
            "gated": True,
            "activation": "silu",
            "norm_placement": "pre",
        },
    ),
    SimilarModel(
        "OPT",
        "decoder",
        {"positions": "learned", "norm": "layernorm", "activation": "relu", "gated": False},
    ),
    SimilarModel(
        "GPT-2",
        "decoder",
        {
            "positions": "learned",
            "norm": "layernorm",
            "norm_placement": "pre",
            "activation": "gelu_tanh",
            "gated": False,
        },
    ),
    SimilarModel(
        "ModernBERT", "encoder", {"positions": "rotary", "norm_placement": "pre", "gated": True}
    ),
    SimilarModel(
        "RoBERTa",
        "encoder",
        {"positions": "learned", "norm_placement": "post", "position_offset": 2, "gated": False},
    ),
    SimilarModel(
        "BERT",
        "encoder",
        {"positions": "learned", "norm_placement": "post", "position_offset": 0, "gated": False},
    ),
    SimilarModel(
        "T5 v1.1", "encoder_decoder", {"positions": "relative", "norm": "rmsnorm", "gated": True}
    ),
    SimilarModel(
        "T5",
        "encoder_decoder",
        {"positions": "relative", "norm": "rmsnorm", "activation": "relu", "gated": False},
    ),
    SimilarModel(
        "BART",
        "encoder_decoder",
        {"positions": "learned", "norm_placement": "post", "embedding_norm": True},
    ),
    SimilarModel(
        "the original Transformer",
        "encoder_decoder",
        {"positions": "sinusoidal", "norm_placement": "post"},
    ),
)

ACTIVATIONS = {
    "gelu": "GELU",
    "gelu_tanh": "GELU (tanh)",
    "relu": "ReLU",
    "relu_squared": "squared ReLU",
    "silu": "SiLU",
}
NORMS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}
PLACEMENTS = {
    "pre": "before each sublayer",
    "post": "after each sublayer and its residual",
    "both": "before each sublayer and on its output",
}


def similar_models(model: ModelConfig) -> str:
    """The published model of this shape; "" if none is near."""
    fits = (kin for kin in PUBLISHED if kin.family == model.family)
    return next(
        (
            kin.name
            for kin in fits
            if all(getattr(model, key) == value for key, value in kin.same.items())
        ),
        "",
    )


def positions(model: ModelConfig) -> str:
    if model.positions == "rotary":
        scaling = (
            ""
            if model.rotary_scaling == "none"
            else f", {model.rotary_scaling} scaling by {model.rotary_scaling_factor:g}"
        )
        share = "" if model.rotary_share == 1 else f", {model.rotary_share:.0%} of each head"
        return f"rotary, theta {model.rotary_theta:,.0f}{share}{scaling}"
    if model.positions == "relative":
        return f"relative, {model.relative_buckets} buckets up to distance {model.relative_max_distance}"
    return {"alibi": "ALiBi"}.get(model.positions, model.positions)


def mlp(model: ModelConfig) -> str:
    return ("gated, " if model.gated else "") + ACTIVATIONS[model.activation]


def norm(model: ModelConfig) -> str:
    return f"{NORMS[model.norm]}, {PLACEMENTS[model.norm_placement]}"


def attention(model: ModelConfig) -> str:
    if model.sliding_window is None:
        return "full"
    reach = f"sliding window of {model.sliding_window:,}"
    return (
        f"{reach}; layers in turn: {', '.join(model.attention_pattern)}"
        if model.attention_pattern
        else reach
    )
