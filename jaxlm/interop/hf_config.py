"""config.json of a Hugging Face directory as an object: each value is checked where it is used, and refused by file and key."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jaxlm.config import UserError

LARGEST = 10 << 20  # bytes of a config.json; real ones have a few thousand
LARGEST_NUMBER = 1 << 28  # of whole numbers: a size of 4 times as much still fits JAX's int32
KINDS: dict[type, tuple[Any, str]] = {
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    bool: (bool, "true or false"),
}


@dataclass(frozen=True)
class HFConfig:
    """The values of a config.json, or of an object in it."""

    path: Path
    values: Mapping[str, Any]
    prefix: str = ""  # of keys in messages: "rope_parameters."

    def __contains__(self, key: object) -> bool:
        return key in self.values

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is; an explicit null is None, not the default."""
        return self.values.get(key, default)

    def refuse(self, key: str, reason: str) -> NoReturn:
        raise UserError(f"{self.path}: {self.prefix}{key}: {reason}")

    def fixed(self, allowed: Mapping[str, Any]) -> None:
        """Refuses keys that have another value than the one allowed, or than one of a tuple of them. Absent or null is fine."""
        for key, values in allowed.items():
            choices = values if isinstance(values, tuple) else (values,)
            value = self.values.get(key)
            if value is not None and not any(same(value, choice) for choice in choices):
                self.refuse(
                    key,
                    f"{shown(value)} is not supported, only {' or '.join(shown(choice) for choice in choices)}",
                )

    def choice(self, key: str, table: Mapping[Any, Any], default: Any) -> Any:
        """Our name for their value: a word, or a bool. `default` is THEIR value where the key is absent or null."""
        value = self.values.get(key)
        value = default if value is None else value
        for theirs in table:
            if same(value, theirs):
                return table[theirs]
        return self.refuse(
            key,
            f"{shown(value)} is not supported; known: {', '.join(str(theirs) for theirs in table)}",
        )

    def number(self, key: str, default: Any, kind: type = int, null: bool = False) -> Any:
        """An int, float or bool (`kind`). Null gives None where `null` or where the default is None, and is refused otherwise."""
        if key not in self.values:
            return default
        value: Any = self.values[key]
        types, words = KINDS[kind]
        if value is None:
            return (
                None if null or default is None else self.refuse(key, f"must be {words}, got null")
            )
        # Compared rather than converted: a whole number may be too large for a float.
        finite = isinstance(value, types) and (
            kind is not float or abs(value) <= sys.float_info.max
        )
        if not finite or isinstance(value, bool) != (kind is bool):
            self.refuse(key, f"must be {words}, got {shown(value)}")
        if kind is int and abs(value) >= LARGEST_NUMBER:
            self.refuse(key, f"{shown(value)} is too large")
        return kind(value)

    def words(self, key: str) -> tuple[str, ...] | None:
        """A list of words; None where absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            self.refuse(key, f"must be a list of words, got {shown(value)}")
        return tuple(value)

    def section(self, key: str) -> "HFConfig | None":
        """An object within this one; None where absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(key, f"must be an object, got {shown(value)}")
        return HFConfig(self.path, value, f"{self.prefix}{key}.")


def read(directory: Path) -> HFConfig:
    """The directory's config.json."""
    path = directory / "config.json"
    if not directory.is_dir():
        raise UserError(
            f"{directory}: {'is not a directory' if directory.exists() else 'there is no such directory'}"
        )
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a JSON object")
    settings = HFConfig(path, values)
    if values.get("auto_map") is not None:
        settings.refuse(
            "auto_map",
            "names code that comes with the checkpoint, which is never run; only known architectures are read",
        )
    return settings


def read_json(path: Path, largest: int = LARGEST) -> Any:
    """A JSON file in which no key appears twice; UserError where it is missing, too large or broken."""
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    if len(content) > largest:
        raise UserError(f"{path}: is larger than {largest >> 20} MiB")
    return parse_json(path, content)


def parse_json(path: Path, content: bytes) -> Any:
    """JSON in which no key appears twice; `path` is for messages."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise UserError(f"{path}: {shown(twice)} appears twice")
        return values

    try:
        return json.loads(content.decode(), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except RecursionError:
        raise UserError(f"{path}: is not JSON that can be read: too many levels") from None
    except ValueError:  # an integer of more digits than Python converts
        raise UserError(
            f"{path}: is not JSON that can be read: a number has too many digits"
        ) from None


def same(value: Any, other: Any) -> bool:
    """Equal, and not a bool beside a number: 1 == True in Python."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def shown(value: Any) -> str:
    """A value as JSON has it, cut short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
