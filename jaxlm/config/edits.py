"""Apply `section.key=value` edits to a config, and name the key that a wrong one meant."""

import dataclasses
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxlm.config.data import SourceConfig
from jaxlm.config.errors import ConfigError
from jaxlm.config.fields import (
    describe_type,
    field_types,
    join,
    nearest,
    shorten,
    split_bounds,
    split_optional,
    suggestion,
)
from jaxlm.config.objective import SOURCE_FORMATS
from jaxlm.config.plain_data import build_section, to_dict
from jaxlm.config.schema import Config
from jaxlm.config.urls import hide_credentials

LONGEST_NUMBER = 10  # digits of the number of an item in a list


def apply_edits(config: Config, edits: Sequence[str], data: str | None = None) -> Config:
    """Return `config` with `section.key=value` edits, checked together once all are applied.

    `data`, unless it is None, is the path of the one source that replaces all others before that.
    """
    if not edits and data is None:
        return config

    document = to_dict(config)
    replaced = find_record_source(document)
    edited_keys = [edit.partition("=")[0] for edit in edits]
    if data is not None:
        check_data_edits(edited_keys)
        document["data"]["sources"] = [{"name": name_source(data), "path": data}]

    for edit in edits:
        key, equals, text = edit.partition("=")
        if not equals or not key:
            raise ConfigError(edit, "is not an edit: write section.key=value")
        apply_edit(document, key, text)

    if data is not None:
        keep_format(document, replaced)

    try:
        return build_section(Config, document, "")
    except ConfigError as error:
        # An edit may contradict a key that was not edited: then the message shows the edits.
        hint = "" if not edits or error.path in edited_keys else f" (with {' '.join(edits)})"
        raise ConfigError(error.path, error.reason + hint) from error


def name_source(path: str) -> str:
    """Return the name of the source that `--data` names: that of the file or folder."""
    name = Path(hide_credentials(path)).stem.strip("*") or "data"
    return name.encode(errors="replace").decode()


def check_data_edits(edited_keys: Sequence[str]) -> None:
    """Refuse edits that name another source than `--data` does."""
    for key in edited_keys:
        if key in ("data", "data.sources", "data.sources.0.path"):
            raise ConfigError(key, "--data names the source already; leave out one of the two")


def find_record_source(document: dict) -> dict:
    """Return the first source whose records have several parts, in plain data; {} without one."""
    sources = document["data"]["sources"]
    return next((each for each in sources if each["format"] in SOURCE_FORMATS.values()), {})


def keep_format(document: dict, replaced: dict) -> None:
    """Let the source of `--data` have the format that the objective needs.

    Its keys are those of the source that it replaced. Keys that an edit has set stay.
    """
    objective = document["objective"]
    kind = objective.get("kind") if isinstance(objective, dict) else None
    if isinstance(kind, str) and kind in SOURCE_FORMATS:
        names = ("source_key", "target_key") if kind == "pairs" else ("keys",)
        keys = {name: replaced[name] for name in names if name in replaced}
        source = document["data"]["sources"][0]
        document["data"]["sources"][0] = {"format": SOURCE_FORMATS[kind], **keys, **source}


def apply_edit(document: dict, key: str, text: str) -> None:
    """Set one dotted key of a config in plain data; `data.sources.0.path` reaches into lists."""
    annotation, container, path = Config, document, ""
    *parents, last = key.split(".")
    for part in parents:
        annotation, container, path = step_into(annotation, container, part, path)

    if typing.get_origin(annotation) is tuple:
        item_key = f"{key}.KEY" if last.isdecimal() else f"{path}.0.{last}"
        raise ConfigError(key, f"{path} is a list: write {item_key}=...")
    if not dataclasses.is_dataclass(annotation):
        raise ConfigError(key, f"{path} is a value, not a section")
    known = field_types(typing.cast(type, annotation))
    if last not in known:
        siblings = [join(path, name) for name in known]
        raise ConfigError(key, f"unknown key{suggest_keys(key, siblings)}")

    container[last] = parse_value(text, known[last], key)


def step_into(annotation: Any, container: Any, part: str, path: str) -> tuple[Any, Any, str]:
    """Return (annotation, value, path) of the child `part` of the section or list at `path`.

    An earlier edit may have set the section, or the list, to anything.
    """
    child_path = join(path, part)
    if typing.get_origin(annotation) is tuple:
        is_number = part.isdecimal() and len(part) < LONGEST_NUMBER
        if not is_number or int(part) >= len(container):
            reason = f"no such item: {path} has {len(container)}, numbered from 0"
            raise ConfigError(child_path, reason)
        annotation, child = typing.get_args(annotation)[0], container[int(part)]
    else:
        known = field_types(annotation) if dataclasses.is_dataclass(annotation) else {}
        if part not in known:
            raise ConfigError(child_path, f"unknown key{suggest_keys(child_path)}")
        annotation = known[part]
        child = container.setdefault(part, {} if dataclasses.is_dataclass(annotation) else [])

    if dataclasses.is_dataclass(annotation) and not isinstance(child, dict):
        raise ConfigError(child_path, f"must be an object, got {shorten(child)}")
    if typing.get_origin(annotation) is tuple and not isinstance(child, list):
        raise ConfigError(child_path, f"must be a list, got {shorten(child)}")
    return annotation, child, child_path


def suggest_keys(key: str, siblings: Sequence[str] = ()) -> str:
    """Return ' (did you mean X?)' for an unknown key, or ''.

    Keys with the same last part come first (steps: training.steps), then the nearest spelling
    among all keys and the `siblings` of the unknown one.
    """
    known_keys = list(dict.fromkeys([*siblings, *all_keys(), *item_keys()]))
    section, _, name = key.rpartition(".")
    close = nearest(name, [known.rpartition(".")[2] for known in known_keys])

    if close == name or (close and not section):
        same_ending = [known for known in known_keys if f".{known}".endswith(f".{close}")]
        return f" (did you mean {' or '.join(map(repr, same_ending))}?)"
    return suggestion(key, known_keys)


def all_keys(cls: Any = Config, path: str = "") -> list[str]:
    """Return the dotted names of all sections and fields."""
    keys = []
    for name, annotation in field_types(cls).items():
        keys.append(join(path, name))
        if dataclasses.is_dataclass(annotation):
            keys += all_keys(annotation, join(path, name))
    return keys


def item_keys() -> list[str]:
    """Return the keys of the first source."""
    return all_keys(SourceConfig, "data.sources.0")


def parse_value(text: str, annotation: Any, path: str) -> Any:
    """Return the value of an edit, read by the type of its field.

    That is none, true, 12, 3e-4, a string, or JSON for lists and sections.
    """
    inner, optional = split_optional(annotation)
    inner, _ = split_bounds(inner)
    if optional and text.lower() in ("none", "null"):
        return None

    try:
        if typing.get_origin(inner) is Literal:
            return next((choice for choice in typing.get_args(inner) if str(choice) == text), text)
        if inner is bool:
            return {"true": True, "false": False}[text.lower()]
        if inner in (int, float):
            return parse_number(text, inner)
        return text if inner is str else json.loads(text)
    except (ValueError, KeyError, RecursionError) as error:
        language = "" if inner in (int, float, bool) else " in JSON"
        reason = f"must be {describe_type(annotation)}{language}, got {shorten(text)}"
        raise ConfigError(path, reason) from error


def parse_number(text: str, number_type: type) -> int | float:
    """Return a number. A whole one may be written 1e6 or 1_000; ValueError if it is not whole."""
    value = float(text)
    if number_type is float:
        return value

    # int() keeps all digits, which a float would round above 2**53.
    if "." not in text and "e" not in text.lower():
        return int(text)
    if not value.is_integer():
        raise ValueError(text)
    return int(value)
