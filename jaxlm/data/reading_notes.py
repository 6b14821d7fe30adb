"""Note what reading a source finds: records that are skipped, files that are not what they seem."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxlm.config import UserError
from jaxlm.data.documents import Document
from jaxlm.data.formats import COMPRESSED, format_by_name
from jaxlm.data.remote_files import SourceFile

NAMES = {
    "text": "plain text",
    "jsonl": "JSON lines",
    "csv": "CSV",
    "tsv": "TSV",
    "parquet": "Parquet",
    "arrow": "Arrow",
    "warc": "a web archive",
    "wikipedia": "a MediaWiki dump",
}
FAULTS = 3  # whose messages a report shows


class ReadingNotes:
    """The findings of one pass over a source. The first fault is raised without `skips`."""

    def __init__(self, skips: bool = False):
        self.skips = skips
        self.fault_count, self.first_fault = 0, ""
        self.faults: list[str] = []  # the first ones
        self.empty_count = 0  # documents without text
        self.remarks: dict[str, int] = {}  # what is told of documents that are read -> how many
        self.left_out: list[Path] = []  # of a folder: no regular files
        self.formats: dict[str, list[str]] = {}  # what it is -> files that seem something else

    def add_fault(self, fault: UserError, *, ends_file: bool = False) -> None:
        """Take what is wrong with a record or the rest of a file; raise it without `skips`."""
        if not self.skips:
            raise fault
        text = f"{fault}; what follows in the file is left out" if ends_file else str(fault)
        self.first_fault = self.first_fault or text
        self.faults += [text] if len(self.faults) < FAULTS else []
        self.fault_count += 1

    def has_text(self, document: Document) -> bool:
        """Return whether a document has text; those that have none are counted."""
        if any(document.texts):
            return True
        self.empty_count += 1
        return False

    def add_remark(self, remark: str) -> None:
        """Count a document of which something is told."""
        self.remarks[remark] = self.remarks.get(remark, 0) + 1

    def add_format(self, path: SourceFile, kind: str, compression: str | None) -> None:
        """Take how a file is read, by its content."""
        has_suffix = path.suffix.lower() in COMPRESSED
        what = NAMES[kind] if kind != format_by_name(path) else ""
        if has_suffix != (compression is not None):
            packed = f"compressed by {compression}" if compression else "not compressed"
            what = f"{what}, {packed}" if what else packed
        if what:
            self.formats.setdefault(what, []).append(path.name)

    def add_tokens(self, path: SourceFile, what: str) -> None:
        """Take what a file of tokens is found to be."""
        names = self.formats.setdefault(what, [])
        if path.name not in names[-1:]:
            names.append(path.name)

    @property
    def facts(self) -> dict[str, Any]:
        """The findings as JSON data, but for what was left out of a folder."""
        return {
            "faults": self.fault_count,
            "first": self.first_fault,
            "samples": self.faults,
            "empty": self.empty_count,
            "remarks": self.remarks,
            "formats": self.formats,
        }

    def add_facts(self, facts: dict[str, Any]) -> None:
        """Add the findings of a pass over later files."""
        self.fault_count += facts["faults"]
        self.first_fault = self.first_fault or facts["first"]
        for remark, count in facts.get("remarks", {}).items():
            self.remarks[remark] = self.remarks.get(remark, 0) + count
        for what, names in facts["formats"].items():
            known = self.formats.setdefault(what, [])
            known += [name for name in names if name not in known[-1:]]  # parts of one file

    def lines(self, source: str) -> Iterator[str]:
        """Yield a line for each kind of thing that was found in the source of that name."""
        if self.left_out:
            yield f"source {source}: left out {shorten(self.left_out)}: no regular file"
        for what, names in self.formats.items():
            yield f"source {source}: {shorten(names)}: {what}, by content"
        for remark, count in self.remarks.items():
            yield f"source {source}: {count:,} {remark}"
        if self.fault_count:
            yield (
                f"source {source}: skipped {self.fault_count:,} that can't be read "
                f"(data.on_error=skip), the first: {self.first_fault}"
            )


def shorten(names: Sequence[object]) -> str:
    """Return the first of some names, and how many there are beside it."""
    others = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return f"{names[0]}{others}"
