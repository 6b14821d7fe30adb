"""The section "jaxlm" of a config.json: what a model lacks of its architecture.

The config of the architecture can't say it, but its class computes the same function from other
tensors. Biases that the model lacks are tensors of zeros. relu(x) ** 2 is relu(x) * x: a gated MLP
with ReLU whose gate repeats its other half.
"""

from dataclasses import replace
from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.interop.hf_config import HFConfig

EXTENSION_KEY = "jaxlm"
OPTIONAL_BIASES = (
    "attention_bias",
    "attention_output_bias",
    "mlp_bias",
    "norm_bias",
    "head_transform_bias",
)
LABEL_BIAS = "classifier_bias"  # model.classifier.bias
SQUARED_RELU: dict[str, Any] = {"gated": False, "activation": "relu_squared"}
GATED_RELU: dict[str, Any] = {"gated": True, "activation": "relu"}  # how the architecture says it


def apply_extension(hf_config: HFConfig, base: ModelConfig) -> ModelConfig:
    """Return the model of a config.json; `base` is what it is without the section "jaxlm".

    UserError where the section has an unknown key or value, or does not fit `base`.
    """
    section = hf_config.nested(EXTENSION_KEY)
    if section is None:
        return base

    fields: dict[str, Any] = {}
    for key in section.values:
        if key in (*OPTIONAL_BIASES, LABEL_BIAS):
            if section.scalar(key, False, bool):
                section.refuse(key, "true is not supported, only false")
            if key != LABEL_BIAS:
                fields[key] = False
            elif base.is_classifier:
                fields["classifier"] = replace(base.classifier, bias=False)
            else:
                section.refuse(key, "is only used in classifiers")
        elif key not in SQUARED_RELU:
            known = ", ".join((*OPTIONAL_BIASES, LABEL_BIAS, *SQUARED_RELU))
            section.refuse(key, f"is unknown; known: {known}")

    # The two keys of the squared ReLU stand together or not at all.
    given = section.values.keys() & SQUARED_RELU.keys()
    if given:
        section.require(SQUARED_RELU)
        for key, value in SQUARED_RELU.items():
            if section.get(key) is None:
                section.refuse(key, f"must be {value!r} together with {min(given)}")
        if not has_fields(base, GATED_RELU):
            section.refuse(
                "activation", "'relu_squared' needs a gated MLP with relu in the rest of the file"
            )
        fields |= SQUARED_RELU
    return replace(base, **fields)


def equivalent_models(model: ModelConfig) -> tuple[ModelConfig, ...]:
    """Return the model and, if there is one, another that computes the same function."""
    if not has_fields(model, SQUARED_RELU):
        return (model,)
    return model, replace(model, **GATED_RELU)


def build_extension(model: ModelConfig, base: ModelConfig) -> dict[str, Any]:
    """Return the section that turns `base` into `model`, as far as it can; {} if none is needed."""
    section: dict[str, Any] = {
        name: False for name in OPTIONAL_BIASES if getattr(base, name) and not getattr(model, name)
    }
    # Biases that don't exist in either model.
    if model.norm == "rmsnorm":
        section.pop("norm_bias", None)
    if not model.head_transform:
        section.pop("head_transform_bias", None)

    if base.is_classifier and base.label_head.bias and not model.label_head.bias:
        section[LABEL_BIAS] = False
    if has_fields(model, SQUARED_RELU) and has_fields(base, GATED_RELU):
        section |= SQUARED_RELU
    return section


def has_fields(model: ModelConfig, fields: dict[str, Any]) -> bool:
    """Return whether the model has these values."""
    return all(getattr(model, key) == value for key, value in fields.items())
