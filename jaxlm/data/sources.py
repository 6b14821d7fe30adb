"""Read the documents of a source, file by file, whatever their format.

Documents are read one at a time, whatever the size of the corpus.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from jaxlm.config import SourceConfig, UserError
from jaxlm.config.fields import list_names, suggestion
from jaxlm.data.documents import (
    EXAMPLE_FORMATS,
    FIRST_SOURCE,
    Columns,
    Document,
    FilePart,
    Record,
    SourceKeys,
    check_unicode,
)
from jaxlm.data.example_record import ExampleRecord
from jaxlm.data.examples import ExampleSpec, example_columns, read_example
from jaxlm.data.formats import find_format, find_json, find_table, format_by_name
from jaxlm.data.listing import base_folder, list_files
from jaxlm.data.readers.json_lines import read_json_lines
from jaxlm.data.readers.streams import MissingLibraryError, read_head
from jaxlm.data.readers.tables import read_arrow, read_csv, read_parquet
from jaxlm.data.readers.text import read_text
from jaxlm.data.readers.web_archive import read_web_archive
from jaxlm.data.readers.wikipedia import read_wikipedia
from jaxlm.data.reading_notes import NAMES, ReadingNotes
from jaxlm.data.remote_files import SourceFile
from jaxlm.files import strip_byte_order_mark

READERS: dict[str, Callable[[SourceFile, Columns], Iterator[Record | UserError]]] = {
    "jsonl": read_json_lines,
    "csv": functools.partial(read_csv, delimiter=","),
    "tsv": functools.partial(read_csv, delimiter="\t"),
    "parquet": read_parquet,
    "arrow": read_arrow,
    "warc": read_web_archive,
    "wikipedia": read_wikipedia,
}
UNPACKED = ("parquet", "arrow")  # which compress by themselves


def read_documents(
    source: SourceConfig,
    keys: SourceKeys = FIRST_SOURCE,
    notes: ReadingNotes | None = None,
    examples: ExampleSpec | None = None,
) -> Iterator[Document]:
    """Yield the documents of a source in the order of its files.

    Empty documents are skipped; one of the two texts of a pair may be empty. `examples` says how
    the records of formats such as "labelled" become texts. Raises `UserError`
    naming the file and the line or byte at fault, unless the `notes` skip it, and `ConfigError` at
    `keys.path` if there are no files.
    """
    notes = notes or ReadingNotes()
    parts = [FilePart(path) for path in list_files(source, keys, notes.left_out)]
    yield from read_parts(parts, source, keys, notes, examples)


def read_parts(
    parts: Sequence[FilePart],
    source: SourceConfig,
    keys: SourceKeys,
    notes: ReadingNotes,
    examples: ExampleSpec | None = None,
) -> Iterator[Document]:
    """Yield the documents of some of a source's files, as `read_documents` does."""
    documents = filter(notes.has_text, read_files(parts, source, keys, notes, examples))
    yield from islice(documents, source.documents)


def read_files(
    parts: Sequence[FilePart],
    source: SourceConfig,
    keys: SourceKeys,
    notes: ReadingNotes,
    examples: ExampleSpec | None,
) -> Iterator[Document]:
    """Yield the documents of files, also empty ones."""
    base, columns = base_folder(source), read_keys(source, examples)
    for part in parts:
        path = part.path
        name = path.relative_to(base).as_posix()
        has_records = False
        try:
            if source.format == "python_stdlib":
                yield from read_stdlib_module(path, name)
                continue

            if source.format == "tokens":
                raise UserError(f"{path}: files of tokens are read for training alone")
            kind = choose_reader(path, source, keys, notes)
            if kind == "text":
                yield Document(name, read_text(path))
                continue
            has_records = True
            if part.start or part.stop is not None:
                records = read_json_lines(path, columns, part)
            else:
                records = READERS[kind](path, columns)
            yield from read_records(records, path, name, source, keys, notes, examples)
        except MissingLibraryError:
            raise
        except UserError as fault:
            notes.add_fault(fault, ends_file=has_records)


def choose_reader(
    path: SourceFile, source: SourceConfig, keys: SourceKeys, notes: ReadingNotes
) -> str:
    """Return the key of the reader of a file, or "text"."""
    has_parts = source.format == "pairs" or source.format in EXAMPLE_FORMATS
    if source.format != "auto" and not has_parts:
        return source.format

    head, compression = read_head(path)
    head = strip_byte_order_mark(head)
    found = find_format(path, head)
    if found is None and has_parts:
        return "jsonl" if source.format == "pairs" else find_table(head)
    if found is None:
        found = find_json(path, head, read_keys(source).required[0], keys)
    if found in UNPACKED and compression is not None:
        raise UserError(f"{path}: is {NAMES[found]} in {compression}: unpack it first")
    if not head and format_by_name(path) in UNPACKED:
        raise UserError(f"{path}: is empty, which no {NAMES[format_by_name(path)]} file is")
    notes.add_format(path, found, compression)
    return found


def read_keys(source: SourceConfig, examples: ExampleSpec | None = None) -> Columns:
    """Return the keys of a record that are read, in the order of their texts."""
    if source.format in EXAMPLE_FORMATS:
        return example_columns(source, examples)
    if source.format == "pairs":
        return Columns((source.source_key, source.target_key))
    return Columns(source.text_keys or (source.text_key,))


def read_stdlib_module(path: SourceFile, name: str) -> Iterator[Document]:
    """Yield the text of a module; nothing if it has another encoding than UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    with contextlib.suppress(UnicodeDecodeError):
        yield Document(name, data.decode())


def read_records(
    records: Iterator[Record | UserError],
    path: SourceFile,
    name: str,
    source: SourceConfig,
    keys: SourceKeys,
    notes: ReadingNotes,
    examples: ExampleSpec | None,
) -> Iterator[Document]:
    """Yield the documents of the records of a file."""
    for record in records:
        if isinstance(record, UserError):
            notes.add_fault(record)
            continue
        try:
            document = record_document(record, path, name, source, keys, examples)
        except UserError as fault:
            notes.add_fault(fault)
        else:
            if record.remark:
                notes.add_remark(record.remark)
            yield document


def record_document(
    record: Record,
    path: SourceFile,
    name: str,
    source: SourceConfig,
    keys: SourceKeys,
    examples: ExampleSpec | None,
) -> Document:
    """Return the document of a record. Raises UserError naming the file and the record."""
    place, number = f"{path}:{record.number}", f"{name}:{record.number}"
    if source.format in EXAMPLE_FORMATS:
        return read_example(number, ExampleRecord(record, place, source, keys), source, examples)
    if source.format == "pairs":
        text = read_field(record, place, "source_key", source.source_key, keys)
        target = read_field(record, place, "target_key", source.target_key, keys)
        return Document(number, text, (target,))

    if not source.text_keys:
        return Document(number, read_field(record, place, "text_key", source.text_key, keys))
    texts = [
        read_field(record, place, "text_keys", key, keys)
        for key in source.text_keys
        if key not in record.fields or record.fields[key] is not None
    ]
    return Document(number, source.text_join.join(filter(None, texts)))


def read_field(record: Record, place: str, field: str, key: str, keys: SourceKeys) -> str:
    """Return the string under `key`, which the `field` of the source names."""
    if key not in record.fields:
        names = list(record.fields)
        near = suggestion(key, names) or f" (it has {list_names(names)})"
        kind, _, plural = field.partition("_key")
        role = f"names the key{plural} of the {kind}"
        raise UserError(f"{place}: no key {key!r}{near}; {keys.field(field)} {role}")

    text = record.fields[key]
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        raise UserError(f"{place}: {key!r} must be a string, got {kind}")
    if not text.isascii():
        check_unicode(text, place)
    return text
