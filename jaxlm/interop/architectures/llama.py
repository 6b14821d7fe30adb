"""Llama and the classes whose tensors have the same names: Mistral, Qwen 2 and Qwen 3."""

from typing import Any

from jaxlm import config
from jaxlm.interop import rope
from jaxlm.interop.architectures.common import (
    ACTIVATIONS,
    NAMES,
    check_heads,
    layer_types,
    read_windows,
    refuse_extras,
    unless,
)
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture, Rule, Weights


def read_gated(settings: HFConfig, context_length: int, sizes: dict[str, int]) -> dict[str, Any]:
    """What Llama's descendants share. `sizes` and the context length are the class's own defaults."""
    refuse_extras(settings)
    width, heads = (
        settings.number("hidden_size", sizes["width"]),
        settings.number("num_attention_heads", sizes["heads"]),
    )
    head_width = settings.number("head_dim", sizes.get("head_width"), null=True)
    length = settings.number("max_position_embeddings", context_length)
    return {
        "family": "decoder",
        "vocabulary_size": settings.number("vocab_size", sizes["vocabulary_size"]),
        "layers": settings.number("num_hidden_layers", sizes["layers"]),
        "heads": heads,
        "kv_heads": unless(
            settings.number("num_key_value_heads", sizes.get("kv_heads"), null=True), heads
        ),
        "mlp_width": unless(settings.number("intermediate_size", sizes["mlp_width"]), 4 * width),
        "width": width,
        "head_width": head_width if head_width is None or head_width * heads != width else None,
        "context_length": length,
        "norm": "rmsnorm",
        "norm_epsilon": settings.number("rms_norm_eps", 1e-6, float),
        "positions": "rotary",
        "gated": True,
        "mlp_bias": False,
        "attention_dropout": settings.number("attention_dropout", 0.0, float, null=True) or 0.0,
        "initializer": "normal",
        "initializer_std": settings.number("initializer_range", 0.02, float),
        **rope.read(settings, length),
    }


def write_gated(model: config.ModelConfig) -> dict[str, Any]:
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
        **rope.write(model),
    }


def read_plain(settings: HFConfig, context_length: int, sizes: dict[str, int]) -> dict[str, Any]:
    """`read_gated` with what Gemma says in other words."""
    return read_gated(settings, context_length, sizes) | {
        "activation": settings.choice("hidden_act", ACTIVATIONS, "silu"),
        "tied_head": settings.number("tie_word_embeddings", False, bool),
    }


def write_plain(model: config.ModelConfig) -> dict[str, Any]:
    return write_gated(model) | {"hidden_act": NAMES[model.activation]}


LLAMA_SIZES = {
    "vocabulary_size": 32000,
    "width": 4096,
    "mlp_width": 11008,
    "layers": 32,
    "heads": 32,
}
MISTRAL_SIZES = LLAMA_SIZES | {"mlp_width": 14336, "kv_heads": 8}
QWEN2_SIZES = LLAMA_SIZES | {"vocabulary_size": 151936, "mlp_width": 22016, "kv_heads": 32}
QWEN3_SIZES = QWEN2_SIZES | {"head_width": 128}


def read_llama(settings: HFConfig, weights: Weights) -> config.ModelConfig:
    fields = read_plain(settings, 2048, LLAMA_SIZES)
    check_heads(settings, fields["width"], fields["heads"])
    bias = settings.number("attention_bias", False, bool)
    return config.ModelConfig(
        **fields
        | {
            "attention_bias": bias,
            "attention_output_bias": bias,
            "mlp_bias": settings.number("mlp_bias", False, bool),
        }
    )


def write_llama(model: config.ModelConfig) -> dict[str, Any]:
    return write_plain(model) | {"attention_bias": model.attention_bias, "mlp_bias": model.mlp_bias}


def read_mistral(settings: HFConfig, weights: Weights) -> config.ModelConfig:
    """All layers have the window, if there is one: the class doesn't follow `layer_types`."""
    window, kinds = (
        settings.number("sliding_window", 4096, null=True),
        settings.words("layer_types"),
    )
    if kinds is not None and set(kinds) != {
        "full_attention" if window is None else "sliding_attention"
    }:
        settings.refuse(
            "layer_types",
            "is not what sliding_window says, which is what this model_type follows for all layers",
        )
    fields = read_plain(settings, 131072, MISTRAL_SIZES)
    return config.ModelConfig(
        **fields, sliding_window=window, attention_bias=False, attention_output_bias=False
    )


def write_mistral(model: config.ModelConfig) -> dict[str, Any]:
    windows = set(model.windows)
    return write_plain(model) | {"sliding_window": windows.pop() if len(windows) == 1 else None}


def read_some_windows(settings: HFConfig, layers: int) -> dict[str, Any]:
    """Qwen's windows: of the layers that `layer_types` says, otherwise of those from number `max_window_layers` on."""
    window = settings.number("sliding_window", 4096, null=True)
    if not settings.number("use_sliding_window", False, bool):
        window = None
    first, kinds = settings.number("max_window_layers", 28), settings.words("layer_types")
    if kinds is None and window is not None:
        kinds = tuple(
            "sliding_attention" if layer >= first else "full_attention" for layer in range(layers)
        )
    return read_windows(settings, kinds, layers, window)


def write_some_windows(model: config.ModelConfig) -> dict[str, Any]:
    """Both ways to say it, where both can."""
    kinds = layer_types(model)
    first = [*kinds, "sliding_attention"].index("sliding_attention")
    said = {"max_window_layers": first} if "full_attention" not in kinds[first:] else {}
    window = model.sliding_window if "sliding_attention" in kinds else None
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": kinds,
        **said,
    }


def read_qwen2(settings: HFConfig, weights: Weights) -> config.ModelConfig:
    fields = read_plain(settings, 32768, QWEN2_SIZES)
    return config.ModelConfig(
        **fields | read_some_windows(settings, fields["layers"]),
        attention_bias=True,
        attention_output_bias=False,
    )


def write_qwen2(model: config.ModelConfig) -> dict[str, Any]:
    return write_plain(model) | write_some_windows(model)


def read_qwen3(settings: HFConfig, weights: Weights) -> config.ModelConfig:
    fields = read_plain(settings, 32768, QWEN3_SIZES)
    bias = settings.number("attention_bias", False, bool)
    fields |= read_some_windows(settings, fields["layers"]) | {
        "attention_bias": bias,
        "attention_output_bias": bias,
    }
    return config.ModelConfig(**fields, query_key_norm=True)


def write_qwen3(model: config.ModelConfig) -> dict[str, Any]:
    return write_plain(model) | write_some_windows(model) | {"attention_bias": model.attention_bias}


BLOCK = "model.layers.{}"
ATTENTION_RULES = (
    Rule(f"{BLOCK}.self_attn.q_proj.weight", "hk d", ("blocks.attention.query_kernel",), "dhk"),
    Rule(f"{BLOCK}.self_attn.q_proj.bias", "hk", ("blocks.attention.query_bias",), "hk"),
    Rule(f"{BLOCK}.self_attn.k_proj.weight", "gk d", ("blocks.attention.key_kernel",), "dgk"),
    Rule(f"{BLOCK}.self_attn.k_proj.bias", "gk", ("blocks.attention.key_bias",), "gk"),
    Rule(f"{BLOCK}.self_attn.v_proj.weight", "gk d", ("blocks.attention.value_kernel",), "dgk"),
    Rule(f"{BLOCK}.self_attn.v_proj.bias", "gk", ("blocks.attention.value_bias",), "gk"),
    Rule(f"{BLOCK}.self_attn.o_proj.weight", "d hk", ("blocks.attention.output_kernel",), "hkd"),
    Rule(f"{BLOCK}.self_attn.o_proj.bias", "d", ("blocks.attention.output_bias",), "d"),
)
OTHER_RULES = (
    Rule("model.embed_tokens.weight", "v d", ("embedding.tokens",), "vd"),
    Rule(f"{BLOCK}.input_layernorm.weight", "d", ("blocks.attention_norm.scale",), "d"),
    Rule(f"{BLOCK}.mlp.gate_proj.weight", "f d", ("blocks.mlp.gate_kernel",), "df"),
    Rule(f"{BLOCK}.mlp.gate_proj.bias", "f", ("blocks.mlp.gate_bias",), "f"),
    Rule(f"{BLOCK}.mlp.up_proj.weight", "f d", ("blocks.mlp.up_kernel",), "df"),
    Rule(f"{BLOCK}.mlp.up_proj.bias", "f", ("blocks.mlp.up_bias",), "f"),
    Rule(f"{BLOCK}.mlp.down_proj.weight", "d f", ("blocks.mlp.down_kernel",), "fd"),
    Rule(f"{BLOCK}.mlp.down_proj.bias", "d", ("blocks.mlp.down_bias",), "d"),
    Rule("model.norm.weight", "d", ("final_norm.scale",), "d"),
    Rule("lm_head.weight", "v d", ("head.kernel",), "dv"),
)
RULES = (
    *ATTENTION_RULES,
    Rule(f"{BLOCK}.self_attn.q_norm.weight", "k", ("blocks.attention.query_norm.scale",), "k"),
    Rule(f"{BLOCK}.self_attn.k_norm.weight", "k", ("blocks.attention.key_norm.scale",), "k"),
    Rule(f"{BLOCK}.post_attention_layernorm.weight", "d", ("blocks.mlp_norm.scale",), "d"),
    *OTHER_RULES,
)
BUFFERS = (r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)
TIED = {"lm_head.weight": "model.embed_tokens.weight"}

LLAMA = Architecture(
    "llama",
    ("LlamaForCausalLM",),
    "decoder",
    read_llama,
    write_llama,
    RULES,
    "model.",
    BUFFERS,
    TIED,
)
MISTRAL = Architecture(
    "mistral",
    ("MistralForCausalLM",),
    "decoder",
    read_mistral,
    write_mistral,
    RULES,
    "model.",
    BUFFERS,
    TIED,
)
QWEN2 = Architecture(
    "qwen2",
    ("Qwen2ForCausalLM",),
    "decoder",
    read_qwen2,
    write_qwen2,
    RULES,
    "model.",
    BUFFERS,
    TIED,
)
QWEN3 = Architecture(
    "qwen3",
    ("Qwen3ForCausalLM",),
    "decoder",
    read_qwen3,
    write_qwen3,
    RULES,
    "model.",
    BUFFERS,
    TIED,
)
