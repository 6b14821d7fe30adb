"""generation_config.json: the token ids that begin and end texts, and options of generation.

Ids that it lacks are taken from config.json, where older checkpoints keep them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.interop.hf_config import MAX_INTEGER, HFConfig, format_json, read_json

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
    "min_new_tokens": None,
    "stop_strings": None,
}

# Entries that jaxlm.generate follows, beside the ids below.
RULE_KEYS = ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "no_repeat_ngram_size")

# Entries that change a text and that jaxlm.generate doesn't follow. All others of a
# generation_config.json are named too; a config.json has many that are about the model.
UNSUPPORTED_KEYS = (
    "constraints",
    "diversity_penalty",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "force_words_ids",
    "forced_decoder_ids",
    "guidance_scale",
    "min_length",
    "num_beam_groups",
    "penalty_alpha",
    "sequence_bias",
    "typical_p",
)

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


class TokenRules(NamedTuple):
    """Tokens that a text must not have."""

    forbidden_sequences: tuple[tuple[int, ...], ...] = ()  # of one or several ids
    suppressed_ids: tuple[int, ...] = ()
    suppressed_first_ids: tuple[int, ...] = ()  # at the beginning only
    no_repeat_ngram_size: int = 0  # no sequence of so many tokens occurs twice; 0: any may


class GenerationConfig(NamedTuple):
    """The ids, None where no file has them, and what else decides about a text."""

    eos_ids: tuple[int, ...]
    bos_id: int | None
    pad_id: int | None
    decoder_start_id: int | None
    forced_bos_id: int | None
    forced_eos_id: int | None
    # Entries that are options of jaxlm.generate: {"num_beams": 4}
    suggested: dict[str, Any]
    # Entries that change the text and that it doesn't follow: {"diversity_penalty": 0.5}
    unsupported: dict[str, Any]
    rules: TokenRules = TokenRules()
    source: str = GENERATION_CONFIG_FILE  # name of the file with these entries

    @property
    def warnings(self) -> list[str]:
        """Return a line for the options and one for what jaxlm.generate can't do."""
        lines = []
        if self.suggested:
            lines.append(
                f"{self.source} asks for {format_entries(self.suggested)}; "
                "pass these to jaxlm.generate as options, it doesn't read them from the file"
            )
        if self.unsupported:
            lines.append(
                f"{self.source} asks for {format_entries(self.unsupported)}, "
                "which jaxlm.generate does not do"
            )
        return lines


def format_entries(values: Mapping[str, Any]) -> str:
    """Return entries as "num_beams=4, top_p=0.9"."""
    return ", ".join(f"{key}={format_json(value)}" for key, value in values.items())


def read_generation_config(directory: Path, hf_config: HFConfig) -> GenerationConfig:
    """Return generation_config.json, completed from `hf_config`, the directory's config.json.

    Where there is no generation_config.json, rules and options are those of config.json.
    """
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

    source = files[0] if path.exists() else hf_config
    known = {*TOKEN_ID_KEYS, *IGNORED_KEYS, *OPTION_DEFAULTS, *RULE_KEYS, "eos_token_id"}
    others = values.keys() - known if path.exists() else UNSUPPORTED_KEYS
    return GenerationConfig(
        eos_ids,
        *token_ids,
        suggested={
            key: source.get(key)
            for key, default in OPTION_DEFAULTS.items()
            if source.get(key) not in (None, default)
        },
        unsupported={
            key: value for key, value in source.values.items() if key in others and is_set(value)
        },
        rules=read_token_rules(source),
        source=source.path.name,
    )


def read_token_rules(source: HFConfig) -> TokenRules:
    """Return the rules of a file; UserError for one that can't be followed."""
    sequences = source.get("bad_words_ids") or []
    if not isinstance(sequences, list):
        source.refuse("bad_words_ids", f"must be a list of lists, got {format_json(sequences)}")
    size = source.scalar("no_repeat_ngram_size", None) or 0
    if size < 0:
        source.refuse("no_repeat_ngram_size", f"must be at least 0, got {size}")

    forbidden = []
    for sequence in sequences:
        if not isinstance(sequence, list) or not sequence or not all(map(is_token_id, sequence)):
            source.refuse(
                "bad_words_ids", f"must hold lists of token ids, got {format_json(sequence)}"
            )
        forbidden.append(tuple(sequence))
    return TokenRules(
        tuple(forbidden),
        read_token_ids(source, "suppress_tokens"),
        read_token_ids(source, "begin_suppress_tokens"),
        size,
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
    if not all(type(token) is int and token < MAX_INTEGER for token in values):
        source.refuse(key, f"must be the id of a token, got {format_json(value)}")
    return tuple(token for token in values if token >= 0)  # -1 is an old way to say none


def is_token_id(value: Any) -> bool:
    """Return whether a value of JSON may be the id of a token."""
    return type(value) is int and 0 <= value < MAX_INTEGER


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
