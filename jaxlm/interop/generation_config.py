"""generation_config.json: the token ids that begin and end texts, and options of generation.

Ids that it lacks are taken from config.json, where older checkpoints keep them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.interop.hf_config import HFConfig, format_json, read_json

GENERATION_CONFIG_FILE = "generation_config.json"

# Entries that change no text, beside the ids below.
IGNORED_KEYS = {
    "jaxlm",  # the version of the file in a run directory
    "_from_model_config",
    "transformers_version",
    "use_cache",
    "cache_implementation",
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "max_length",
    "max_new_tokens",
    "num_return_sequences",
}

# Entries that describe the file, which an export doesn't repeat.
UNWRITTEN_KEYS = ("jaxlm", "_from_model_config", "transformers_version")

# Entries that jaxlm.generate has an option for, with the value that means "off". The option
# decides, not the file.
OPTION_DEFAULTS = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "stop_strings": None,
}

TOKEN_ID_KEYS = (
    "bos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
# Ids that the config classes of `transformers` have by default.
CLASS_TOKEN_IDS = {
    "bart": {"decoder_start_token_id": 2, "forced_eos_token_id": 2},
    "t5": {"decoder_start_token_id": 0},
}


class GenerationConfig(NamedTuple):
    """The ids, None where no file has them, and the entries that jaxlm.generate doesn't follow."""

    eos_ids: tuple[int, ...]
    bos_id: int | None
    pad_id: int | None
    decoder_start_id: int | None
    forced_bos_id: int | None
    forced_eos_id: int | None
    # Entries that are options of jaxlm.generate: {"num_beams": 4}
    suggested: dict[str, Any]
    # Entries that change the text and that it has no option for: {"no_repeat_ngram_size": 3}
    unsupported: dict[str, Any]

    @property
    def warnings(self) -> list[str]:
        """Return a line for the options and one for what jaxlm.generate can't do."""
        lines = []
        if self.suggested:
            lines.append(
                f"{GENERATION_CONFIG_FILE} asks for {format_entries(self.suggested)}; "
                "pass these to jaxlm.generate as options, it doesn't read them from the file"
            )
        if self.unsupported:
            lines.append(
                f"{GENERATION_CONFIG_FILE} asks for {format_entries(self.unsupported)}, "
                "which jaxlm.generate does not do"
            )
        return lines


def format_entries(values: Mapping[str, Any]) -> str:
    """Return entries as "num_beams=4, top_p=0.9"."""
    return ", ".join(f"{key}={format_json(value)}" for key, value in values.items())


def read_generation_config(directory: Path, hf_config: HFConfig) -> GenerationConfig:
    """Return generation_config.json, completed from `hf_config`, the directory's config.json."""
    path = directory / GENERATION_CONFIG_FILE
    values = read_json(path) if path.exists() else {}
    if not isinstance(values, dict):
        HFConfig(path, {}).refuse("", "must be a JSON object")

    files = [HFConfig(path, values), hf_config]
    defaults = HFConfig(hf_config.path, CLASS_TOKEN_IDS.get(str(hf_config.get("model_type")), {}))
    eos_ids = first_token_ids(files, "eos_token_id")
    token_ids = []
    for key in TOKEN_ID_KEYS:
        candidates = first_token_ids([*files, defaults], key)
        token_ids.append(candidates[0] if candidates else None)

    known = {*TOKEN_ID_KEYS, *IGNORED_KEYS, *OPTION_DEFAULTS, "eos_token_id"}
    return GenerationConfig(
        eos_ids,
        *token_ids,
        suggested={
            key: values[key]
            for key, default in OPTION_DEFAULTS.items()
            if values.get(key) not in (None, default)
        },
        unsupported={
            key: value for key, value in values.items() if key not in known and is_set(value)
        },
    )


def first_token_ids(sources: list[HFConfig], key: str) -> tuple[int, ...]:
    """Return the ids at `key` in the first source that has any, or ()."""
    for source in sources:
        token_ids = read_token_ids(source, key)
        if token_ids:
            return token_ids
    return ()


def read_token_ids(source: HFConfig, key: str) -> tuple[int, ...]:
    """Return the id or the list of ids at `key`; () where there is none."""
    value = source.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in values):
        source.refuse(key, f"must be the id of a token, got {format_json(value)}")
    return tuple(token for token in values if token >= 0)  # -1 is an old way to say none


def is_set(value: Any) -> bool:
    """Return whether an entry isn't one of the values that mean "off" in `transformers`."""
    return value not in (None, False, 0, 1, 1.0, "", [], {})


def write_generation_config(
    directory: Path,
    tokens: Mapping[str, Any],
    max_length: int,
    kept: Mapping[str, Any] | None = None,
) -> None:
    """Write a generation_config.json for decoding up to `max_length` tokens.

    `tokens` are ids such as {"eos_token_id": 0}; those that are None are left out. `kept` has the
    other entries of an imported model, and may have a length of its own.
    """
    values = {key: value for key, value in (kept or {}).items() if key not in UNWRITTEN_KEYS}
    values |= tokens
    values = {key: value for key, value in values.items() if value is not None}
    if not values.keys() & {"max_length", "max_new_tokens"}:
        values["max_length"] = max_length
    (directory / GENERATION_CONFIG_FILE).write_text(
        json.dumps(values, indent=2) + "\n", encoding="utf-8"
    )
