"""Which published model a shape is like, and what it is made of in words."""

from typing import Any, NamedTuple

from jaxlm.config import Model


class Kin(NamedTuple):
    name: str
    family: str
    same: dict[str, Any]  # fields of config.Model that must be like this


# The first that fits. What is left open is size; biases and the like that vary within a family of models are too.
PUBLISHED = (
    Kin("Gemma 2", "decoder", {"norm_placement": "both", "norm": "rmsnorm", "positions": "rotary", "gated": True}),
    Kin("GPT-NeoX", "decoder", {"residual": "parallel", "positions": "rotary", "norm": "layernorm", "gated": False}),
    Kin("BLOOM", "decoder", {"positions": "alibi", "norm": "layernorm", "embedding_norm": True, "gated": False}),
    Kin("Llama", "decoder", {"positions": "rotary", "norm": "rmsnorm", "gated": True, "activation": "silu", "norm_placement": "pre"}),
    Kin("OPT", "decoder", {"positions": "learned", "norm": "layernorm", "activation": "relu", "gated": False}),
    Kin(
        "GPT-2",
        "decoder",
        {"positions": "learned", "norm": "layernorm", "norm_placement": "pre", "activation": "gelu_tanh", "gated": False},
    ),
    Kin("ModernBERT", "encoder", {"positions": "rotary", "norm_placement": "pre", "gated": True}),
    Kin("RoBERTa", "encoder", {"positions": "learned", "norm_placement": "post", "position_offset": 2, "gated": False}),
    Kin("BERT", "encoder", {"positions": "learned", "norm_placement": "post", "position_offset": 0, "gated": False}),
    Kin("T5 v1.1", "encoder_decoder", {"positions": "relative", "norm": "rmsnorm", "gated": True}),
    Kin("T5", "encoder_decoder", {"positions": "relative", "norm": "rmsnorm", "activation": "relu", "gated": False}),
    Kin("BART", "encoder_decoder", {"positions": "learned", "norm_placement": "post", "embedding_norm": True}),
    Kin("the original Transformer", "encoder_decoder", {"positions": "sinusoidal", "norm_placement": "post"}),
)

ACTIVATIONS = {"gelu": "GELU", "gelu_tanh": "GELU (tanh)", "relu": "ReLU", "relu_squared": "squared ReLU", "silu": "SiLU"}
NORMS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}
PLACEMENTS = {
    "pre": "before each sublayer",
    "post": "after each sublayer and its residual",
    "both": "before each sublayer and on its output",
}


def like(model: Model) -> str:
    """The published model of this shape; "" if none is near."""
    fits = (kin for kin in PUBLISHED if kin.family == model.family)
    return next((kin.name for kin in fits if all(getattr(model, key) == value for key, value in kin.same.items())), "")


def positions(model: Model) -> str:
    if model.positions == "rotary":
        scaling = "" if model.rotary_scaling == "none" else f", {model.rotary_scaling} scaling by {model.rotary_scaling_factor:g}"
        share = "" if model.rotary_share == 1 else f", {model.rotary_share:.0%} of each head"
        return f"rotary, theta {model.rotary_theta:,.0f}{share}{scaling}"
    if model.positions == "relative":
        return f"relative, {model.relative_buckets} buckets up to distance {model.relative_max_distance}"
    return {"alibi": "ALiBi"}.get(model.positions, model.positions)


def mlp(model: Model) -> str:
    return ("gated, " if model.gated else "") + ACTIVATIONS[model.activation]


def norm(model: Model) -> str:
    return f"{NORMS[model.norm]}, {PLACEMENTS[model.norm_placement]}"


def attention(model: Model) -> str:
    if model.sliding_window is None:
        return "full"
    reach = f"sliding window of {model.sliding_window:,}"
    return f"{reach}; layers in turn: {', '.join(model.attention_pattern)}" if model.attention_pattern else reach
