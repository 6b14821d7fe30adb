"""Read a file as one text."""

from jaxlm.config import UserError
from jaxlm.data.formats import describe_binary
from jaxlm.data.readers.streams import read_all
from jaxlm.data.remote_files import SourceFile
from jaxlm.files import strip_byte_order_mark

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: SourceFile) -> str:
    """Return the text of a file, decompressed, without a leading byte order mark.

    Raises UserError naming the first byte that is not UTF-8.
    """
    return decode_utf8(strip_byte_order_mark(read_all(path)), str(path))


def decode_utf8(data: bytes, place: str) -> str:
    """Return UTF-8 text, with newlines as they are; errors name `place` (FILE or FILE:LINE)."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        binary = describe_binary(data)
        if binary:
            raise UserError(f"{place}: {binary}") from error
        if data.startswith(UTF16_MARKS):
            reason = "is UTF-16 text, not UTF-8: convert it first"
            raise UserError(f"{place}: {reason}") from error
        raise UserError(
            f"{place}: not UTF-8 at byte {error.start:,} (0x{data[error.start]:02x})"
        ) from error
