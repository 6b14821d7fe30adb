"""Documents, the records that they are made of, and the names of a source's fields in messages."""

from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import SourceConfig, UserError
from jaxlm.data.remote_files import SourceFile


class Document(NamedTuple):
    """A text, or the texts of a record, and where it comes from."""

    name: str  # path relative to the source; for a record with `:NUMBER`
    text: str  # of a record with several: the first
    more: tuple[str, ...] = ()  # the other texts of a record
    ids: np.ndarray | None = None  # of files of tokens: what the text was decoded from
    facts: str | None = None  # of examples: what is no text, as JSON (examples.py)

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts, in the order of their places in the store."""
        return (self.text, *self.more)


class RecordShape(NamedTuple):
    """The parts of a record of a source."""

    texts: int = 1
    has_facts: bool = False
    parts: int = 1  # documents of a store that make a record (examples.py)

    @property
    def strings(self) -> int:
        """Texts and facts: what the first pass keeps."""
        return self.texts + self.has_facts


# Formats whose records are more than a text.
RECORD_SHAPES = {
    "pairs": RecordShape(2, parts=2),
    "messages": RecordShape(1, has_facts=True, parts=4),
    "labelled": RecordShape(2, has_facts=True, parts=3),
    "preferences": RecordShape(3, has_facts=True, parts=3),
}
EXAMPLE_FORMATS = ("messages", "labelled", "preferences")


def record_shape(source: SourceConfig) -> RecordShape:
    """Return what the records of a source have."""
    return RECORD_SHAPES.get(source.format, RecordShape())


class Record(NamedTuple):
    """One of the things that a file holds: a line of JSON, a row, a page."""

    number: int  # of the line, row or page in its file, from 1
    fields: dict[str, Any]
    remark: str = ""  # what is told of it though it is read, with the count of its kind


class Columns(NamedTuple):
    """The keys of a record that are read."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All keys."""
        return (*self.required, *self.optional)


class FilePart(NamedTuple):
    """A file that is read as a whole, or the lines of one that begin in a stretch of its bytes.

    Of files of tokens it is the documents that begin from the byte `start` on, before `stop`.
    """

    path: SourceFile
    start: int = 0  # lines begin after this byte; 0: the first line is one of them
    stop: int | None = None  # and not after this byte; None: to the end
    first_line: int = 1  # number of the first line


class SourceKeys(NamedTuple):
    """The names under which the user sets the fields of a source, for messages."""

    path: str
    section: str | None  # None: the fields are options of a command

    def field(self, name: str) -> str:
        """Return the name of a field beside the path."""
        return f"--{name.replace('_', '-')}" if self.section is None else f"{self.section}.{name}"

    def setting(self, name: str, value: str) -> str:
        """Return how a field is set to a value."""
        return f"{self.field(name)}{' ' if self.section is None else '='}{value}"


FIRST_SOURCE = SourceKeys("data.sources.0.path", "data.sources.0")
COMMAND_OPTIONS = SourceKeys("--data", None)


def check_unicode(text: str, place: str) -> None:
    """Refuse half of a surrogate pair, which JSON can spell (\\ud800) but UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: half a surrogate pair at character {error.start:,}, "
            "which is not Unicode text"
        ) from error
