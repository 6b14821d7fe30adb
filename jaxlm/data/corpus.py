"""The corpus of a config: its sources by number, the validation files among them."""

from dataclasses import replace
from typing import NamedTuple

from jaxlm.config import DataConfig, SourceConfig
from jaxlm.data.documents import SourceKeys
from jaxlm.data.formats import is_json_lines
from jaxlm.data.listing import list_files
from jaxlm.data.reading_notes import ReadingNotes

# The name of the validation files, where the config names any, and what is added to it where a
# source has that name: each has a row of the report.
VALIDATION, OTHER = "validation", " files"


class NumberedSource(NamedTuple):
    """A source by its number, and the names of its fields in messages."""

    config: SourceConfig
    keys: SourceKeys


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
    name = VALIDATION
    while any(source.name == name for source in data.sources):
        name += OTHER
    source = SourceConfig(
        name=name,
        path=data.validation.path,
        format="auto" if first.format == "python_stdlib" else first.format,
        text_key=first.text_key,
        text_keys=first.text_keys,
        text_join=first.text_join,
        source_key=first.source_key,
        target_key=first.target_key,
        keys=first.keys,
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
