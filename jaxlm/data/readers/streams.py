"""Open files as streams of bytes, whatever they are compressed with, in bounded memory."""

import bz2
import contextlib
import gzip
import importlib
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, BinaryIO

from jaxlm.config import UserError
from jaxlm.data.documents import FilePart
from jaxlm.data.formats import COMPRESSED
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
# Of a compressed file at once: Zstandard makes at most 2**15 bytes of one, so 128 MiB of these.
FRAME_INPUT = 1 << 12
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
            head = file.peek(16)
            if not head and path.suffix.lower() in COMPRESSED:
                raise UserError(f"{path}: is empty, which no compressed file is")
            compression = find_compression(head)
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
            return io.BufferedReader(FrameStream(file, bz2.BZ2Decompressor), BUFFER)
        case "xz":
            return io.BufferedReader(FrameStream(file, lzma.LZMADecompressor, b"\0"), BUFFER)
        case "Zstandard":
            library = import_reader("zstandard", f"{path}: Zstandard")
            # Files made with --long=31 ask for windows of 2 GiB: those are refused, as by zstd
            # itself.
            decompressor = library.ZstdDecompressor(max_window_size=1 << 27)
            frames = FrameStream(file, decompressor.decompressobj, error=library.ZstdError)
            return io.BufferedReader(frames, BUFFER)
    return file


class FrameStream(io.RawIOBase):
    """The content of a compressed file of any number of frames, each of which ends by itself.

    The libraries' own streams are silent about damage: that of Zstandard takes a file that was cut
    for one that ends there, those of bzip2 and xz what is no frame for the end of the file.
    """

    def __init__(
        self,
        file: BinaryIO,
        new_frame: Callable[[], Any],
        padding: bytes = b"",  # that may stand between frames
        error: type[Exception] = OSError,  # of the library
    ):
        self.file, self.new_frame, self.padding, self.error = file, new_frame, padding, error
        self.frame: Any = None  # None between two frames
        self.output = memoryview(b"")
        self.input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the bytes at hand go; 0 at the end. Raises EOFError, OSError."""
        while not self.output:
            data = self.input or self.file.read(FRAME_INPUT)
            self.input = b""
            if not data:
                if self.frame is not None:
                    raise EOFError("the file ends inside a frame")
                return 0

            if self.frame is None:
                data = data.lstrip(self.padding)
                if not data:
                    continue
                self.frame = self.new_frame()
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
        if isinstance(stream, io.BufferedReader) and not isinstance(stream.raw, FrameStream):
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
