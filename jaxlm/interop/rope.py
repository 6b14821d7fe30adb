"""Rotary positions of a config.json, in both forms that `transformers` has had.

    until 4    "rope_theta": 10000.0, "rope_scaling": null or {"rope_type": "linear", "factor": 2.0}
               (older files say "type" instead of "rope_type")
    from 5 on  "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}

Exported files have both, which every version reads. Where a file has both they must agree, since
versions differ in which one counts.
"""

from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.interop.hf_config import HFConfig

DEFAULT_THETA = 10000.0
BETA_FAST, BETA_SLOW = 32.0, 1.0  # of yarn, where a file has none
UNSUPPORTED_ROPE_TYPES = {
    "dynamic": "its frequencies depend on the length of each input",
    "longrope": "its frequencies depend on the length of each input",
    "proportional": "it leaves out channels by a rule that the model doesn't have",
}
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def read_rope(
    hf_config: HFConfig,
    context_length: int,
    *,
    theta_key: str = "rope_theta",
    share_key: str | None = None,
    default_share: float = 1.0,
) -> dict[str, Any]:
    """Return the fields of ModelConfig for rotary positions.

    `theta_key` and `share_key` are the class's names of keys outside of the two objects. A class
    without `share_key` rotates all channels.
    """
    old, new = hf_config.nested("rope_scaling"), hf_config.nested("rope_parameters")
    sections = [section for section in (old, new) if section is not None and section.values]
    for section in sections:
        if any(isinstance(value, dict) for value in section.values.values()):
            section.refuse(
                next(iter(section.values)),
                "rotary parameters per layer type are not supported for this model_type",
            )

    scalings = [read_rope_scaling(section, context_length) for section in sections] or [{}]
    outer_length = hf_config.scalar("original_max_position_embeddings", None)
    length = scalings[0].get("rotary_original_length")
    if outer_length is not None and length not in (None, outer_length):
        hf_config.refuse(
            "original_max_position_embeddings",
            f"{outer_length} contradicts the value of the rotary parameters ({length})",
        )
    if scalings[0] != scalings[-1]:
        sections[-1].refuse("rope_type", "rope_scaling and rope_parameters contradict each other")

    theta = read_agreeing(
        hf_config, sections, "rope_theta", (theta_key, "rope_theta"), DEFAULT_THETA
    )
    share = read_agreeing(
        hf_config,
        sections,
        "partial_rotary_factor",
        (share_key, "partial_rotary_factor"),
        default_share,
    )
    if share_key is None and share != 1.0:
        hf_config.refuse("partial_rotary_factor", f"{share} is not supported for this model_type")
    return {"rotary_theta": theta, "rotary_share": share} | scalings[0]


def read_agreeing(
    hf_config: HFConfig,
    sections: list[HFConfig],
    inner_key: str,
    outer_keys: tuple[str | None, ...],
    default: float,
) -> float:
    """Return a number that may stand in the objects, outside of them, or in several places.

    UserError where it has different values.
    """
    places = [(section, inner_key) for section in sections]
    places += [(hf_config, key) for key in outer_keys if key]

    value = None
    for place, key in places:
        number = place.scalar(key, None, float)
        if number is not None and value is not None and number != value:
            place.refuse(key, f"{number} contradicts another {inner_key} in this file ({value})")
        value = value if number is None else number
    return default if value is None else value


def read_rope_scaling(section: HFConfig, length: int) -> dict[str, Any]:
    """Return the fields of ModelConfig for one of the objects.

    `length` is the original context length where the object has none.
    """
    old, new = section.get("type"), section.get("rope_type")
    if old is not None and new is not None and old != new:
        section.refuse("type", f"{old!r} contradicts rope_type ({new!r})")
    rope_type = new if new is not None else old if old is not None else "default"
    if rope_type not in ROPE_TYPES:
        reason = "is unknown"
        if isinstance(rope_type, str):
            reason = UNSUPPORTED_ROPE_TYPES.get(rope_type, reason)
        section.refuse(
            "rope_type" if "rope_type" in section else "type",
            f"{rope_type!r} is not supported: {reason}; known: {', '.join(ROPE_TYPES)}",
        )
    if rope_type == "default":
        return {}

    for key in ("mscale", "mscale_all_dim", "short_factor", "long_factor"):
        if section.get(key) is not None:
            section.refuse(key, f"is not supported with rope_type {rope_type!r}")
    factor = read_needed(section, "factor", rope_type)
    fields = {"rotary_scaling": rope_type, "rotary_scaling_factor": factor}
    if rope_type == "linear":
        return fields

    fields["rotary_original_length"] = section.scalar("original_max_position_embeddings", length)
    if rope_type == "llama3":
        return fields | {
            "rotary_low_frequency_factor": read_needed(section, "low_freq_factor", rope_type),
            "rotary_high_frequency_factor": read_needed(section, "high_freq_factor", rope_type),
        }

    section.require({"truncate": True})
    beta_slow = section.scalar("beta_slow", BETA_SLOW, float, allow_null=True) or BETA_SLOW
    beta_fast = section.scalar("beta_fast", BETA_FAST, float, allow_null=True) or BETA_FAST
    return fields | {
        "rotary_low_frequency_factor": beta_slow,
        "rotary_high_frequency_factor": beta_fast,
        "rotary_attention_factor": section.scalar("attention_factor", None, float),
    }


def read_needed(section: HFConfig, key: str, rope_type: str) -> float:
    """Return a number without which `rope_type` is not defined."""
    value = section.scalar(key, None, float)
    if value is None:
        section.refuse(key, f"is missing, and rope_type {rope_type!r} needs it")
    return value


def write_rope(model: ModelConfig, *, write_share: bool = False) -> dict[str, Any]:
    """Return both forms. Only some classes know the share of a head's channels (`write_share`)."""
    scaled = model.rotary_scaling != "none"
    parameters: dict[str, Any] = {"rope_type": model.rotary_scaling if scaled else "default"}
    if scaled:
        parameters["factor"] = model.rotary_scaling_factor
    if model.rotary_scaling in ("llama3", "yarn"):
        is_llama3 = model.rotary_scaling == "llama3"
        low_key = "low_freq_factor" if is_llama3 else "beta_slow"
        high_key = "high_freq_factor" if is_llama3 else "beta_fast"
        parameters[low_key] = model.rotary_low_frequency_factor
        parameters[high_key] = model.rotary_high_frequency_factor
        parameters["original_max_position_embeddings"] = model.rotary_original_length
    if model.rotary_scaling == "yarn" and model.rotary_attention_factor is not None:
        parameters["attention_factor"] = model.rotary_attention_factor

    rope_parameters = parameters | {"rope_theta": model.rotary_theta}
    if write_share:
        rope_parameters["partial_rotary_factor"] = model.rotary_share
    return {
        "rope_theta": model.rotary_theta,
        "rope_scaling": parameters if scaled else None,
        "rope_parameters": rope_parameters,
    }
