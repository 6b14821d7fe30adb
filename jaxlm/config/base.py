"""Take model and tokenizer of a run from another run, whose weights it starts from."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxlm.config.errors import ConfigError
from jaxlm.config.fields import shorten
from jaxlm.config.model import ModelConfig
from jaxlm.config.plain_data import unique_keys
from jaxlm.config.schema import Config

# Fields of the model that change no weight that the base has. All others are those of the base.
OWN_FIELDS = (
    "dropout",
    "attention_dropout",
    "initializer",
    "initializer_std",
    "classifier",
)


def adopt_base(config: Config, base: Config, edited_keys: tuple[str, ...] = ()) -> Config:
    """Return `config` with the model and the tokenizer of `base`, the config of `config.base`.

    A field of OWN_FIELDS is that of `config` where it differs from its default, or where an edit
    has set it. Raises ConfigError for other fields that differ from their defaults and from the
    base.
    """
    assert config.base is not None
    changes = own_values(config.model, base.model, config.base, edited_keys)
    model = dataclasses.replace(base.model, **changes)

    path = Path(config.base) / "tokenizer.json"
    tokenizer = dataclasses.replace(
        base.tokenizer,
        kind="file",
        path=str(path),
        vocabulary_size=None,
        pre_tokenization=None,
        chat_template=config.tokenizer.chat_template,
    )
    for field in dataclasses.fields(tokenizer):
        value, adopted = getattr(config.tokenizer, field.name), getattr(tokenizer, field.name)
        if value not in (field.default, adopted, getattr(base.tokenizer, field.name)):
            reason = f"{shorten(value)}, but the tokenizer is that of base ({config.base})"
            raise ConfigError(f"tokenizer.{field.name}", f"{reason}: leave it out")
    if not has_token(path, tokenizer.pad):
        # Nothing looks for the padding by its id: a length or a mask says where it is.
        tokenizer = dataclasses.replace(tokenizer, pad=tokenizer.end_of_text)
    objective = config.objective
    if model.family == "encoder_decoder" and objective.decoder_start is None:
        # BART's decoder starts with the end of text, whatever it is tuned for.
        objective = dataclasses.replace(objective, decoder_start=base.objective.start)
    return dataclasses.replace(config, model=model, tokenizer=tokenizer, objective=objective)


def own_values(
    model: ModelConfig, base: ModelConfig, path: str, edited_keys: tuple[str, ...]
) -> dict[str, Any]:
    """Return the fields of a model that take the place of those of its base.

    Raises ConfigError for a field that would need other weights.
    """
    changes = {}
    for field in dataclasses.fields(model):
        value, key = getattr(model, field.name), f"model.{field.name}"
        is_edited = any(edit == key or edit.startswith(f"{key}.") for edit in edited_keys)
        if field.name == "classifier":
            changes[field.name] = value
        elif value == getattr(base, field.name) or (value == field.default and not is_edited):
            continue
        elif field.name in OWN_FIELDS:
            changes[field.name] = value
        else:
            got = shorten(getattr(base, field.name))
            reason = f"{shorten(value)}, but the model of base ({path}) has {got}"
            raise ConfigError(key, f"{reason}: leave it out")
    return changes


def has_token(path: Path, token: str) -> bool:
    """Return whether a tokenizer.json has a token. Raises ConfigError if it can't be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique_keys)
    except OSError as error:
        raise ConfigError("base", f"can't read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError("base", f"{path} is not JSON: {error}") from error

    added = document.get("added_tokens") if isinstance(document, dict) else None
    names = [entry.get("content") for entry in added or () if isinstance(entry, dict)]
    return token in names
