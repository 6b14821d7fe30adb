"""Align the columns of a table that is printed."""

from collections.abc import Sequence


def align_columns(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as text: the first column to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )
