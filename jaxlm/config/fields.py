"""Typed, frozen config sections.

`@section("model")` makes a keyword-only dataclass whose values are checked when it is built. The
type of a field is one of: bool, int, float, str, a Literal, `T | None`, `tuple[T, ...]`,
`tuple[A, B]`, another section, and any of these as `Annotated[T, Bounds(...)]`. Every failure is a
`ConfigError` with the path of the key.
"""

import dataclasses
import difflib
import functools
import math
import struct
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, dataclass_transform

from jaxlm.config.errors import ConfigError
from jaxlm.config.urls import hide_credentials, is_url

T = TypeVar("T")

LONGEST_SHOWN = 100  # characters of a value in an error message
LARGEST_COUNT = 2**31 - 1  # the device counts in int32
SMALLEST_NORMAL = 2.0**-126  # of float32: devices take smaller numbers for 0


class Bounds(NamedTuple):
    """Limits of a number, or of the length of a string."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # `low` itself is not allowed
    below: bool = False  # `high` itself is not allowed
    float32: bool = True  # a number holds the bounds as the float32 that reaches the device, too
    path: bool = False  # a string that names a file, whose name may be other bytes than UTF-8
    url: bool = False  # a path that may be a URL


MOST_SHOWN = 20  # names in a message

Count = Annotated[int, Bounds(low=0, high=LARGEST_COUNT)]
Positive = Annotated[int, Bounds(low=1, high=LARGEST_COUNT)]
Share = Annotated[float, Bounds(low=0.0, high=1.0)]
ShareBelowOne = Annotated[float, Bounds(low=0.0, high=1.0, below=True)]
NonNegative = Annotated[float, Bounds(low=0.0)]
PositiveFloat = Annotated[float, Bounds(low=0.0, above=True)]
PositiveDouble = Annotated[float, Bounds(low=0.0, above=True, float32=False)]  # on the host alone
NonNegativeDouble = Annotated[float, Bounds(low=0.0, float32=False)]  # the same
NonEmpty = Annotated[str, Bounds(low=1)]
# An empty path would mean the current folder, as after --data "$UNSET".
FilePath = Annotated[str, Bounds(low=1, path=True)]
SourcePath = Annotated[str, Bounds(low=1, path=True, url=True)]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for a near miss among `known`, else ''."""
    close = nearest(name, known)
    return f" (did you mean {close!r}?)" if close is not None else ""


def list_names(names: Sequence[str]) -> str:
    """Return names as a message shows them: the first ones, and how many more there are."""
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return (", ".join(map(repr, names[:MOST_SHOWN])) or "none") + more


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the name among `known` that `name` may be misspelt for.

    Capitals, and dashes for underscores, count as no difference.
    """
    spellings: dict[str, str] = {}
    for candidate in known:
        spellings.setdefault(simplify_spelling(candidate), candidate)
    close = difflib.get_close_matches(simplify_spelling(name), spellings, n=1, cutoff=0.6)
    return spellings[close[0]] if close else None


def simplify_spelling(name: str) -> str:
    """Return a name in small letters, with underscores for dashes."""
    return name.casefold().replace("-", "_")


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the annotation of each field of a section, in order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(path: str) -> Callable[[type[T]], type[T]]:
    """Return a class decorator for a frozen, keyword-only dataclass that checks its values.

    `path` is where the section stands in the config ("model"); the errors begin with it.
    """

    def decorate(cls: type[T]) -> type[T]:
        checked_cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        plain_init = checked_cls.__init__

        @functools.wraps(plain_init)
        def checked_init(self, /, *args, **values):
            known = field_types(checked_cls)
            if args:
                usage = f"takes {checked_cls.__name__}(key=value, ...), not positional values"
                raise ConfigError(path, usage)

            for name in values:
                if name not in known:
                    raise ConfigError(join(path, name), f"unknown key{suggestion(name, known)}")

            for field in dataclasses.fields(checked_cls):  # type: ignore[arg-type]
                if field.name not in values and is_required(field):
                    raise ConfigError(join(path, field.name), "is required")

            checked_values = {
                name: check_value(value, known[name], join(path, name))
                for name, value in values.items()
            }
            plain_init(self, **checked_values)

        checked_cls.__init__ = checked_init  # type: ignore[method-assign]
        return checked_cls

    return decorate


def is_required(field: dataclasses.Field) -> bool:
    """Return whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def join(path: str, name: str) -> str:
    """Return the path of the key `name` below `path` ("" is the top level)."""
    return f"{path}.{name}" if path else name


def split_optional(annotation: Any) -> tuple[Any, bool]:
    """Return (T, True) for `T | None`, else (annotation, False)."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = typing.get_args(annotation)
        others = [member for member in members if member is not type(None)]
        return others[0], len(others) < len(members)

    return annotation, False


def split_bounds(annotation: Any) -> tuple[Any, Bounds]:
    """Return (T, bounds) for `Annotated[T, bounds]`, else (annotation, no bounds)."""
    if typing.get_origin(annotation) is Annotated:
        inner, bounds = typing.get_args(annotation)
        return inner, bounds

    return annotation, Bounds()


def describe_type(annotation: Any) -> str:
    """Return a type in the words of an error message: 'a whole number or none'."""
    inner, optional = split_optional(annotation)
    inner, _ = split_bounds(inner)

    if typing.get_origin(inner) is Literal:
        text = describe_choices(typing.get_args(inner))
    elif typing.get_origin(inner) is tuple:
        text = "a list"
    else:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
        text = names.get(inner) or inner.__name__
    return text + (" or none" if optional else "")


def describe_choices(choices: tuple) -> str:
    """Return "one of 'a', 'b'", or the only choice."""
    return ("one of " if len(choices) > 1 else "") + ", ".join(map(repr, choices))


def shorten(value: Any) -> str:
    """Return a value as Python writes it, cut where it gets long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write whole numbers of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def check_value(value: Any, annotation: Any, path: str) -> Any:
    """Return `value`, converted where that loses nothing (3 -> 3.0, list -> tuple).

    Raises ConfigError at `path` if it does not have the type or is out of its bounds.
    """
    inner, optional = split_optional(annotation)
    if optional and value is None:
        return None

    inner, bounds = split_bounds(inner)
    if typing.get_origin(inner) is Literal:
        return check_choice(value, typing.get_args(inner), path)
    if typing.get_origin(inner) is tuple:
        return check_tuple(value, typing.get_args(inner), path)

    # A bool is an int in Python, but not here.
    if inner is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            value = math.inf if value > 0 else -math.inf
    if not isinstance(value, inner) or (inner is int and isinstance(value, bool)):
        raise ConfigError(path, f"must be {describe_type(annotation)}, got {shorten(value)}")

    if inner is int:
        check_bounds(value, bounds, path)
    if inner is float:
        check_finite(value, path)
        check_bounds(value, bounds, path)
        if bounds.float32:
            check_as_float32(value, bounds, path)
    if isinstance(value, str):
        check_string(value, bounds, path)
    return value


def check_choice(value: Any, choices: tuple, path: str) -> Any:
    """Return `value` if it is one of `choices`, else raise ConfigError."""
    # 1 == True and 0 == False in Python: compare types too.
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value

    hint = ""
    if isinstance(value, str):
        hint = suggestion(value, [choice for choice in choices if isinstance(choice, str)])
    raise ConfigError(path, f"must be {describe_choices(choices)}, got {shorten(value)}{hint}")


def check_tuple(value: Any, item_types: tuple, path: str) -> tuple:
    """Return a list or tuple as a checked tuple.

    `item_types` are the arguments of its type: (T, ...) for any length, (A, B) for two items.
    """
    if not isinstance(value, (list, tuple)):
        raise ConfigError(path, f"must be a list, got {shorten(value)}")

    if item_types[-1] is Ellipsis:
        item_types = (item_types[0],) * len(value)
    if len(value) != len(item_types):
        raise ConfigError(path, f"must have {len(item_types)} values, got {shorten(value)}")

    return tuple(
        check_value(item, item_type, join(path, str(number)))
        for number, (item, item_type) in enumerate(zip(value, item_types, strict=True))
    )


def check_finite(value: float, path: str) -> None:
    """Raise ConfigError unless a number is finite."""
    if not math.isfinite(value):
        raise ConfigError(path, f"must be finite, got {value!r}")


def check_bounds(value: float, bounds: Bounds, path: str) -> None:
    """Raise ConfigError unless a number is within `bounds`."""
    if value > bounds.high or (bounds.below and value == bounds.high):
        limit = f"{'below' if bounds.below else 'at most'} {bounds.high:.12g}"
        raise ConfigError(path, f"must be {limit}, got {shorten(value)}")

    if value < bounds.low or (bounds.above and value == bounds.low):
        limit = f"{'above' if bounds.above else 'at least'} {bounds.low:.12g}"
        raise ConfigError(path, f"must be {limit}, got {shorten(value)}")


def check_as_float32(value: float, bounds: Bounds, path: str) -> None:
    """Raise ConfigError unless a finite number is finite and within `bounds` as a float32."""
    try:
        rounded = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError as error:
        raise ConfigError(path, f"is too large for float32, got {value!r}") from error

    if abs(rounded) < SMALLEST_NORMAL:
        rounded = 0.0
    if (bounds.above and rounded == bounds.low) or (bounds.below and rounded == bounds.high):
        limit = bounds.low if rounded == bounds.low else bounds.high
        raise ConfigError(path, f"is {limit:.12g} in float32, got {value!r}")


def check_string(value: str, bounds: Bounds, path: str) -> None:
    """Raise ConfigError for an empty string that must not be, and for one that UTF-8 can't hold."""
    if len(value) < bounds.low:
        raise ConfigError(path, "must not be empty")

    try:
        # A file may have any bytes as its name. Python reads those that are not UTF-8 as lone
        # surrogates, on the command line too.
        value.encode(errors="surrogateescape" if bounds.path else "strict")
    except UnicodeEncodeError as error:
        raise ConfigError(path, f"must be Unicode text, got {shorten(value)}") from error
    if bounds.path and not bounds.url and is_url(value):
        reason = f"must be a local path, got {hide_credentials(value)}: only sources may be URLs"
        raise ConfigError(path, reason)
    if bounds.path and "\0" in value:
        raise ConfigError(path, f"must not have a zero byte, got {shorten(value)}")


def refuser(path: str) -> Callable[[str, str], None]:
    """Return a function (name, reason) that raises ConfigError for a field of a section."""

    def refuse(name: str, reason: str) -> None:
        raise ConfigError(f"{path}.{name}", reason)

    return refuse
