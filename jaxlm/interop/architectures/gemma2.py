"""Gemma 2: norms before and after each sublayer, soft-caps, windows on every other layer.

Its norms multiply by 1 + weight.
"""

from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.interop.architectures.common import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    check_heads,
    read_windows,
    write_layer_types,
)
from jaxlm.interop.architectures.llama import (
    LLAMA_ALIASES,
    LLAMA_ATTENTION_RULES,
    LLAMA_BLOCK,
    LLAMA_BUFFERS,
    LLAMA_COMMON_RULES,
    read_llama_like,
    write_llama_like,
)
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, TensorPresence

CLASS_WINDOW = 4096
GEMMA2_DEFAULTS = {
    "vocabulary_size": 256000,
    "width": 2304,
    "mlp_width": 9216,
    "layers": 26,
    "heads": 8,
    "kv_heads": 4,
    "head_width": 256,
}


def read_gemma2(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    """Return the model of a Gemma 2 config.json.

    Old files have `hidden_act` too, which the class does not read.
    """
    hf_config.require({"use_bidirectional_attention": False})
    fields = read_llama_like(hf_config, 8192, GEMMA2_DEFAULTS)
    heads, width, layers = fields["heads"], fields["width"], fields["layers"]
    check_heads(hf_config, width, heads)
    layer_kinds = hf_config.strings("layer_types")
    if layer_kinds is None:
        layer_kinds = tuple(
            "full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)
        )
    scalar = hf_config.scalar("query_pre_attn_scalar", 256, float)
    if scalar <= 0:
        hf_config.refuse("query_pre_attn_scalar", f"must be above 0, got {scalar}")
    head_width = fields["head_width"] or width // max(heads, 1)
    bias = hf_config.scalar("attention_bias", False, bool)
    fields |= read_windows(
        hf_config,
        layer_kinds,
        layers,
        hf_config.scalar("sliding_window", CLASS_WINDOW, allow_null=True),
    )

    return ModelConfig(
        **fields,
        norm_placement="both",
        norm_offset=True,
        embedding_scaling=True,
        activation=hf_config.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        attention_bias=bias,
        attention_output_bias=bias,
        attention_scale=None if scalar == head_width else scalar**-0.5,
        attention_softcap=hf_config.scalar("attn_logit_softcapping", 50.0, float, allow_null=True),
        logit_softcap=hf_config.scalar("final_logit_softcapping", 30.0, float, allow_null=True),
        tied_head=hf_config.scalar("tie_word_embeddings", True, bool),
    )


def write_gemma2(model: ModelConfig) -> dict[str, Any]:
    """Return the values of config.json.

    `query_pre_attn_scalar` is a whole number in the class. A scale that no whole number gives is
    not the same when it is read again, which refuses the architecture.
    """
    return write_llama_like(model) | {
        "hidden_activation": ACTIVATION_NAMES[model.activation],
        "hidden_act": ACTIVATION_NAMES[model.activation],
        "attention_bias": model.attention_bias,
        "query_pre_attn_scalar": model.width_per_head
        if model.attention_scale is None
        else max(round(model.attention_scale**-2), 1),
        "attn_logit_softcapping": model.attention_softcap,
        "final_logit_softcapping": model.logit_softcap,
        # The class makes a mask of it even where `layer_types` has no layer with a window.
        "sliding_window": model.sliding_window or CLASS_WINDOW,
        "layer_types": write_layer_types(model),
    }


GEMMA2_RULES = (
    *LLAMA_ATTENTION_RULES,
    Rule(
        f"{LLAMA_BLOCK}.post_attention_layernorm.weight",
        "d",
        ("blocks.attention_post_norm.scale",),
        "d",
    ),
    Rule(f"{LLAMA_BLOCK}.pre_feedforward_layernorm.weight", "d", ("blocks.mlp_norm.scale",), "d"),
    Rule(
        f"{LLAMA_BLOCK}.post_feedforward_layernorm.weight",
        "d",
        ("blocks.mlp_post_norm.scale",),
        "d",
    ),
    *LLAMA_COMMON_RULES,
)

GEMMA2 = Architecture(
    "gemma2",
    ("Gemma2ForCausalLM",),
    "decoder",
    read_gemma2,
    write_gemma2,
    GEMMA2_RULES,
    "model.",
    LLAMA_BUFFERS,
    LLAMA_ALIASES,
)
