"""Make every character of a text visible: documents are untrusted, terminals obey some of them."""

import unicodedata

LINE_BREAKS = "\n"
SHORT_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}
WIDE = ("W", "F")  # classes of East Asian width that take two columns of a terminal


def escape_text(text: str) -> str:
    r"""Return a text as one line: line breaks as \n, what can't be seen by its code (\x1b, \u200b).

    These are control and format characters, halves of surrogate pairs, unassigned and private
    characters, and all spaces but U+0020. A backslash is doubled. A combining mark that has nothing
    to stand on is escaped as well.
    """
    if text.isascii() and text.isprintable():
        return text.replace("\\", "\\\\")
    parts = [SHORT_ESCAPES.get(character) or escape_character(character) for character in text]
    if unicodedata.combining(text[0]):
        parts[0] = escape_code(text[0])
    return "".join(parts)


def escape_lines(text: str) -> str:
    """Return a text with its line breaks and backslashes; the rest is as in `escape_text`."""
    return "".join(
        character if character in LINE_BREAKS else escape_character(character) for character in text
    )


def escape_character(character: str) -> str:
    """Return a character, or its code where it can't be seen."""
    is_hidden = unicodedata.category(character)[0] in "CZ" and character != " "
    return escape_code(character) if is_hidden else character


def escape_code(character: str) -> str:
    r"""Return the code of a character as Python spells it: \x1b, \u200b, \U000e0001."""
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def display_width(text: str) -> int:
    """Return how many columns of a terminal an escaped text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.combining(character)
        else 1 + (unicodedata.east_asian_width(character) in WIDE)
        for character in text
    )


def fit_width(text: str, width: int) -> str:
    """Return an escaped text padded to `width` columns, or cut there with an ellipsis."""
    if display_width(text) > width:
        while display_width(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - display_width(text))
