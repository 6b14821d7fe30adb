"""Typed, frozen sections: `section("model")` makes a keyword-only dataclass whose values are checked when it is built.

A checked type is one of: bool, int, float, str, a Literal, `T | None`, `tuple[T, ...]`, `tuple[A, B]`, another section, and any
of these as `Annotated[T, Bounds(...)]`. Every failure is a `ConfigError` with the key's path.
"""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, dataclass_transform

from jaxlm.config.errors import ConfigError

T = TypeVar("T")


class Bounds(NamedTuple):
    """Limits of a number (of a text: of its length), inclusive but for `low` where `above` and `high` where `below` is set."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False


Count = Annotated[int, Bounds(low=0)]
Positive = Annotated[int, Bounds(low=1)]
Share = Annotated[float, Bounds(low=0.0, high=1.0)]
ShareBelowOne = Annotated[float, Bounds(low=0.0, high=1.0, below=True)]
Rate = Annotated[float, Bounds(low=0.0)]
PositiveFloat = Annotated[float, Bounds(low=0.0, above=True)]
Filled = Annotated[
    str, Bounds(low=1)
]  # an empty path would mean the current folder, as after --data "$UNSET"


def suggestion(name: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for a near miss among `known`, else ''."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


@functools.cache
def annotations(cls: type) -> dict[str, Any]:
    """Field name -> annotation of a section, in order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(path: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: a frozen keyword-only dataclass, checked on construction; errors carry `path`."""

    def decorate(cls: type[T]) -> type[T]:
        made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        plain_init = made.__init__

        @functools.wraps(plain_init)
        def checked_init(self, /, *args, **values):
            known = annotations(made)
            if args:
                raise ConfigError(
                    path, f"takes {made.__name__}(key=value, ...), not positional values"
                )
            for name in values:
                if name not in known:
                    raise ConfigError(join(path, name), f"unknown key{suggestion(name, known)}")
            missing = [
                f.name for f in dataclasses.fields(made) if f.name not in values and no_default(f)
            ]  # type: ignore[arg-type]
            if missing:
                raise ConfigError(join(path, missing[0]), "is required")
            plain_init(
                self,
                **{
                    name: check(value, known[name], join(path, name))
                    for name, value in values.items()
                },
            )

        made.__init__ = checked_init  # type: ignore[method-assign]
        return made

    return decorate


def no_default(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def split_optional(annotation: Any) -> tuple[Any, bool]:
    """(T, True) for `T | None`, else (annotation, False)."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(annotation) if a is not type(None)]
        return rest[0], len(rest) < len(typing.get_args(annotation))
    return annotation, False


def strip_bounds(annotation: Any) -> tuple[Any, Bounds]:
    """(T, bounds) for `Annotated[T, Bounds]`, else (annotation, no bounds)."""
    if typing.get_origin(annotation) is Annotated:
        inner, bounds = typing.get_args(annotation)
        return inner, bounds
    return annotation, Bounds()


def describe(annotation: Any) -> str:
    """The type as a user would say it, for error messages."""
    inner, optional = split_optional(annotation)
    inner, _ = strip_bounds(inner)
    if typing.get_origin(inner) is Literal:
        text = either(typing.get_args(inner))
    elif typing.get_origin(inner) is tuple:
        text = "a list"
    else:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        text = names.get(inner) or inner.__name__
    return text + (" or none" if optional else "")


def either(choices: tuple) -> str:
    return ("one of " if len(choices) > 1 else "") + ", ".join(map(repr, choices))


def check(value: Any, annotation: Any, path: str) -> Any:
    """`value`, converted where that loses nothing (3 -> 3.0, list -> tuple), or a `ConfigError` at `path`."""
    inner, optional = split_optional(annotation)
    if optional and value is None:
        return None
    inner, bounds = strip_bounds(inner)
    if typing.get_origin(inner) is Literal:
        return check_choice(value, typing.get_args(inner), path)
    if typing.get_origin(inner) is tuple:
        return check_tuple(value, typing.get_args(inner), path)
    if inner is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, inner) or (inner is int and isinstance(value, bool)):
        raise ConfigError(path, f"must be {describe(annotation)}, got {brief(value)}")
    if inner in (int, float):
        check_bounds(value, bounds, path)
    if isinstance(value, str) and len(value) < bounds.low:
        raise ConfigError(path, "must not be empty")
    return value


def brief(value: Any) -> str:
    """A value as Python writes it, cut where it gets long."""
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."


def check_choice(value: Any, choices: tuple, path: str) -> Any:
    # 1 == True and 0 == False in Python: compare types too.
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        near = (
            suggestion(value, [c for c in choices if isinstance(c, str)])
            if isinstance(value, str)
            else ""
        )
        raise ConfigError(path, f"must be {either(choices)}, got {brief(value)}{near}")
    return value


def check_tuple(value: Any, parts: tuple, path: str) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(path, f"must be a list, got {brief(value)}")
    if parts[-1] is Ellipsis:
        return tuple(check(item, parts[0], join(path, str(i))) for i, item in enumerate(value))
    if len(value) != len(parts):
        raise ConfigError(path, f"must have {len(parts)} values, got {brief(value)}")
    return tuple(
        check(item, part, join(path, str(i)))
        for i, (item, part) in enumerate(zip(value, parts, strict=True))
    )


def check_bounds(value: float, bounds: Bounds, path: str) -> None:
    if not math.isfinite(value):
        raise ConfigError(path, f"must be finite, got {value!r}")
    if value > bounds.high or (bounds.below and value == bounds.high):
        raise ConfigError(
            path,
            f"must be {'below' if bounds.below else 'at most'} {bounds.high:.12g}, got {value!r}",
        )
    if value < bounds.low or (bounds.above and value == bounds.low):
        raise ConfigError(
            path,
            f"must be {'above' if bounds.above else 'at least'} {bounds.low:.12g}, got {value!r}",
        )


def refuser(path: str) -> Callable[[str, str], None]:
    """A function that raises a `ConfigError` for a field of the section at `path`."""

    def refuse(name: str, reason: str) -> None:
        raise ConfigError(f"{path}.{name}", reason)

    return refuse
