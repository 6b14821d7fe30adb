"""config.json of a Hugging Face directory: each value is checked where it is used.

An error names the file and the key.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from jaxlm.config import UserError
from jaxlm.directories import CONFIG_FILE, check_directory

MAX_CONFIG_BYTES = 10 << 20  # real files have a few thousand
MAX_INTEGER = 1 << 28  # a size of 4 times as much still fits JAX's int32
MAX_LAYERS = 10_000  # each is described on its own before the tensors are looked at
SCALAR_TYPES: dict[type, tuple[Any, str]] = {
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
        """Return the value as it is; an explicit null is None, not the default."""
        return self.values.get(key, default)

    def refuse(self, key: str, reason: str) -> NoReturn:
        """Raise a UserError that names the file and the key."""
        raise UserError(f"{self.path}: {self.prefix}{key}: {reason}")

    def require(self, allowed: Mapping[str, Any]) -> None:
        """Refuse keys whose value is not the allowed one, or one of a tuple of allowed ones.

        An absent key and null are fine.
        """
        for key, values in allowed.items():
            choices = values if isinstance(values, tuple) else (values,)
            value = self.values.get(key)
            if value is not None and not any(equal_values(value, choice) for choice in choices):
                known = " or ".join(format_json(choice) for choice in choices)
                self.refuse(key, f"{format_json(value)} is not supported, only {known}")

    def choice(self, key: str, table: Mapping[Any, Any], default: Any) -> Any:
        """Return our name for the value, which is a string or a bool.

        `table` maps names of `transformers` to ours. `default` is a name of `transformers`, for a
        key that is absent or null.
        """
        value = self.values.get(key)
        value = default if value is None else value
        for name, ours in table.items():
            if equal_values(value, name):
                return ours

        known = ", ".join(str(name) for name in table)
        return self.refuse(key, f"{format_json(value)} is not supported; known: {known}")

    def scalar(
        self, key: str, default: Any, scalar_type: type = int, allow_null: bool = False
    ) -> Any:
        """Return an int, float or bool (`scalar_type`), or the default where the key is absent.

        Null gives None if `allow_null` or if the default is None, and is refused otherwise.
        """
        if key not in self.values:
            return default

        value: Any = self.values[key]
        types, description = SCALAR_TYPES[scalar_type]
        if value is None:
            if allow_null or default is None:
                return None
            self.refuse(key, f"must be {description}, got null")
        # Compared rather than converted: a whole number may be too large for a float.
        valid = isinstance(value, types) and isinstance(value, bool) == (scalar_type is bool)
        if not valid or (scalar_type is float and not abs(value) <= sys.float_info.max):
            self.refuse(key, f"must be {description}, got {format_json(value)}")
        limit = MAX_LAYERS if "layer" in key else MAX_INTEGER
        if scalar_type is int and abs(value) >= limit:
            self.refuse(key, f"{format_json(value)} is too large")
        return scalar_type(value)

    def strings(self, key: str) -> tuple[str, ...] | None:
        """Return a list of strings; None where it is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            self.refuse(key, f"must be a list of strings, got {format_json(value)}")
        return tuple(value)

    def nested(self, key: str) -> Self | None:
        """Return an object within this one; None where it is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(key, f"must be an object, got {format_json(value)}")
        return type(self)(self.path, value, f"{self.prefix}{key}.")


def read_hf_config(directory: Path) -> HFConfig:
    """Return the directory's config.json."""
    check_directory(directory)
    path = directory / CONFIG_FILE
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a JSON object")

    hf_config = HFConfig(path, values)
    if values.get("auto_map") is not None:
        hf_config.refuse(
            "auto_map",
            "names code that comes with the checkpoint, which is never run; "
            "only known architectures are read",
        )
    return hf_config


def read_json(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> Any:
    """Return a JSON file; UserError where it is missing, too large or broken."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    if len(content) > max_bytes:
        raise UserError(f"{path}: is larger than {max_bytes >> 20} MiB")
    return parse_json(path, content)


def parse_json(path: Path, content: bytes) -> Any:
    """Return the value of a JSON text in which no key appears twice; `path` is for messages."""

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                raise UserError(f"{path}: {format_json(key)} appears twice")
            values[key] = value
        return values

    try:
        # A byte order mark is no part of the text.
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: is not JSON: {error.msg} ({place})") from None
    except RecursionError:
        raise UserError(f"{path}: is not JSON that can be read: too many levels") from None
    except ValueError:  # an integer of more digits than Python converts
        raise UserError(
            f"{path}: is not JSON that can be read: a number has too many digits"
        ) from None


def format_document(values: Any) -> str:
    """Return the text of a JSON file, with other letters than ASCII's as they are."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, which only an escape can say
        text = json.dumps(values, indent=2) + "\n"
    return text


def equal_values(value: Any, other: Any) -> bool:
    """Return whether two values of JSON are equal; in Python 1 == True, here it is not."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def format_json(value: Any) -> str:
    """Return a value as JSON, cut to 80 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
