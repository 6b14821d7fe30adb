"""Config sections as JSON data, and JSON data as sections."""

import dataclasses
import json
import typing
from typing import Any, TypeVar

from jaxlm.config.errors import ConfigError
from jaxlm.config.fields import field_types, join, shorten

T = TypeVar("T")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict. Raises ValueError if a key stands in it twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return values


def to_dict(config: Any) -> dict[str, Any]:
    """Return a section as plain JSON data, which `build_section` reads."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def build_section(cls: type[T], values: Any, path: str) -> T:
    """Build a section from plain data (nested dicts and lists)."""
    if not isinstance(values, dict):
        reason = f"must be an object with the keys of {cls.__name__}, got {shorten(values)}"
        raise ConfigError(path, reason)

    known = field_types(cls)
    return cls(
        **{
            name: build_value(known.get(name), value, join(path, name))
            for name, value in values.items()
        }
    )


def build_value(annotation: Any, value: Any, path: str) -> Any:
    """Return `value` with its dicts turned into the sections that the annotation names.

    Other values are returned as they are: the section itself checks them.
    """
    if dataclasses.is_dataclass(annotation):
        return build_section(typing.cast(type, annotation), value, path)

    if typing.get_origin(annotation) is tuple and isinstance(value, (list, tuple)):
        item_type = typing.get_args(annotation)[0]
        if dataclasses.is_dataclass(item_type):
            cls = typing.cast(type, item_type)
            return tuple(build_item(cls, item, path, number) for number, item in enumerate(value))

    return value


def build_item(cls: type[T], values: Any, path: str, number: int) -> T:
    """Build one section of a list.

    A section does not know its number, so it is put into the path of its errors here.
    """
    try:
        return build_section(cls, values, path)
    except ConfigError as error:
        # A section in a list of its own kind (objective.parts) calls itself by its first place.
        section_path = path if error.path.startswith(path) else path.rpartition(".")[0]
        key = error.path.replace(section_path, f"{path}.{number}", 1)
        raise ConfigError(key, error.reason) from error
