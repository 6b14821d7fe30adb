"""Divide the text of a config into units of work: some files of a source, or a part of a large one.

The units follow from the sizes of the files alone, so that a preparation that goes on after a kill,
or on another number of processes, has the same ones.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxlm.config import DataConfig, SourceConfig, UserError
from jaxlm.data.corpus import numbered_sources
from jaxlm.data.documents import FilePart, SourceKeys
from jaxlm.data.fingerprints import LINE_COUNT_BYTES
from jaxlm.data.listing import list_files
from jaxlm.data.readers.streams import read_head
from jaxlm.data.reading_notes import ReadingNotes
from jaxlm.data.remote_files import SourceFile, file_size
from jaxlm.data.sources import choose_reader

UNIT_BYTES = LINE_COUNT_BYTES  # of files; a folder of small ones gives units of about that size


class Unit(NamedTuple):
    """Text that one process reads at once."""

    number: int
    source: int  # number in `numbered_sources`
    parts: tuple[FilePart, ...]
    size: int  # bytes of the files

    @property
    def name(self) -> str:
        """The number as it stands in the names of files."""
        return f"{self.number:06d}"


def plan_units(
    data: DataConfig, newlines: Mapping[str, Sequence[int]], notes: Sequence[ReadingNotes]
) -> list[Unit]:
    """Return the units of all sources, in the order of their text.

    `newlines` has for each large file, by its path, how many newlines stand before each multiple of
    UNIT_BYTES. The `notes` of each source get what is left out of its folder.
    """
    units: list[Unit] = []
    for number, (source, keys) in enumerate(numbered_sources(data)):
        paths = list_files(source, keys, notes[number].left_out)
        parts = [part for path in paths for part in divide_file(path, source, keys, newlines)]
        # The first documents are those of the first files: one process counts them.
        limit = UNIT_BYTES if source.documents is None else None
        for group, size in group_parts(parts, limit):
            units.append(Unit(len(units), number, tuple(group), size))
    return units


def divide_file(
    path: SourceFile, source: SourceConfig, keys: SourceKeys, newlines: Mapping[str, Sequence[int]]
) -> list[FilePart]:
    """Return the parts of a file: several of large JSON lines that are not compressed, else one."""
    if source.format == "tokens":
        return divide_tokens(path, source)
    counts = newlines.get(str(path))
    whole = [FilePart(path)]
    if not counts or source.documents is not None:
        return whole
    try:
        _, compression = read_head(path)
        is_lines = choose_reader(path, source, keys, ReadingNotes()) == "jsonl"
    except UserError:  # it is told when the file is read
        return whole
    if compression is not None or not is_lines:
        return whole

    starts = [number * UNIT_BYTES for number in range(len(counts))]
    stops = [*starts[1:], None]
    return [
        FilePart(path, start, stop, first_line=count + 2 if start else 1)
        for start, stop, count in zip(starts, stops, counts, strict=True)
    ]


def divide_tokens(path: SourceFile, source: SourceConfig) -> list[FilePart]:
    """Return the parts of a file of tokens: several of a large one on this machine, else one."""
    size = part_size(FilePart(path)) if isinstance(path, Path) else 0
    if size <= 2 * UNIT_BYTES or source.documents is not None:
        return [FilePart(path)]
    starts = list(range(0, size, UNIT_BYTES))
    stops = [*starts[1:], None]
    return [FilePart(path, start, stop) for start, stop in zip(starts, stops, strict=True)]


def group_parts(parts: Sequence[FilePart], limit: int | None) -> list[tuple[list[FilePart], int]]:
    """Return consecutive parts in groups of at least `limit` bytes (None: a single one)."""
    groups: list[tuple[list[FilePart], int]] = []
    for part in parts:
        size = part_size(part)
        if groups and (limit is None or groups[-1][1] + size <= limit):
            group, before = groups[-1]
            group.append(part)
            groups[-1] = group, before + size
        else:
            groups.append(([part], size))
    return groups


def order_units(units: Sequence[Unit], weights: Sequence[float]) -> list[Unit]:
    """Return the units in the order in which a run with these weights reads them.

    The sources, one weight for each, advance side by side.
    """
    before = dict.fromkeys({unit.source for unit in units}, 0)
    places = []
    for unit in units:
        # Validation files have no weight, nor do sources that come later.
        weight = weights[unit.source] if unit.source < len(weights) else 0.0
        places.append(before[unit.source] / weight if weight else math.inf)
        before[unit.source] += unit.size
    order = sorted(range(len(units)), key=lambda number: places[number])
    return [units[number] for number in order]


def part_size(part: FilePart) -> int:
    """Return the bytes of a part; 0 for a file that can't be read."""
    if part.stop is not None:
        return part.stop - part.start
    try:
        return file_size(part.path) - part.start
    except OSError:
        return 0
