"""Find the architecture of `transformers` whose config, read back, is the model again."""

import math
import re
from dataclasses import asdict, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxlm import models
from jaxlm.config import ClassifierConfig, ModelConfig, UserError
from jaxlm.interop.architectures import ARCHITECTURES, OTHER_CLASSES
from jaxlm.interop.extension import (
    EXTENSION_KEY,
    apply_extension,
    build_extension,
    equivalent_models,
)
from jaxlm.interop.fold_parametrization import standard_model
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture
from jaxlm.interop.tensor_mapping import (
    leaves_by_path,
    map_tensors,
    own_leaves,
    rule_applies,
)
from jaxlm.types import Tree

# Neither the function nor the tree of parameters depends on these fields.
TRAINING_FIELDS = (
    "initializer",
    "initializer_std",
    "zero_head",
    "dropout",
    "attention_dropout",
)
MAX_FIELDS_SHOWN = 4  # in a message
FREQUENCY_FIELDS = (
    "rotary_low_frequency_factor",
    "rotary_high_frequency_factor",
    "rotary_original_length",
)
SCALING_FIELDS = {
    "none": (),
    "linear": ("rotary_scaling_factor",),
    "llama3": ("rotary_scaling_factor", *FREQUENCY_FIELDS),
    "yarn": ("rotary_scaling_factor", *FREQUENCY_FIELDS, "rotary_attention_factor"),
}
ROTARY_FIELDS = (
    "rotary_theta",
    "rotary_theta_sliding",
    "rotary_share",
    "rotary_scaling",
    *SCALING_FIELDS["yarn"],
)
MODEL_DEFAULTS = {field.name: field.default for field in fields(ModelConfig)}


class ExportedTensors:
    """The tensors that an export would have, for `Architecture.read`.

    The architecture's table need not have a place for every parameter.
    """

    def __init__(self, architecture: Architecture, shapes: Tree):
        paths = leaves_by_path(shapes)
        self.patterns: dict[str, bool] = {}  # of names -> whether the tensor holds a parameter
        for rule in architecture.rules:
            present = any(path in paths for path in rule.parameters)
            if rule_applies(rule, paths) and (present or rule.zeros):
                pattern = re.escape(rule.tensor).replace(re.escape("{}"), r"\d+")
                self.patterns[pattern] = present

    def __contains__(self, name: object) -> bool:
        return any(re.fullmatch(pattern, str(name)) for pattern in self.patterns)

    def any(self, name: str) -> bool:
        """Return whether the tensor exists and holds a parameter, and so not only zeros."""
        return any(
            present and re.fullmatch(pattern, name) for pattern, present in self.patterns.items()
        )


class ArchitectureMatch(NamedTuple):
    """An architecture that computes a model."""

    architecture: Architecture
    values: dict[str, Any]  # of its config.json
    base: ModelConfig  # the model that those values are without the section "jaxlm"


@lru_cache(maxsize=8)
def parameter_shapes(model: ModelConfig) -> Tree:
    """Return the shapes of the parameters. The tree is cached: don't change it."""
    return jax.eval_shape(models.build(model).init, jax.random.key(0))


def match_architecture(model: ModelConfig) -> tuple[Architecture, dict[str, Any]]:
    """Return the architecture of a model and the values of its config.json.

    UserError, with the fields that differ from the closest architecture, where there is none.
    """
    return find_match(model)[:2]


def find_match(model: ModelConfig) -> ArchitectureMatch:
    """Return the first architecture whose config says all of the model.

    If there is none, return the one with the shortest section "jaxlm". A model of muP is the
    standard one that `fold_parametrization` makes of it.
    """
    model = standard_model(model)
    extended: list[ArchitectureMatch] = []
    mismatches: list[tuple[int, str]] = []  # (fields that differ, message)
    for architecture in (*ARCHITECTURES.values(), *OTHER_CLASSES):
        if architecture.family != model.family:
            continue
        if architecture.classifier != model.classifier.kind:
            continue
        for equivalent in equivalent_models(model):
            try:
                match, differing = try_architecture(architecture, model, equivalent)
            except UserError as error:
                reason = f"{architecture.model_type} can't: {error}"
                mismatches.append((len(MODEL_DEFAULTS), reason))
                continue

            if not differing and EXTENSION_KEY not in match.values:
                return match
            if not differing:
                extended.append(match)
            shown = ", ".join(differing[:MAX_FIELDS_SHOWN])
            if len(differing) > MAX_FIELDS_SHOWN:
                shown += f" and {len(differing) - MAX_FIELDS_SHOWN} more"
            reason = f"the closest, {architecture.model_type}, has {shown}"
            mismatches.append((len(differing), reason))

    if extended:
        return min(extended, key=lambda match: len(match.values[EXTENSION_KEY]))
    if not mismatches:
        raise UserError(f"no supported architecture of transformers is of family {model.family!r}")
    _, reason = min(mismatches, key=lambda mismatch: mismatch[0])
    if model.is_classifier:
        check_class(model)
    raise UserError(f"no supported architecture of transformers fits this model: {reason}")


def check_class(model: ModelConfig) -> None:
    """Raise UserError for a classifier whose architecture has no such class."""
    kind, names = model.classifier.kind, []
    for architecture in OTHER_CLASSES:
        if (architecture.family, architecture.classifier) == (model.family, kind):
            names.append(architecture.model_type)
    name = find_match(replace(model, classifier=ClassifierConfig())).architecture.model_type
    if name not in names:
        known = ", ".join(names)
        raise UserError(f"classifiers of kind {kind!r} are written as those of {known}, not {name}")


def try_architecture(
    architecture: Architecture, model: ModelConfig, equivalent: ModelConfig
) -> tuple[ArchitectureMatch, list[str]]:
    """Return the architecture's config of a model, and the fields in which it differs.

    The config is written from `equivalent`, which computes the same function as `model`. UserError
    where the architecture's tensors can't do without what the model lacks.
    """
    shapes, path = parameter_shapes(model), Path("config.json")
    values = architecture.write(equivalent)
    base = architecture.read(HFConfig(path, values), ExportedTensors(architecture, shapes))
    section = build_extension(model, base)
    if section:
        values = values | {EXTENSION_KEY: section}

    differing = differences(model, apply_extension(HFConfig(path, values), base))
    if section and not differing:
        own, own_base = (own_leaves(architecture, "", s) for s in (shapes, parameter_shapes(base)))
        map_tensors(architecture, model, own, own_base)
    return ArchitectureMatch(architecture, values, base), differing


# --- when two configs are the same function ---


def differences(model: ModelConfig, other: ModelConfig) -> list[str]:
    """Return 'model.norm = "rmsnorm" (here "layernorm")' for each field that differs.

    "here" is the value of `model`. Fields that don't change the function are left out.
    """
    ours, theirs = canonical_fields(model), canonical_fields(other)
    return [
        f"model.{name} = {theirs[name]!r} (here {ours[name]!r})"
        for name in ours
        if not equal_fields(ours[name], theirs[name])
    ]


def equal_fields(one: Any, other: Any) -> bool:
    """Return whether two values are equal, floats up to rounding."""
    # A config.json may have another power of a number: x ** -2 and back.
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other


def canonical_fields(model: ModelConfig) -> dict[str, Any]:
    """Return the fields with what None stands for, and the default where a field is not used."""
    values = {name: value for name, value in asdict(model).items() if name not in TRAINING_FIELDS}
    values.pop("classifier")
    values |= canonical_classifier(model)
    values |= {
        "kv_heads": model.key_value_heads,
        "mlp_width": model.hidden_width,
        "head_width": model.width_per_head,
        "attention_scale": model.attention_scale or model.width_per_head**-0.5,
    }
    values |= canonical_windows(model) | canonical_rotary(model)
    if model.family == "encoder_decoder":
        encoder = model.encoder
        values |= {
            "encoder_layers": encoder.layers,
            "encoder_heads": encoder.heads,
            "encoder_kv_heads": encoder.key_value_heads,
            "encoder_mlp_width": encoder.hidden_width,
        }
    if model.head_transform:
        values["head_activation"] = model.head_activation or model.activation

    unused = []
    if model.positions != "learned":
        unused.append("context_length")  # no table has its rows
    if model.positions != "relative":
        unused += ["relative_buckets", "relative_max_distance"]
    if model.norm == "rmsnorm":
        unused.append("norm_bias")
    if not model.head_transform:
        unused += ["head_transform_bias", "head_activation"]
    if model.is_classifier:
        unused += ["tied_head", "head_bias", "head_scaling", "logit_softcap"]
        if model.label_head.transform != "head":
            unused += ["head_transform", "head_transform_bias", "head_activation"]
    return values | {name: MODEL_DEFAULTS[name] for name in unused}


def canonical_classifier(model: ModelConfig) -> dict[str, Any]:
    """Return the fields of a classifier that its function depends on; {} for other models.

    ELECTRA's has no generator, whatever the share of one is.
    """
    if not model.is_classifier:
        return {}
    fields = {f"classifier.{name}": value for name, value in asdict(model.label_head).items()}
    for name in ("dropout", "transform_dropout"):
        fields.pop(f"classifier.{name}")
    return fields | {"generator_share": None if model.generator_share is None else 0.0}


def layer_window_types(model: ModelConfig) -> tuple[str, ...]:
    """Return "full" or "sliding" for each layer in turn."""
    pattern = ["full" if window is None else "sliding" for window in model.windows]
    return tuple(pattern[layer % len(pattern)] for layer in range(model.layers))


def canonical_windows(model: ModelConfig) -> dict[str, Any]:
    """Return the fields of windows, with the pattern written out for each layer."""
    layer_types = layer_window_types(model)
    return {
        "attention_pattern": layer_types,
        "sliding_window": model.sliding_window if "sliding" in layer_types else None,
    }


def canonical_rotary(model: ModelConfig) -> dict[str, Any]:
    """Return the fields that the angles of rotary positions depend on."""
    values = {name: MODEL_DEFAULTS[name] for name in ROTARY_FIELDS}
    if model.positions != "rotary":
        return values

    layer_types = layer_window_types(model)
    sliding_theta = model.rotary_theta_sliding or model.rotary_theta
    values["rotary_theta"] = model.rotary_theta if "full" in layer_types else sliding_theta
    values["rotary_theta_sliding"] = sliding_theta if "sliding" in layer_types else None
    values["rotary_share"] = model.rotary_width / model.width_per_head

    used = SCALING_FIELDS[model.rotary_scaling]
    values |= {name: getattr(model, name) for name in ("rotary_scaling", *used)}
    if model.rotary_scaling == "yarn":
        factor = 0.1 * math.log(max(model.rotary_scaling_factor, 1.0)) + 1.0
        values["rotary_attention_factor"] = model.rotary_attention_factor or factor
    return values
