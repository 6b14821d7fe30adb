"""Documents, the records that they are made of, and the names of a source's fields in messages."""

from typing import Any, NamedTuple

import numpy as np

from jaxlm.data.remote_files import SourceFile


class Document(NamedTuple):
    """A text, or a pair of texts, and where it comes from."""

    name: str  # path relative to the source; for a record with `:NUMBER`
    text: str  # of a pair: the source
    target: str | None = None  # of a pair
    ids: np.ndarray | None = None  # of files of tokens: what the text was decoded from

    @property
    def texts(self) -> tuple[str, ...]:
        """The text, or source and target."""
        return (self.text,) if self.target is None else (self.text, self.target)


class Record(NamedTuple):
    """One of the things that a file holds: a line of JSON, a row, a page."""

    number: int  # of the line, row or page in its file, from 1
    fields: dict[str, Any]
    remark: str = ""  # what is told of it though it is read, with the count of its kind


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
