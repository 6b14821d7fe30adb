"""generation_config.json: the ids with which texts begin and end, and what else it asks of generation.

What it lacks is taken from config.json, where older checkpoints keep it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.interop import hf_config
from jaxlm.interop.hf_config import HFConfig, shown

FILE = "generation_config.json"

# Entries that change no text, beside the ids below.
HARMLESS = {
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

# Entries that jaxlm.generate has an option for, with the value that means "off"; the option decides, not the file.
OPTIONS = {
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

IDS = (
    "bos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
DEFAULTS = {
    "bart": {"decoder_start_token_id": 2, "forced_eos_token_id": 2},
    "t5": {"decoder_start_token_id": 0},
}  # of the class


class GenerationConfig(NamedTuple):
    """The ids, None where nothing says them, and what jaxlm.generate doesn't do by itself."""

    eos_ids: tuple[int, ...]
    bos_id: int | None
    pad_id: int | None
    decoder_start_id: int | None
    forced_bos_id: int | None
    forced_eos_id: int | None
    suggested: dict[str, Any]  # entries that are options of jaxlm.generate: {"num_beams": 4}
    unfollowed: dict[
        str, Any
    ]  # entries that change the text and that it has no option for: {"no_repeat_ngram_size": 3}

    @property
    def warnings(self) -> list[str]:
        """A line per kind of entry that jaxlm.generate does not follow."""
        lines = []
        if self.suggested:
            lines.append(
                f"{FILE} asks for {listed(self.suggested)}: options of jaxlm.generate, which doesn't read them from there"
            )
        if self.unfollowed:
            lines.append(
                f"{FILE} asks for {listed(self.unfollowed)}, which jaxlm.generate does not do"
            )
        return lines


def listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={shown(value)}" for key, value in values.items())


def read(directory: Path, config: HFConfig) -> GenerationConfig:
    """From generation_config.json, if there is one, and `config`, the directory's config.json."""
    path = directory / FILE
    found = hf_config.read_json(path) if path.exists() else {}
    if not isinstance(found, dict):
        hf_config.HFConfig(path, {}).refuse("", "must be a JSON object")
    own = HFConfig(path, found)
    defaults = HFConfig(config.path, DEFAULTS.get(str(config.get("model_type")), {}))
    eos = next((given for source in (own, config) if (given := ids(source, "eos_token_id"))), ())
    one = {
        key: next(
            (given[0] for source in (own, config, defaults) if (given := ids(source, key))), None
        )
        for key in IDS
    }
    others = {
        key: value
        for key, value in found.items()
        if key not in (*IDS, *HARMLESS, *OPTIONS, "eos_token_id")
    }
    return GenerationConfig(
        eos,
        *(one[key] for key in IDS),
        suggested={
            key: found[key] for key, off in OPTIONS.items() if found.get(key) not in (None, off)
        },
        unfollowed={key: value for key, value in others.items() if says_something(value)},
    )


def ids(source: HFConfig, key: str) -> tuple[int, ...]:
    """The id or the list of ids at `key`; () where there is none."""
    value = source.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in values):
        source.refuse(key, f"must be the id of a token, got {shown(value)}")
    return tuple(token for token in values if token >= 0)  # -1 is an old way to say none


def says_something(value: Any) -> bool:
    """Not one of the values with which `transformers` says that an entry is off."""
    return value not in (None, False, 0, 1, 1.0, "", [], {})


def write(directory: Path, tokens: Mapping[str, int | None], max_length: int) -> None:
    """A generation_config.json with the ids `tokens`, such as {"eos_token_id": 0}, and greedy decoding up to `max_length` tokens."""
    values = {
        **{key: number for key, number in tokens.items() if number is not None},
        "max_length": max_length,
    }
    (directory / FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
