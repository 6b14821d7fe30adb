"""Llama and the classes whose tensors have the same names: Mistral, Qwen 2 and Qwen 3."""

from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.interop.architectures.common import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    check_heads,
    none_if,
    read_windows,
    refuse_unsupported,
    write_layer_types,
)
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, TensorPresence
from jaxlm.interop.rope import read_rope, write_rope


def read_llama_like(
    hf_config: HFConfig, context_length: int, defaults: dict[str, int]
) -> dict[str, Any]:
    """Return the fields that Llama and Gemma 2 have in common.

    `context_length` and `defaults` are those of the class.
    """
    refuse_unsupported(hf_config)
    width = hf_config.scalar("hidden_size", defaults["width"])
    heads = hf_config.scalar("num_attention_heads", defaults["heads"])
    head_width = hf_config.scalar("head_dim", defaults.get("head_width"), allow_null=True)
    length = hf_config.scalar("max_position_embeddings", context_length)

    return {
        "family": "decoder",
        "vocabulary_size": hf_config.scalar("vocab_size", defaults["vocabulary_size"]),
        "layers": hf_config.scalar("num_hidden_layers", defaults["layers"]),
        "heads": heads,
        "kv_heads": none_if(
            hf_config.scalar("num_key_value_heads", defaults.get("kv_heads"), allow_null=True),
            heads,
        ),
        "mlp_width": none_if(
            hf_config.scalar("intermediate_size", defaults["mlp_width"]), 4 * width
        ),
        "width": width,
        "head_width": head_width if head_width is None or head_width * heads != width else None,
        "context_length": length,
        "norm": "rmsnorm",
        "norm_epsilon": hf_config.scalar("rms_norm_eps", 1e-6, float),
        "positions": "rotary",
        "gated": True,
        "mlp_bias": False,
        "attention_dropout": hf_config.scalar("attention_dropout", 0.0, float, allow_null=True)
        or 0.0,
        "initializer": "normal",
        "initializer_std": hf_config.scalar("initializer_range", 0.02, float),
        **read_rope(hf_config, length),
    }


def write_llama_like(model: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocabulary_size,
        "hidden_size": model.width,
        "intermediate_size": model.hidden_width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_value_heads,
        "head_dim": model.width_per_head,
        "max_position_embeddings": model.context_length,
        "rms_norm_eps": model.norm_epsilon,
        "tie_word_embeddings": model.tied_head,
        "attention_dropout": model.attention_dropout,
        "initializer_range": model.initializer_std,
        **write_rope(model),
    }


def read_llama_fields(
    hf_config: HFConfig, context_length: int, defaults: dict[str, int]
) -> dict[str, Any]:
    """Return the fields of `read_llama_like`, and those under keys that Gemma 2 does not have."""
    return read_llama_like(hf_config, context_length, defaults) | {
        "activation": hf_config.choice("hidden_act", ACTIVATIONS, "silu"),
        "tied_head": hf_config.scalar("tie_word_embeddings", False, bool),
    }


def write_llama_values(model: ModelConfig) -> dict[str, Any]:
    return write_llama_like(model) | {"hidden_act": ACTIVATION_NAMES[model.activation]}


LLAMA_DEFAULTS = {
    "vocabulary_size": 32000,
    "width": 4096,
    "mlp_width": 11008,
    "layers": 32,
    "heads": 32,
}
MISTRAL_DEFAULTS = LLAMA_DEFAULTS | {"mlp_width": 14336, "kv_heads": 8}
QWEN2_DEFAULTS = LLAMA_DEFAULTS | {"vocabulary_size": 151936, "mlp_width": 22016, "kv_heads": 32}
QWEN3_DEFAULTS = QWEN2_DEFAULTS | {"head_width": 128}


def read_llama(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    fields = read_llama_fields(hf_config, 2048, LLAMA_DEFAULTS)
    check_heads(hf_config, fields["width"], fields["heads"])
    bias = hf_config.scalar("attention_bias", False, bool)
    return ModelConfig(
        **fields
        | {
            "attention_bias": bias,
            "attention_output_bias": bias,
            "mlp_bias": hf_config.scalar("mlp_bias", False, bool),
        }
    )


def write_llama(model: ModelConfig) -> dict[str, Any]:
    return write_llama_values(model) | {
        "attention_bias": model.attention_bias,
        "mlp_bias": model.mlp_bias,
    }


def read_mistral(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    """Return the model of a Mistral config.json.

    All layers have the window, if there is one: the class doesn't follow `layer_types`.
    """
    window = hf_config.scalar("sliding_window", 4096, allow_null=True)
    layer_types = hf_config.strings("layer_types")
    if layer_types is not None and set(layer_types) != {
        "full_attention" if window is None else "sliding_attention"
    }:
        hf_config.refuse(
            "layer_types",
            "contradicts sliding_window, which this model_type follows for all layers",
        )
    fields = read_llama_fields(hf_config, 131072, MISTRAL_DEFAULTS)

    return ModelConfig(
        **fields, sliding_window=window, attention_bias=False, attention_output_bias=False
    )


def write_mistral(model: ModelConfig) -> dict[str, Any]:
    windows = set(model.windows)
    return write_llama_values(model) | {
        "sliding_window": windows.pop() if len(windows) == 1 else None
    }


def read_qwen_windows(hf_config: HFConfig, layers: int) -> dict[str, Any]:
    """Return the fields of Qwen's windows.

    `layer_types` says which layers have one; without it those from `max_window_layers` on do.
    """
    window = hf_config.scalar("sliding_window", 4096, allow_null=True)
    if not hf_config.scalar("use_sliding_window", False, bool):
        window = None
    first, layer_types = hf_config.scalar("max_window_layers", 28), hf_config.strings("layer_types")
    if layer_types is None and window is not None:
        layer_types = tuple(
            "sliding_attention" if layer >= first else "full_attention" for layer in range(layers)
        )
    return read_windows(hf_config, layer_types, layers, window)


def write_qwen_windows(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of windows, in both ways of Qwen where both can say it."""
    layer_types = write_layer_types(model)
    first = [*layer_types, "sliding_attention"].index("sliding_attention")
    max_window_layers = (
        {"max_window_layers": first} if "full_attention" not in layer_types[first:] else {}
    )
    window = model.sliding_window if "sliding_attention" in layer_types else None
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": layer_types,
        **max_window_layers,
    }


def read_qwen2(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    fields = read_llama_fields(hf_config, 32768, QWEN2_DEFAULTS)
    return ModelConfig(
        **fields | read_qwen_windows(hf_config, fields["layers"]),
        attention_bias=True,
        attention_output_bias=False,
    )


def write_qwen2(model: ModelConfig) -> dict[str, Any]:
    return write_llama_values(model) | write_qwen_windows(model)


def read_qwen3(hf_config: HFConfig, tensors: TensorPresence) -> ModelConfig:
    fields = read_llama_fields(hf_config, 32768, QWEN3_DEFAULTS)
    bias = hf_config.scalar("attention_bias", False, bool)
    fields |= read_qwen_windows(hf_config, fields["layers"]) | {
        "attention_bias": bias,
        "attention_output_bias": bias,
    }
    return ModelConfig(**fields, query_key_norm=True)


def write_qwen3(model: ModelConfig) -> dict[str, Any]:
    return (
        write_llama_values(model)
        | write_qwen_windows(model)
        | {"attention_bias": model.attention_bias}
    )


LLAMA_BLOCK = "model.layers.{}"
LLAMA_ATTENTION_RULES = (
    Rule(
        f"{LLAMA_BLOCK}.self_attn.q_proj.weight", "hk d", ("blocks.attention.query_kernel",), "dhk"
    ),
    Rule(f"{LLAMA_BLOCK}.self_attn.q_proj.bias", "hk", ("blocks.attention.query_bias",), "hk"),
    Rule(f"{LLAMA_BLOCK}.self_attn.k_proj.weight", "gk d", ("blocks.attention.key_kernel",), "dgk"),
    Rule(f"{LLAMA_BLOCK}.self_attn.k_proj.bias", "gk", ("blocks.attention.key_bias",), "gk"),
    Rule(
        f"{LLAMA_BLOCK}.self_attn.v_proj.weight", "gk d", ("blocks.attention.value_kernel",), "dgk"
    ),
    Rule(f"{LLAMA_BLOCK}.self_attn.v_proj.bias", "gk", ("blocks.attention.value_bias",), "gk"),
    Rule(
        f"{LLAMA_BLOCK}.self_attn.o_proj.weight", "d hk", ("blocks.attention.output_kernel",), "hkd"
    ),
    Rule(f"{LLAMA_BLOCK}.self_attn.o_proj.bias", "d", ("blocks.attention.output_bias",), "d"),
)
LLAMA_COMMON_RULES = (
    Rule("model.embed_tokens.weight", "v d", ("embedding.tokens",), "vd"),
    Rule(f"{LLAMA_BLOCK}.input_layernorm.weight", "d", ("blocks.attention_norm.scale",), "d"),
    Rule(f"{LLAMA_BLOCK}.mlp.gate_proj.weight", "f d", ("blocks.mlp.gate_kernel",), "df"),
    Rule(f"{LLAMA_BLOCK}.mlp.gate_proj.bias", "f", ("blocks.mlp.gate_bias",), "f"),
    Rule(f"{LLAMA_BLOCK}.mlp.up_proj.weight", "f d", ("blocks.mlp.up_kernel",), "df"),
    Rule(f"{LLAMA_BLOCK}.mlp.up_proj.bias", "f", ("blocks.mlp.up_bias",), "f"),
    Rule(f"{LLAMA_BLOCK}.mlp.down_proj.weight", "d f", ("blocks.mlp.down_kernel",), "fd"),
    Rule(f"{LLAMA_BLOCK}.mlp.down_proj.bias", "d", ("blocks.mlp.down_bias",), "d"),
    Rule("model.norm.weight", "d", ("final_norm.scale",), "d"),
    Rule("lm_head.weight", "v d", ("head.kernel",), "dv"),
)
LLAMA_RULES = (
    *LLAMA_ATTENTION_RULES,
    Rule(
        f"{LLAMA_BLOCK}.self_attn.q_norm.weight", "k", ("blocks.attention.query_norm.scale",), "k"
    ),
    Rule(f"{LLAMA_BLOCK}.self_attn.k_norm.weight", "k", ("blocks.attention.key_norm.scale",), "k"),
    Rule(f"{LLAMA_BLOCK}.post_attention_layernorm.weight", "d", ("blocks.mlp_norm.scale",), "d"),
    *LLAMA_COMMON_RULES,
)
LLAMA_BUFFERS = (r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)
LLAMA_ALIASES = {"lm_head.weight": "model.embed_tokens.weight"}

LLAMA = Architecture(
    "llama",
    ("LlamaForCausalLM",),
    "decoder",
    read_llama,
    write_llama,
    LLAMA_RULES,
    "model.",
    LLAMA_BUFFERS,
    LLAMA_ALIASES,
)
MISTRAL = Architecture(
    "mistral",
    ("MistralForCausalLM",),
    "decoder",
    read_mistral,
    write_mistral,
    LLAMA_RULES,
    "model.",
    LLAMA_BUFFERS,
    LLAMA_ALIASES,
)
QWEN2 = Architecture(
    "qwen2",
    ("Qwen2ForCausalLM",),
    "decoder",
    read_qwen2,
    write_qwen2,
    LLAMA_RULES,
    "model.",
    LLAMA_BUFFERS,
    LLAMA_ALIASES,
)
QWEN3 = Architecture(
    "qwen3",
    ("Qwen3ForCausalLM",),
    "decoder",
    read_qwen3,
    write_qwen3,
    LLAMA_RULES,
    "model.",
    LLAMA_BUFFERS,
    LLAMA_ALIASES,
)
