"""Parts that several architectures share: activations, aliases of a key, windows of layers."""

from collections.abc import Sequence
from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.interop.hf_config import HFConfig

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
}
ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu_squared": "relu2",
    "silu": "silu",
}
LAYER_TYPES = {"full_attention": "full", "sliding_attention": "sliding"}


def refuse_unsupported(hf_config: HFConfig) -> None:
    """Refuse keys of any model that change its function or tensors in ways that jaxlm can't."""
    if hf_config.get("quantization_config") is not None:
        hf_config.refuse(
            "quantization_config",
            "quantised weights are not read; "
            "convert the model to float32, float16 or bfloat16 first",
        )
    for key in ("per_layer_config", "pruned_heads"):
        if hf_config.get(key):
            hf_config.refuse(key, "layers of different shapes are not supported")
    hf_config.require({"is_encoder_decoder": False, "add_cross_attention": False})


def aliased_scalar(hf_config: HFConfig, keys: Sequence[str], default: int) -> int:
    """Return a number that has several names.

    Names that a file has must agree: which one counts depends on the version of `transformers`.
    """
    values = {key: hf_config.scalar(key, default) for key in keys if hf_config.get(key) is not None}
    if not values:
        return default

    first = next(iter(values))
    for key, value in values.items():
        if value != values[first]:
            hf_config.refuse(key, f"{value} contradicts {first} ({values[first]})")
    return values[first]


def none_if(value: Any, default: Any) -> Any:
    """Return None where the value is the default that None stands for."""
    return None if value == default else value


def check_heads(hf_config: HFConfig, width: int, heads: int) -> None:
    """Refuse a width that is not a multiple of the heads.

    Some classes need this even where the width of a head is given.
    """
    if heads > 0 and width % heads:
        hf_config.refuse(
            "hidden_size",
            f"{width} is not a multiple of num_attention_heads ({heads}), "
            "which this model_type needs",
        )


def read_windows(
    hf_config: HFConfig, layer_types: Sequence[str] | None, layers: int, window: int | None
) -> dict[str, Any]:
    """Return the fields of ModelConfig for windows.

    `layer_types` has "full_attention" or "sliding_attention" for each layer; None gives all layers
    the window.
    """
    if layer_types is None:
        return {"sliding_window": window}

    for layer_type in layer_types:
        if layer_type not in LAYER_TYPES:
            known = ", ".join(LAYER_TYPES)
            hf_config.refuse("layer_types", f"{layer_type!r} is not supported; known: {known}")
    if len(layer_types) != layers:
        hf_config.refuse("layer_types", f"has {len(layer_types)} layers, the model {layers}")
    if "sliding_attention" not in layer_types:
        return {"sliding_window": None}
    if window is None:
        hf_config.refuse("layer_types", "has sliding_attention, which needs sliding_window")

    # The pattern of ModelConfig is one period of the layers.
    pattern = [LAYER_TYPES[layer_type] for layer_type in layer_types]
    period = 1
    while any(pattern[layer] != pattern[layer % period] for layer in range(layers)):
        period += 1
    return {
        "sliding_window": window,
        "attention_pattern": tuple(pattern[:period]) if "full" in pattern else (),
    }


def write_layer_types(model: ModelConfig) -> list[str]:
    """Return the value of "layer_types" for each layer."""
    windows = model.windows
    return [
        "full_attention" if windows[i % len(windows)] is None else "sliding_attention"
        for i in range(model.layers)
    ]
