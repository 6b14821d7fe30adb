"""What the architectures have in common: names of activations, other names of a key, windows of layers, settings that none can follow."""

from collections.abc import Sequence
from typing import Any

from jaxlm import config
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
NAMES = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu_squared": "relu2",
    "silu": "silu",
}
KINDS = {"full_attention": "full", "sliding_attention": "sliding"}


def refuse_extras(settings: HFConfig) -> None:
    """Settings of any decoder that change its function or its tensors and that we have nothing for."""
    if settings.get("quantization_config") is not None:
        settings.refuse(
            "quantization_config",
            "quantised weights are not read; convert the model to float32, float16 or bfloat16 first",
        )
    for key in ("per_layer_config", "pruned_heads"):
        if settings.get(key):
            settings.refuse(key, "layers of different shapes are not supported")
    settings.fixed({"is_encoder_decoder": False, "add_cross_attention": False})


def known(settings: HFConfig, keys: Sequence[str], default: int) -> int:
    """A number that goes by several names. They must agree: which one counts is up to the version of `transformers`."""
    found = {key: settings.number(key, default) for key in keys if settings.get(key) is not None}
    for key, value in found.items():
        if value != next(iter(found.values())):
            settings.refuse(
                key, f"{value} contradicts {next(iter(found))} ({next(iter(found.values()))})"
            )
    return next(iter(found.values()), default)


def unless(value: Any, default: Any) -> Any:
    """None where the value is what None stands for."""
    return None if value == default else value


def check_heads(settings: HFConfig, width: int, heads: int) -> None:
    """Some classes refuse a width that their heads don't divide even where the heads' width is given."""
    if heads > 0 and width % heads:
        settings.refuse(
            "hidden_size",
            f"{width} is not a multiple of num_attention_heads ({heads}), which this model_type needs",
        )


def read_windows(
    settings: HFConfig, kinds: Sequence[str] | None, layers: int, window: int | None
) -> dict[str, Any]:
    """Our fields, from the kind of each layer ("full_attention" or "sliding_attention"; None: as the window says)."""
    if kinds is None:
        return {"sliding_window": window}
    for kind in kinds:
        if kind not in KINDS:
            settings.refuse("layer_types", f"{kind!r} is not supported; known: {', '.join(KINDS)}")
    if len(kinds) != layers:
        settings.refuse("layer_types", f"has {len(kinds)} layers, the model {layers}")
    if "sliding_attention" not in kinds:
        return {"sliding_window": None}
    if window is None:
        settings.refuse("layer_types", "has sliding_attention, which needs sliding_window")
    ours = [KINDS[kind] for kind in kinds]
    period = next(
        n for n in range(1, layers + 1) if all(kind == ours[i % n] for i, kind in enumerate(ours))
    )
    return {
        "sliding_window": window,
        "attention_pattern": tuple(ours[:period]) if "full" in ours else (),
    }


def layer_types(model: config.ModelConfig) -> list[str]:
    """The kind of each layer, in their words."""
    windows = model.windows
    return [
        "full_attention" if windows[i % len(windows)] is None else "sliding_attention"
        for i in range(model.layers)
    ]
