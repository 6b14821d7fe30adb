"""A record of examples: its fields by the names of the format, whatever its keys are."""

from typing import Any

from jaxlm.config import SourceConfig, UserError
from jaxlm.config.fields import list_names, suggestion
from jaxlm.data.documents import Record, SourceKeys, check_unicode


class ExampleRecord:
    """A record whose fields go by the names of the format, whatever its keys are."""

    def __init__(self, record: Record, place: str, source: SourceConfig, keys: SourceKeys):
        self.fields, self.place, self.keys = record.fields, place, keys
        self.mapped = dict(source.keys)

    def key(self, name: str) -> str:
        """Return the key of a field."""
        return self.mapped.get(name, name)

    def has(self, name: str) -> bool:
        """Return whether the record has a field, or must have it since the config names its key."""
        return name in self.mapped or self.fields.get(name) is not None

    def get(self, name: str) -> Any:
        """Return the value of a field. Raises UserError if there is none, or null."""
        key = self.key(name)
        if key not in self.fields:
            names = list(self.fields)
            near = suggestion(key, names) or f" (it has {list_names(names)})"
            hint = f'{self.keys.field("keys")}=[["{name}", KEY]] names the key of the {name}'
            raise UserError(f"{self.place}: no key {key!r}{near}; {hint}")
        if self.fields[key] is None:
            raise self.wrong(name, "is null")
        return self.fields[key]

    def text(self, name: str) -> str:
        """Return a field that is a string."""
        value = self.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, f"must be a string, got {type(value).__name__}")
        return self.checked(name, value)

    def checked(self, name: str, text: str) -> str:
        """Return a text that is Unicode. Raises UserError for half of a surrogate pair."""
        if not text.isascii():
            check_unicode(text, f"{self.place}: {self.key(name)!r}")
        return text

    def wrong(self, name: str, reason: str) -> UserError:
        """Return what is wrong with a field, as an error."""
        return UserError(f"{self.place}: {self.key(name)!r}: {reason}")
