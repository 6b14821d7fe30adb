"""Rotary positions of a config.json, in both forms that there are.

Until `transformers` 4:  "rope_theta": 10000.0, "rope_scaling": null or {"rope_type" (first "type"): "linear", "factor": 2.0}
from 5 on:               "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}

Files of ours have both, which every version reads. Where a file has both they must agree, since versions differ in which one counts.
"""

from typing import Any

from jaxlm import config
from jaxlm.interop.hf_config import HFConfig

THETA = 10000.0
BETA_FAST, BETA_SLOW = 32.0, 1.0  # yarn's, where a file has none
REFUSED = {
    "dynamic": "its frequencies depend on the length of each input",
    "longrope": "its frequencies depend on the length of each input",
    "proportional": "it leaves out channels by a rule that the model doesn't have",
}
KINDS = ("default", "linear", "llama3", "yarn")


def read(
    settings: HFConfig,
    context_length: int,
    theta: str = "rope_theta",
    share: str | None = None,
    default_share: float = 1.0,
) -> dict:
    """Our fields. `theta` and `share` are the class's names of keys outside of the object; without `share` all channels are rotated."""
    outer = settings.number("original_max_position_embeddings", None)
    old, new = settings.section("rope_scaling"), settings.section("rope_parameters")
    found = [section for section in (old, new) if section is not None and section.values]
    for section in found:
        if any(isinstance(value, dict) for value in section.values.values()):
            section.refuse(
                next(iter(section.values)),
                "rotary parameters by the kind of layer are not supported for this model_type",
            )
    scalings = [read_scaling(section, context_length) for section in found] or [{}]
    length = scalings[0].get("rotary_original_length")
    if outer is not None and length not in (None, outer):
        settings.refuse(
            "original_max_position_embeddings",
            f"{outer} contradicts what the rotary parameters have ({length})",
        )
    if scalings[0] != scalings[-1]:
        found[-1].refuse("rope_type", "rope_scaling and rope_parameters contradict each other")
    fields = {"rotary_theta": agreed(settings, found, "rope_theta", (theta, "rope_theta"), THETA)}
    fields["rotary_share"] = agreed(
        settings, found, "partial_rotary_factor", (share, "partial_rotary_factor"), default_share
    )
    if share is None and fields["rotary_share"] != 1.0:
        settings.refuse(
            "partial_rotary_factor",
            f"{fields['rotary_share']} is not supported for this model_type",
        )
    return fields | scalings[0]


def agreed(
    settings: HFConfig,
    sections: list[HFConfig],
    inner: str,
    outer: tuple[str | None, ...],
    default: float,
) -> float:
    """A number that may stand in the objects, outside of them, or in both places with the same value."""
    value = None
    for place, key in [
        *((section, inner) for section in sections),
        *((settings, key) for key in outer if key),
    ]:
        number = place.number(key, None, float)
        if number is not None and value is not None and number != value:
            place.refuse(key, f"{number} contradicts another {inner} in this file ({value})")
        value = value if number is None else number
    return default if value is None else value


def read_scaling(section: HFConfig, length: int) -> dict[str, Any]:
    """Our fields of one object. `length` is the original context length where the object has none."""
    old, new = section.get("type"), section.get("rope_type")
    if old is not None and new is not None and old != new:
        section.refuse("type", f"{old!r} contradicts rope_type ({new!r})")
    kind = new if new is not None else old if old is not None else "default"
    name = "rope_type" if "rope_type" in section else "type"
    if kind not in KINDS:
        reason = REFUSED.get(kind, "is unknown") if isinstance(kind, str) else "is unknown"
        section.refuse(name, f"{kind!r} is not supported: {reason}; known: {', '.join(KINDS)}")
    if kind == "default":
        return {}
    for key in ("mscale", "mscale_all_dim", "short_factor", "long_factor"):
        if section.get(key) is not None:
            section.refuse(key, f"is not supported with rope_type {kind!r}")
    factor = section.number("factor", None, float)
    if factor is None:
        section.refuse("factor", f"is missing, and rope_type {kind!r} needs it")
    fields = {"rotary_scaling": kind, "rotary_scaling_factor": factor}
    if kind == "linear":
        return fields
    fields["rotary_original_length"] = section.number("original_max_position_embeddings", length)
    if kind == "llama3":
        low, high = (
            section.number("low_freq_factor", None, float),
            section.number("high_freq_factor", None, float),
        )
        for key, value in (("low_freq_factor", low), ("high_freq_factor", high)):
            if value is None:
                section.refuse(key, "is missing, and rope_type 'llama3' needs it")
        return fields | {"rotary_low_frequency_factor": low, "rotary_high_frequency_factor": high}
    section.fixed({"truncate": True})
    return fields | {
        "rotary_low_frequency_factor": section.number("beta_slow", BETA_SLOW, float, null=True)
        or BETA_SLOW,
        "rotary_high_frequency_factor": section.number("beta_fast", BETA_FAST, float, null=True)
        or BETA_FAST,
        "rotary_attention_factor": section.number("attention_factor", None, float),
    }


def write(model: config.ModelConfig, share: bool = False) -> dict[str, Any]:
    """Both forms. The share of a head's channels is left out unless the class knows it."""
    parameters: dict[str, Any] = {
        "rope_type": "default" if model.rotary_scaling == "none" else model.rotary_scaling
    }
    if model.rotary_scaling != "none":
        parameters["factor"] = model.rotary_scaling_factor
    if model.rotary_scaling in ("llama3", "yarn"):
        low, high = (
            ("low_freq_factor", "high_freq_factor")
            if model.rotary_scaling == "llama3"
            else ("beta_slow", "beta_fast")
        )
        parameters[low], parameters[high] = (
            model.rotary_low_frequency_factor,
            model.rotary_high_frequency_factor,
        )
        parameters["original_max_position_embeddings"] = model.rotary_original_length
    if model.rotary_scaling == "yarn" and model.rotary_attention_factor is not None:
        parameters["attention_factor"] = model.rotary_attention_factor
    return {
        "rope_theta": model.rotary_theta,
        "rope_scaling": None if model.rotary_scaling == "none" else parameters,
        "rope_parameters": {
            **parameters,
            "rope_theta": model.rotary_theta,
            **({"partial_rotary_factor": model.rotary_share} if share else {}),
        },
    }
