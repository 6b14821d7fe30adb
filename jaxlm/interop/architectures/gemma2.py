"""Gemma 2: norms before and after each sublayer that multiply by 1 + weight, soft-caps, windows on every other layer."""

from typing import Any

from jaxlm import config
from jaxlm.interop.architectures.common import (
    ACTIVATIONS,
    NAMES,
    check_heads,
    layer_types,
    read_windows,
)
from jaxlm.interop.architectures.llama import (
    ATTENTION_RULES,
    BLOCK,
    BUFFERS,
    OTHER_RULES,
    TIED,
    read_gated,
    write_gated,
)
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, Weights

SIZES = {
    "vocabulary_size": 256000,
    "width": 2304,
    "mlp_width": 9216,
    "layers": 26,
    "heads": 8,
    "kv_heads": 4,
    "head_width": 256,
}


def read(settings: HFConfig, weights: Weights) -> config.ModelConfig:
    """`hidden_act`, which old files have too, is not read by the class."""
    settings.fixed({"use_bidirectional_attention": False})
    fields = read_gated(settings, 8192, SIZES)
    heads, width, layers = fields["heads"], fields["width"], fields["layers"]
    check_heads(settings, width, heads)
    kinds = settings.words("layer_types")
    if kinds is None:
        kinds = tuple(
            "full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)
        )
    scalar = settings.number("query_pre_attn_scalar", 256, float)
    if scalar <= 0:
        settings.refuse("query_pre_attn_scalar", f"must be above 0, got {scalar}")
    head_width = fields["head_width"] or width // max(heads, 1)
    bias = settings.number("attention_bias", False, bool)
    fields |= read_windows(
        settings, kinds, layers, settings.number("sliding_window", 4096, null=True)
    )
    return config.ModelConfig(
        **fields,
        norm_placement="both",
        norm_offset=True,
        embedding_scaling=True,
        activation=settings.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        attention_bias=bias,
        attention_output_bias=bias,
        attention_scale=None if scalar == head_width else scalar**-0.5,
        attention_softcap=settings.number("attn_logit_softcapping", 50.0, float, null=True),
        logit_softcap=settings.number("final_logit_softcapping", 30.0, float, null=True),
        tied_head=settings.number("tie_word_embeddings", True, bool),
    )


def write(model: config.ModelConfig) -> dict[str, Any]:
    """The scalar is a whole number in the class: a scale that has none is not the same when it is read again."""
    return write_gated(model) | {
        "hidden_activation": NAMES[model.activation],
        "hidden_act": NAMES[model.activation],
        "attention_bias": model.attention_bias,
        "query_pre_attn_scalar": model.width_per_head
        if model.attention_scale is None
        else max(round(model.attention_scale**-2), 1),
        "attn_logit_softcapping": model.attention_softcap,
        "final_logit_softcapping": model.logit_softcap,
        "sliding_window": model.sliding_window,
        "layer_types": layer_types(model),
    }


RULES = (
    *ATTENTION_RULES,
    Rule(
        f"{BLOCK}.post_attention_layernorm.weight", "d", ("blocks.attention_post_norm.scale",), "d"
    ),
    Rule(f"{BLOCK}.pre_feedforward_layernorm.weight", "d", ("blocks.mlp_norm.scale",), "d"),
    Rule(f"{BLOCK}.post_feedforward_layernorm.weight", "d", ("blocks.mlp_post_norm.scale",), "d"),
    *OTHER_RULES,
)

GEMMA2 = Architecture(
    "gemma2", ("Gemma2ForCausalLM",), "decoder", read, write, RULES, "model.", BUFFERS, TIED
)
