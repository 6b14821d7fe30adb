"""The section "jaxlm" of a config.json: what the model lacks of its architecture, which has no words for that but computes the same.

Biases that are lacking are tensors of zeros. relu(x) ** 2 is relu(x) * x: a gated MLP with ReLU whose gate repeats its other half.
"""

from dataclasses import replace
from typing import Any

from jaxlm import config
from jaxlm.interop.hf_config import HFConfig

KEY = "jaxlm"
BIASES = ("attention_bias", "attention_output_bias", "mlp_bias", "norm_bias", "head_transform_bias")
SQUARED: dict[str, Any] = {"gated": False, "activation": "relu_squared"}
STAND_IN: dict[str, Any] = {"gated": True, "activation": "relu"}  # what the architecture says of it


def read(settings: HFConfig, whole: config.ModelConfig) -> config.ModelConfig:
    """The model, from what the rest of config.json says (`whole`). Without a section they are the same."""
    section = settings.section(KEY)
    if section is None:
        return whole
    fields: dict[str, Any] = {}
    for key in section.values:
        if key in BIASES:
            if section.number(key, False, bool):
                section.refuse(key, "true is not supported, only false")
            fields[key] = False
        elif key not in SQUARED:
            section.refuse(key, f"is unknown; known: {', '.join((*BIASES, *SQUARED))}")
    given = section.values.keys() & SQUARED.keys()
    if given:
        section.fixed(SQUARED)
        for key, value in SQUARED.items():
            if section.get(key) is None:
                section.refuse(key, f"must be {value!r} beside {min(given)}")
        if any(getattr(whole, key) != value for key, value in STAND_IN.items()):
            section.refuse(
                "activation", "'relu_squared' needs a gated MLP with relu in the rest of the file"
            )
        fields |= SQUARED
    return replace(whole, **fields)


def stand_ins(model: config.ModelConfig) -> tuple[config.ModelConfig, ...]:
    """The model, and another one that computes the same, if there is one."""
    if any(getattr(model, key) != value for key, value in SQUARED.items()):
        return (model,)
    return model, replace(model, **STAND_IN)


def write(model: config.ModelConfig, whole: config.ModelConfig) -> dict[str, Any]:
    """The section as far as it may bridge the two; {} where there is nothing to say."""
    lacking = {name: False for name in BIASES if getattr(whole, name) and not getattr(model, name)}
    if model.norm == "rmsnorm":
        lacking.pop("norm_bias", None)  # it has none anyway
    if not model.head_transform:
        lacking.pop("head_transform_bias", None)
    squared = all(getattr(model, key) == value for key, value in SQUARED.items())
    return lacking | (
        SQUARED
        if squared and all(getattr(whole, key) == value for key, value in STAND_IN.items())
        else {}
    )
