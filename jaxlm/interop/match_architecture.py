"""Which architecture of `transformers` a model is: the one whose config, read back, is the model again."""

import math
import re
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxlm import config, models
from jaxlm.config import UserError
from jaxlm.interop import extension, weights
from jaxlm.interop.architectures import ARCHITECTURES
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.mapping import Architecture
from jaxlm.types import Tree

TRAINING = (
    "initializer",
    "initializer_std",
    "dropout",
    "attention_dropout",
)  # neither the function nor the tree depends on them
SHOWN = 4  # fields in a message
FACTORS = ("rotary_low_frequency_factor", "rotary_high_frequency_factor", "rotary_original_length")
SCALING = {
    "none": (),
    "linear": ("rotary_scaling_factor",),
    "llama3": ("rotary_scaling_factor", *FACTORS),
    "yarn": ("rotary_scaling_factor", *FACTORS, "rotary_attention_factor"),
}
ROTARY = (
    "rotary_theta",
    "rotary_theta_sliding",
    "rotary_share",
    "rotary_scaling",
    *SCALING["yarn"],
)
DEFAULTS = {field.name: field.default for field in fields(config.ModelConfig)}


class Written:
    """The tensors that an export would have, for `Architecture.read`; also where the architecture's table has no place for some of ours."""

    def __init__(self, architecture: Architecture, shapes: Tree):
        paths = weights.by_path(shapes)
        self.names: dict[str, bool] = {}  # patterns, and whether they hold numbers
        for rule in architecture.rules:
            present = any(path in paths for path in rule.ours)
            if weights.holds(rule, paths) and (present or rule.zeros):
                self.names[re.escape(rule.theirs).replace(re.escape("{}"), r"\d+")] = present

    def __contains__(self, name: object) -> bool:
        return any(re.fullmatch(pattern, str(name)) for pattern in self.names)

    def any(self, name: str) -> bool:
        return any(
            present and re.fullmatch(pattern, name) for pattern, present in self.names.items()
        )


@lru_cache(maxsize=8)
def shapes_of(model: config.ModelConfig) -> Tree:
    """The parameters' shapes. Not to be changed: the next call gives the same tree."""
    return jax.eval_shape(models.build(model).init, jax.random.key(0))


class Fit(NamedTuple):
    """An architecture that is a model: the values of its config.json, and the model that they are without our section."""

    architecture: Architecture
    values: dict[str, Any]
    whole: config.ModelConfig


def match_architecture(model: config.ModelConfig) -> tuple[Architecture, dict[str, Any]]:
    """The architecture and the values of its config.json. UserError saying what none of them can express."""
    return fit(model)[:2]


def fit(model: config.ModelConfig) -> Fit:
    """The first architecture that has words for all of the model, else the one that needs the fewest of our section."""
    reasons: list[tuple[int, str]] = []
    fits: list[Fit] = []
    for architecture in ARCHITECTURES.values():
        if architecture.family != model.family:
            continue
        for stand_in in extension.stand_ins(model):
            try:
                found, differing = attempt(architecture, model, stand_in)
            except UserError as error:
                reasons.append((len(DEFAULTS), f"{architecture.model_type} can't: {error}"))
                continue
            if not differing and extension.KEY not in found.values:
                return found
            if not differing:
                fits.append(found)
            more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
            reasons.append(
                (
                    len(differing),
                    f"{architecture.model_type}, the nearest, has {', '.join(differing[:SHOWN])}{more}",
                )
            )
    if fits:
        return min(fits, key=lambda found: len(found.values[extension.KEY]))
    if not reasons:
        raise UserError(
            f"no architecture of transformers that is known here is of family {model.family!r}"
        )
    raise UserError(
        f"no architecture of transformers that is known here is this model: {min(reasons, key=lambda reason: reason[0])[1]}"
    )


def attempt(
    architecture: Architecture, model: config.ModelConfig, stand_in: config.ModelConfig
) -> tuple[Fit, list[str]]:
    """What the architecture makes of the model, in the words of another that computes the same, and where that differs."""
    shapes, path = shapes_of(model), Path("config.json")
    values = architecture.write(stand_in)
    whole = architecture.read(HFConfig(path, values), Written(architecture, shapes))
    lacking = extension.write(model, whole)
    if lacking:
        values = values | {extension.KEY: lacking}
    differing = differences(model, extension.read(HFConfig(path, values), whole))
    if lacking and not differing:
        weights.rows(
            architecture, model, shapes, shapes_of(whole)
        )  # not every table can do without what is lacking
    return Fit(architecture, values, whole), differing


def differences(model: config.ModelConfig, read: config.ModelConfig) -> list[str]:
    """'model.norm = "rmsnorm" (here "layernorm")' for each field in which two models compute different functions."""
    ours, theirs = canonical(model), canonical(read)
    return [
        f"model.{name} = {theirs[name]!r} (here {ours[name]!r})"
        for name in ours
        if not same(ours[name], theirs[name])
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(
            one, other, rel_tol=1e-9
        )  # a config.json may have another power of it: x ** -2 and back
    return one == other


def canonical(model: config.ModelConfig) -> dict[str, Any]:
    """The fields with what None stands for, and with the default where a field is not used."""
    values = {name: value for name, value in asdict(model).items() if name not in TRAINING}
    values |= {
        "kv_heads": model.key_value_heads,
        "mlp_width": model.hidden_width,
        "head_width": model.width_per_head,
    }
    values["attention_scale"] = model.attention_scale or model.width_per_head**-0.5
    values |= pattern(model) | rotary(model)
    if model.family == "encoder_decoder":
        encoder = model.encoder
        values |= {"encoder_layers": encoder.layers, "encoder_heads": encoder.heads}
        values |= {
            "encoder_kv_heads": encoder.key_value_heads,
            "encoder_mlp_width": encoder.hidden_width,
        }
    unused = []
    if model.positions != "learned":
        unused.append("context_length")  # no table has its rows
    if model.positions != "relative":
        unused += ["relative_buckets", "relative_max_distance"]
    if model.norm == "rmsnorm":
        unused.append("norm_bias")
    if not model.head_transform:
        unused += ["head_transform_bias", "head_activation"]
    else:
        values["head_activation"] = model.head_activation or model.activation
    return values | {name: DEFAULTS[name] for name in unused}


def kinds(model: config.ModelConfig) -> tuple[str, ...]:
    """ "full" or "sliding" for each layer in turn."""
    windows = [model.windows[layer % len(model.windows)] for layer in range(model.layers)]
    return tuple("full" if window is None else "sliding" for window in windows)


def pattern(model: config.ModelConfig) -> dict[str, Any]:
    each = kinds(model)
    return {
        "attention_pattern": each,
        "sliding_window": model.sliding_window if "sliding" in each else None,
    }


def rotary(model: config.ModelConfig) -> dict[str, Any]:
    """What the angles depend on."""
    values = {name: DEFAULTS[name] for name in ROTARY}
    if model.positions != "rotary":
        return values
    sliding = model.rotary_theta_sliding or model.rotary_theta
    each = kinds(model)
    values["rotary_theta"] = model.rotary_theta if "full" in each else sliding
    values["rotary_theta_sliding"] = sliding if "sliding" in each else None
    values["rotary_share"] = model.rotary_width / model.width_per_head
    used = SCALING[model.rotary_scaling]
    values |= {name: getattr(model, name) for name in ("rotary_scaling", *used)}
    if model.rotary_scaling == "yarn":
        factor = 0.1 * math.log(max(model.rotary_scaling_factor, 1.0)) + 1.0
        values["rotary_attention_factor"] = model.rotary_attention_factor or factor
    return values
