"""Mend and normalise Unicode."""

import re
import unicodedata
from collections.abc import Callable

from jaxlm.data.readers.streams import import_reader

NEWLINES = re.compile(r"\r\n?")
# Control characters other than tab and newline, byte order marks, and what is no character.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")


def build_repair(purpose: str) -> Callable[[str], str]:
    """Return ftfy's repair of text that was decoded wrongly.

    It undoes wrong decodings alone; its changes of quotes, ligatures and widths are switched off.
    Raises MissingLibraryError that names `purpose`.
    """
    ftfy = import_reader("ftfy", purpose)
    config = ftfy.TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=True,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        normalization=None,
        explain=False,
    )

    def repair(text: str) -> str:
        # Plain ASCII has nothing to mend but control characters.
        return remove_controls(text if text.isascii() else ftfy.fix_text(text, config))

    return repair


def normalize(text: str, form: str) -> str:
    """Return a text in a form of Unicode ("NFC", "NFKC"), without control characters."""
    return remove_controls(unicodedata.normalize(form, text))  # type: ignore[arg-type]


def remove_controls(text: str) -> str:
    """Return a text without control characters other than tab and newline.

    A carriage return is a newline, with the newline that may follow it.
    """
    return CONTROLS.sub("", NEWLINES.sub("\n", text))
