"""Read web archives: WET (plain text) and WARC (pages, whose text is extracted)."""

import io
from collections.abc import Iterator
from typing import Any

from jaxlm.config import UserError
from jaxlm.data.documents import Columns, Record
from jaxlm.data.readers.streams import (
    BUFFER,
    LONGEST_RECORD,
    describe,
    import_reader,
    open_stream,
    too_long,
)
from jaxlm.data.remote_files import SourceFile

HTML = ("text/html", "application/xhtml+xml")
KINDS = ("conversion", "response")
# Bytes that are read until a page begins, so that memory stays bounded. A header has few.
LONGEST_HEADER = 1 << 22
TRUNCATED = "pages were cut short when they were crawled, and are read as far as they go"


def read_web_archive(path: SourceFile, columns: Columns) -> Iterator[Record | UserError]:
    """Yield the fields "text", "url" and "date" of each page, or what is wrong with it.

    Of an HTML page the text is its main content, without menus; "" if it has none. Other responses
    than text are left out. Records are numbered as they stand in the file.
    """
    del columns
    warcio = import_reader("warcio", f"{path}: WARC")
    library = import_reader("warcio.exceptions", f"{path}: WARC")
    with open_stream(path) as stream:
        source = EagerStream(stream)
        records = warcio.ArchiveIterator(source)
        records.INC_RECORD = ""  # a warning on standard error, in three lines
        number = warnings = 0
        fault: Exception | None = None
        while True:
            try:
                if fault is not None:
                    raise fault
                source.left = LONGEST_HEADER
                record = next(records, None)
                if record is None:
                    return
                number += 1
                source.left = None
                data = b""
                if record.rec_type in KINDS:
                    data = record.content_stream().read(LONGEST_RECORD + 1)
                missing = getattr(record.raw_stream, "limit", None)
                fault = skip_record(records, record, source)
            except (library.ArchiveLoadFailed, ValueError) as error:
                reason = f"damaged WARC after record {number:,}: {describe(error)}"
                raise UserError(f"{path}: {reason}") from error

            place = f"{path}:{number}"
            if record.rec_type is None or missing is None:
                name = "WARC-Type" if record.rec_type is None else "Content-Length"
                yield UserError(f"{place}: is a record without {name}")
                continue
            is_longer, warnings = records.err_count > warnings, records.err_count
            if record.rec_type not in KINDS:
                continue
            if is_longer:
                yield UserError(f"{place}: is longer than its Content-Length, which is wrong")
                continue
            if len(data) > LONGEST_RECORD:
                yield too_long(place)
                continue
            if missing > 0:  # bytes of the record that are not there
                yield UserError(f"{place}: the file ends inside a page")
                continue
            text = page_text(record, data, place)
            if text is not None:
                headers = record.rec_headers
                url, date = headers.get_header("WARC-Target-URI"), headers.get_header("WARC-Date")
                fields = {"text": text, "url": url or "", "date": date or ""}
                yield Record(number, fields, TRUNCATED if is_truncated(record, data) else "")


def skip_record(records: Any, record: Any, source: "EagerStream") -> Exception | None:
    """Read the rest of a record, and the first line of the next. Return the error of that line.

    Then warcio has counted an error if the record is longer than it says.
    """
    try:
        while record.raw_stream.read(BUFFER):
            pass
        source.left = LONGEST_HEADER
        records.read_to_end()
    except (OSError, ValueError) as error:  # the record itself may be whole
        return error
    return None


class EagerStream:
    """A stream that gives what it has, so that what comes before a damaged part is not lost."""

    def __init__(self, stream: io.BufferedIOBase):
        self.stream = stream
        self.left: int | None = None  # bytes that may be read; None: any number

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; none at the end.

        Raises OSError where the file was cut, and ValueError where no more may be read.
        """
        if self.left is not None and self.left <= 0:
            raise ValueError(f"a header of more than {LONGEST_HEADER >> 20} MiB")
        try:
            data = self.stream.read1(size)
        except EOFError as error:  # which warcio would take for the end
            raise OSError(str(error)) from error
        if self.left is not None:
            self.left -= len(data)
        return data


def page_text(record: Any, data: bytes, place: str) -> str | None:
    """Return the text of a record, None if it is no page."""
    if record.rec_type == "conversion":
        return data.decode(errors="replace")

    headers = record.http_headers
    if headers is None or headers.get_statuscode() != "200":
        return None
    kind, _, parameters = (headers.get_header("Content-Type") or "").partition(";")
    kind = kind.strip().lower()
    if kind not in (*HTML, "text/plain"):
        return None

    text = decode_page(data, parameters, place)
    if kind not in HTML:
        return text
    trafilatura = import_reader("trafilatura", f"{place}: WARC")
    return trafilatura.extract(text, favor_precision=True, include_comments=False) or ""


def is_truncated(record: Any, data: bytes) -> bool:
    """Return whether a page is not whole: the crawler says so, or the server had promised more."""
    if record.rec_headers.get_header("WARC-Truncated"):
        return True
    headers = record.http_headers
    if headers is None or headers.get_header("Content-Encoding"):
        return False
    promised = headers.get_header("Content-Length") or ""
    return promised.isdecimal() and len(data) < int(promised)


def decode_page(data: bytes, parameters: str, place: str) -> str:
    """Return a page as text: in UTF-8, in the encoding of its header, or in one that is guessed.

    Bytes of another encoding hardly ever are UTF-8 by chance, whatever the header says.
    """
    charset = parameters.strip().lower().removeprefix("charset=").strip("\"' ")
    for name in ("utf-8", charset):
        try:
            return data.decode(name or "utf-8")
        except (UnicodeDecodeError, LookupError):
            continue
    utilities = import_reader("trafilatura.utils", f"{place}: WARC")
    return utilities.decode_file(data)
