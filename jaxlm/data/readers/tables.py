"""Read tables: CSV and TSV, Parquet, and the Arrow files of Hugging Face's datasets."""

import contextlib
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxlm.config import UserError
from jaxlm.config.fields import list_names, suggestion
from jaxlm.data.documents import Columns, FilePart, Record
from jaxlm.data.readers.streams import (
    LONGEST_RECORD,
    describe,
    import_reader,
    open_stream,
    read_lines,
    too_long,
)
from jaxlm.data.readers.text import decode_utf8
from jaxlm.data.remote_files import RemoteError, SourceFile
from jaxlm.files import strip_byte_order_mark

BATCH_ROWS = 256  # that are turned into Python objects at once


class TextLines:
    """The decoded lines of a stream. One that can't be read raises UserError; the next goes on."""

    def __init__(self, stream: io.BufferedIOBase, path: SourceFile):
        self.lines, self.path = read_lines(stream, FilePart(path)), path

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, line = next(self.lines)
        if line is None:
            raise too_long(f"{self.path}:{number}")
        return decode_utf8(strip_byte_order_mark(line) if number == 1 else line, str(self.path))


def read_csv(path: SourceFile, columns: Columns, delimiter: str) -> Iterator[Record | UserError]:
    """Yield the rows of a table whose first line names its columns, or what is wrong with a row.

    Where all keys that are read are numbers, none of which stands in the first line, it is a row,
    and the columns are numbered from 1. Records are numbered by the line in which they end. Raises
    UserError where the table has no such columns.
    """
    csv.field_size_limit(LONGEST_RECORD)
    with open_stream(path) as stream:
        rows = csv.reader(TextLines(stream, path), delimiter=delimiter, strict=True)
        try:
            header = next(rows, [])
        except csv.Error as error:
            raise UserError(f"{path}:1: {describe(error)}") from error
        first = None
        if is_headerless(header, columns.required):
            header, first = [str(number + 1) for number in range(len(header))], header
        check_columns(path, header, columns.required)

        while True:
            try:
                row, first = next(rows, None) if first is None else first, None
            except csv.Error as error:
                place = f"{path}:{rows.line_num}"
                if "field limit" in str(error):
                    # Inside of a quote: what follows would be taken for rows.
                    size = f"{LONGEST_RECORD >> 20} MiB"
                    reason = f"a field is longer than {size}, perhaps for want of a closing quote"
                    raise UserError(f"{place}: {reason}") from error
                yield UserError(f"{place}: {describe(error)}")
                continue
            except UserError as error:
                yield error
                continue

            if row is None:
                return
            if len(row) == len(header):
                yield Record(rows.line_num, dict(zip(header, row, strict=True)))
            elif row:  # not a blank line
                reason = f"has {len(row):,} fields, the first line {len(header):,}"
                yield UserError(f"{path}:{rows.line_num}: {reason}")


def is_headerless(first_line: list[str], names: tuple[str, ...]) -> bool:
    """Return whether the keys that are read are numbers of columns."""
    return bool(names) and all(
        name.isdecimal() and name.isascii() and name not in first_line for name in names
    )


def check_columns(path: SourceFile, columns: list[str], names: tuple[str, ...]) -> None:
    """Raise UserError if a column that is read is missing, or is there twice."""
    for name in names:
        if columns.count(name) > 1:
            raise UserError(f"{path}: has two columns {name!r}")
        if name not in columns:
            near = suggestion(name, columns) or f" (it has {list_names(columns)})"
            raise UserError(f"{path}: no column {name!r}{near}")


def read_parquet(path: SourceFile, columns: Columns) -> Iterator[Record | UserError]:
    """Yield the rows of a Parquet file with the columns that are read.

    Raises UserError where one is missing or the file is damaged.
    """
    parquet = import_reader("pyarrow.parquet", f"{path}: Parquet")
    arrow = import_reader("pyarrow", f"{path}: Parquet")
    try:
        with open_table(path) as table, parquet.ParquetFile(table) as file:
            names = choose_columns(path, file.schema_arrow.names, columns)
            batches = file.iter_batches(batch_size=BATCH_ROWS, columns=names)
            yield from number_rows(batches, path)
    except RemoteError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged Parquet: {describe(error)}") from error


def read_arrow(path: SourceFile, columns: Columns) -> Iterator[Record | UserError]:
    """Yield the rows of an Arrow file or stream with the columns that are read.

    Raises UserError where one is missing or the file is damaged.
    """
    arrow = import_reader("pyarrow", f"{path}: Arrow")
    ipc = import_reader("pyarrow.ipc", f"{path}: Arrow")
    try:
        with open_table(path) as table, open_arrow(table, arrow) as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            reader = ipc.open_file(file) if is_file else ipc.open_stream(file)
            names = choose_columns(path, reader.schema.names, columns)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            small = (
                batch.select(names).slice(start, BATCH_ROWS)
                for batch in batches
                for start in range(0, batch.num_rows, BATCH_ROWS)
            )
            yield from number_rows(map(validate_batch, small), path)
    except RemoteError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged Arrow file: {describe(error)}") from error


def choose_columns(path: SourceFile, names: list[str], columns: Columns) -> list[str]:
    """Return the columns that are read of those that are there. Raises as `check_columns` does."""
    optional = [name for name in columns.optional if name in names]
    check_columns(path, names, (*columns.required, *optional))
    return [*columns.required, *optional]


def open_table(path: SourceFile) -> contextlib.AbstractContextManager[Path | io.BufferedReader]:
    """Return what pyarrow reads: a local path, for its own readers, or an open file."""
    return contextlib.nullcontext(path) if isinstance(path, Path) else path.open("rb")


def open_arrow(table: Path | io.BufferedReader, arrow: ModuleType) -> Any:
    """Return a file of pyarrow; a local one is mapped into memory."""
    if isinstance(table, Path):
        return arrow.memory_map(str(table))
    return arrow.PythonFile(table, mode="r")


def validate_batch(batch: Any) -> Any:
    """Return a record batch. Raises an error of pyarrow unless it can be read.

    The offsets of a damaged Arrow file may lead anywhere, and kill the process that follows them.
    """
    batch.validate(full=True)
    return batch


def number_rows(batches: Iterator[Any], path: SourceFile) -> Iterator[Record | UserError]:
    """Yield the rows of pyarrow's record batches, or what is wrong with a row."""
    first = 1
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except ValueError:  # a text that is not UTF-8; the others are read
            for number in range(batch.num_rows):
                yield read_row(batch.slice(number, 1), path, first + number)
        else:
            for number, fields in enumerate(rows, first):
                yield Record(number, fields)
        first += batch.num_rows


def read_row(batch: Any, path: SourceFile, number: int) -> Record | UserError:
    """Return the row of a batch of one, or what is wrong with it."""
    try:
        return Record(number, batch.to_pylist()[0])
    except UnicodeDecodeError as error:
        byte = f"byte {error.start:,} (0x{error.object[error.start]:02x})"
        return UserError(f"{path}:{number}: not UTF-8 at {byte}")
    except ValueError as error:
        return UserError(f"{path}:{number}: can't be read: {describe(error)}")
