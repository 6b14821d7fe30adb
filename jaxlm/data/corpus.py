"""The corpus of a config: its sources by number, and those of their documents that are kept."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxlm.config import DataConfig, SourceConfig, UserError
from jaxlm.data.documents import Document, SourceKeys
from jaxlm.data.formats import is_json_lines
from jaxlm.data.listing import list_files
from jaxlm.data.reading_notes import ReadingNotes
from jaxlm.data.sources import read_documents

VALIDATION = "validation"  # the name of the validation files, where the config names any


class NumberedSource(NamedTuple):
    """A source by its number, and the names of its fields in messages."""

    config: SourceConfig
    keys: SourceKeys


class Corpus(NamedTuple):
    """The sources of a config, and which of their documents are kept."""

    data: DataConfig
    verdicts: tuple[np.ndarray, ...] | None = None  # per source and document, 0 is kept; None: all

    def documents(self, number: int, notes: ReadingNotes | None = None) -> Iterator[Document]:
        """Yield the documents of a source that are kept, in order.

        Raises UserError where the files are no longer those that were judged.
        """
        source, keys = numbered_sources(self.data)[number]
        documents = read_documents(source, keys, notes or new_notes(self.data))
        if self.verdicts is None or number >= len(self.verdicts):  # validation files
            yield from documents
            return

        verdicts, count = self.verdicts[number], 0
        for document in documents:
            if count < len(verdicts) and verdicts[count] == 0:
                yield document
            count += 1
        if count != len(verdicts):
            raise UserError(f"{source.path or source.name}: changed while it was prepared")


def numbered_sources(data: DataConfig) -> tuple[NumberedSource, ...]:
    """Return each source, and the names of its fields in messages.

    The validation files, if the config names any, come last as a source of their own.
    """
    sources = []
    for number, source in enumerate(data.sources):
        key = f"data.sources.{number}"
        sources.append(NumberedSource(source, SourceKeys(f"{key}.path", key)))

    if data.validation.path is not None:
        keys = SourceKeys("data.validation.path", "data.sources.0")
        sources.append(NumberedSource(validation_source(data, keys), keys))
    return tuple(sources)


def validation_source(data: DataConfig, keys: SourceKeys) -> SourceConfig:
    """Return the validation files as a source. They are read as those of the first source are.

    Beside plain text there may be JSON lines, which are told by their names.
    """
    first = data.sources[0]
    source = SourceConfig(
        name=VALIDATION,
        path=data.validation.path,
        format="auto" if first.format == "python_stdlib" else first.format,
        text_key=first.text_key,
        text_keys=first.text_keys,
        text_join=first.text_join,
        source_key=first.source_key,
        target_key=first.target_key,
    )
    if source.format == "text" and any(map(is_json_lines, list_files(source, keys))):
        return replace(source, format="auto")
    return source


def check_files(data: DataConfig) -> None:
    """Raise ConfigError at the path of a source, or of the validation, that names no files."""
    for source, keys in numbered_sources(data):
        list_files(source, keys)


def new_notes(data: DataConfig) -> ReadingNotes:
    """Return empty notes for one pass over a source."""
    return ReadingNotes(data.on_error == "skip")
