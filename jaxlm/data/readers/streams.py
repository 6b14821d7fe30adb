"""Open files as streams of bytes, whatever they are compressed with, in bounded memory."""

import bz2
import contextlib
import gzip
import importlib
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any, BinaryIO

from jaxlm.config import UserError
from jaxlm.data.documents import FilePart
from jaxlm.data.remote_files import SourceFile

# Compression -> the first bytes. A text may well begin with "BZh".
COMPRESSIONS = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "Zstandard": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
    "bzip2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
}

LONGEST_RECORD = 1 << 28  # bytes of one line, row or page, so that memory stays bounded
BUFFER = 1 << 16
# Zstandard makes at most 2**15 bytes of one, so 128 MiB of these.
ZSTANDARD_INPUT = 1 << 12
OBJECT_WITHOUT_END = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{[^\n]*")
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)


class MissingLibraryError(UserError):
    """A library that a format needs is not installed: no fault of the file."""


def import_reader(name: str, purpose: str) -> ModuleType:
    """Import a library of the extra `data`. Raises MissingLibraryError that says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        advice = f'{purpose} needs {library}: pip install "jaxlm[data]"'
        raise MissingLibraryError(advice) from error


@contextlib.contextmanager
def open_stream(path: SourceFile) -> Iterator[io.BufferedIOBase]:
    """Open a file for one reading from its start, decompressed.

    What is wrong with the file, also during the block, is a UserError that names it.
    """
    compression = None
    try:
        with path.open("rb") as file:
            compression = find_compression(file.peek(16))
            yield decompress(file, compression, path)
    except DAMAGED as error:
        kind = f"damaged {compression}" if compression else "damaged"
        raise UserError(f"{path}: {kind}: {describe(error)}") from error
    except OSError as error:
        reason = error.strerror or describe(error)
        if compression and error.errno is None:
            reason = f"damaged {compression}: {reason}"
        raise UserError(f"{path}: {reason}") from error


def find_compression(head: bytes) -> str | None:
    """Return what a file is compressed with, by its first bytes."""
    return next((name for name, magic in COMPRESSIONS.items() if magic.match(head)), None)


def decompress(
    file: io.BufferedReader, compression: str | None, path: SourceFile
) -> io.BufferedIOBase:
    """Return the content of an open file as a stream."""
    match compression:
        case "gzip":
            return gzip.GzipFile(fileobj=file)
        case "bzip2":
            return bz2.BZ2File(file)
        case "xz":
            return lzma.LZMAFile(file)
        case "Zstandard":
            zstandard = import_reader("zstandard", f"{path}: Zstandard")
            return io.BufferedReader(ZstandardStream(file, zstandard), BUFFER)
    return file


class ZstandardStream(io.RawIOBase):
    """The content of a Zstandard file of any number of frames.

    The library's own stream takes a file that was cut for one that ends there.
    """

    def __init__(self, file: BinaryIO, zstandard: ModuleType):
        self.file, self.error = file, zstandard.ZstdError
        # Files made with --long=31 ask for windows of 2 GiB: those are refused, as by zstd itself.
        self.library = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        self.frame: Any = None  # None between two frames
        self.output = memoryview(b"")
        self.input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the bytes at hand go; 0 at the end. Raises EOFError, OSError."""
        while not self.output:
            data = self.input or self.file.read(ZSTANDARD_INPUT)
            self.input = b""
            if not data:
                if self.frame is not None:
                    raise EOFError("the file ends inside a frame")
                return 0

            self.frame = self.frame or self.library.decompressobj()
            try:
                self.output = memoryview(self.frame.decompress(data))
            except self.error as error:
                raise OSError(describe(error)) from error
            if self.frame.eof:
                self.input, self.frame = self.frame.unused_data, None

        size = min(len(buffer), len(self.output))
        buffer[:size] = self.output[:size]
        self.output = self.output[size:]
        return size


def describe(error: Exception) -> str:
    """Return the message of a library's error as a part of a line."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")


def read_head(path: SourceFile, size: int = BUFFER) -> tuple[bytes, str | None]:
    """Return the first bytes of a file's content, and what it is compressed with.

    Of a damaged file these are the bytes before that; it raises UserError if there are none.
    """
    head = b""
    try:
        with open_stream(path) as stream:
            while len(head) < size and (data := stream.read1(size - len(head))):
                head += data
            # An object on a line is only seen to be one at its end.
            if OBJECT_WITHOUT_END.fullmatch(head):
                head += stream.readline(LONGEST_RECORD)
    except UserError:
        if not head:
            raise
    with path.open("rb") as file:
        return head, find_compression(file.read(16))


def read_all(path: SourceFile) -> bytes:
    """Return the content of a file.

    Raises UserError where decompressing it takes more than LONGEST_RECORD bytes.
    """
    with open_stream(path) as stream:
        if isinstance(stream, io.BufferedReader) and not isinstance(stream.raw, ZstandardStream):
            return stream.read()

        data = stream.read(LONGEST_RECORD + 1)
        if len(data) > LONGEST_RECORD:
            raise UserError(
                f"{path}: one text of more than {LONGEST_RECORD >> 20} MiB after decompression: "
                "divide it into documents"
            )
        return data


def read_lines(stream: io.BufferedIOBase, part: FilePart) -> Iterator[tuple[int, bytes | None]]:
    """Yield (number, line with its newline); None for a line over LONGEST_RECORD bytes."""
    place, number = part.start, part.first_line - 1
    if part.start:
        stream.seek(part.start)
        place += skip_line(stream)  # that of an earlier part
    while part.stop is None or place <= part.stop:
        line = stream.readline(LONGEST_RECORD + 1)
        if not line:
            return
        number += 1
        place += len(line)
        if len(line) <= LONGEST_RECORD:
            yield number, line
            continue
        if not line.endswith(b"\n"):
            place += skip_line(stream)
        yield number, None


def skip_line(stream: io.BufferedIOBase) -> int:
    """Read to the end of a line, whatever its length, and return how many bytes that were."""
    size = 0
    while line := stream.readline(LONGEST_RECORD):
        size += len(line)
        if line.endswith(b"\n"):
            break
    return size


def too_long(place: str) -> UserError:
    """Return the error of a line of which nothing is kept."""
    return UserError(f"{place}: longer than {LONGEST_RECORD >> 20} MiB")
