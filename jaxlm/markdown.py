"""Markdown, and numbers in words.

Foreign text (names of sources, of devices) is escaped, so that it stays plain text.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$@:-])")
# Markdown reads this as it is in the middle of a line, underscores within words included.
BARE = re.compile(r"[\w ,./%=-]*")
SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"))
PETAFLOP_DAYS = 10**15 * 86_400  # FLOPs of a petaFLOP/s-day


def one_line(value: Any) -> str:
    """Remove control characters and repeated spaces."""
    text = "".join(
        " " if unicodedata.category(character)[0] in "CZ" else character for character in str(value)
    )
    return " ".join(text.split())


def plain(value: Any) -> str:
    """Escape a text so that Markdown, HTML and the cells of a table show it as it is."""
    text = one_line(value)
    if BARE.fullmatch(text) and "--" not in text and not re.search(r"(^|\W)_|_(\W|$)|www\.", text):
        return text
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return MARKDOWN.sub(r"\\\1", text).replace("www.", r"www\.")


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table; its cells are Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def properties(rows: Iterable[tuple[str, Any]]) -> str:
    """Return a table of two columns, without the rows that have no value."""
    return table(("", ""), [(name, value) for name, value in rows if value not in (None, "")])


def code(text: str, language: str) -> str:
    """Return a fenced block that no line of the text can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    body = text.strip("\n")
    return f"{fence}{language}\n{body}\n{fence}"


def count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def about(value: int) -> str:
    """Return 124439808 as '124 million'."""
    return next(
        (f"{value / size:.3g} {word}" for size, word in SCALES if value >= size), f"{value:,}"
    )


def number(value: float, digits: int = 4) -> str:
    """Return the number with at least `digits` digits; the whole part is never cut."""
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e12 else f"{value:,.{digits}g}"


def percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def scientific(value: int) -> str:
    """Return 236000000000 as '2.36 x 10<sup>11</sup>'."""
    if value < 10**6:
        return f"{value:,}"
    digits, power = f"{value:.2e}".split("e")
    return f"{digits} x 10<sup>{int(power)}</sup>"


def hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"
