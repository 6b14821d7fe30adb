"""The first pass over the text: read a unit, apply the rules, keep the text and what it is like.

For each unit these files are written, of which the JSON comes last: a unit that has it is done.

extract-N.text, .sizes   the documents that passed the rules
extract-N.digests        uint64 [2, documents]: to find copies, and to divide by hash
extract-N.signatures     uint32 [MINIMA, documents], where near duplicates are looked for
extract-N.ids, .lengths  of files of tokens (token_units.py)
extract-N.json           counts, and what the reader noted
"""

import functools
import hashlib
import json
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import CurationConfig, DataConfig, SourceConfig
from jaxlm.data.building.extracts import ExtractWriter, read_sizes
from jaxlm.data.building.token_units import IdWriter, read_token_parts
from jaxlm.data.building.units import Unit
from jaxlm.data.building.workers import advance
from jaxlm.data.corpus import new_notes, numbered_sources
from jaxlm.data.documents import Document, RecordShape, record_shape
from jaxlm.data.examples import ExampleSpec
from jaxlm.data.near_duplicates import MINIMA, sign_text
from jaxlm.data.reading_notes import ReadingNotes
from jaxlm.data.rules import DocumentRules, Predicate
from jaxlm.data.sources import read_parts
from jaxlm.data.vocabulary import SpecialTokens
from jaxlm.files import sync, write_atomically

SAMPLES = 3  # of each reason, which a report shows
SAMPLE_CHARACTERS = 300


class Extract(NamedTuple):
    """The documents of a unit, as the first pass left them. Arrays are read at each use."""

    folder: Path
    unit: Unit
    shape: RecordShape
    facts: dict[str, Any]

    @property
    def documents(self) -> int:
        """Documents that passed the rules."""
        return self.facts["kept"]

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of the name, of each text and of the facts; int64 [documents, 1 + strings]."""
        return read_sizes(self.folder, self.unit.name, self.shape.strings)

    @property
    def digests(self) -> np.ndarray:
        """Hashes of the documents, uint64 [2, documents]."""
        path = self.folder / f"extract-{self.unit.name}.digests"
        return np.fromfile(path, "<u8").reshape(2, -1)

    @property
    def text_bytes(self) -> np.ndarray:
        """Bytes of the texts of each document, int64 [documents]."""
        return self.sizes[:, 1 : 1 + self.shape.texts].sum(axis=1)


class DropCounts:
    """The documents that a unit loses: how many, how much text, and the first of each reason."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}
        self.samples: dict[str, list[dict[str, str]]] = {}

    def add(self, reason: str, document: Document, size: int) -> None:
        """Count a document of `size` bytes."""
        count = self.counts.setdefault(reason, [0, 0])
        count[0] += 1
        count[1] += size
        samples = self.samples.setdefault(reason, [])
        if len(samples) < SAMPLES:
            samples.append(sample_text(document.name, document.text))


def sample_text(name: str, text: str) -> dict[str, str]:
    """Return the beginning of a document, for a report."""
    return {"name": name, "text": text[:SAMPLE_CHARACTERS]}


def is_extracted(folder: Path, unit: Unit) -> bool:
    """Return whether the first pass over a unit is done."""
    return (folder / f"extract-{unit.name}.json").exists()


def extract_unit(
    folder: Path,
    data: DataConfig,
    unit: Unit,
    predicate: Predicate | None,
    special: SpecialTokens,
    examples: ExampleSpec | None = None,
) -> None:
    """Read a unit and write its files. Raises UserError for what can't be read."""
    source, keys = numbered_sources(data)[unit.source]
    is_judged = unit.source < len(data.sources)  # validation files are taken as they are
    signs = is_judged and data.curation.near_duplicates is not None
    notes, drops = new_notes(data), DropCounts()
    writer = ExtractWriter(folder, unit.name)
    copies, splits = array("Q"), array("Q")
    signatures: list[np.ndarray] = []
    rules = cached_rules(data.curation, source, predicate) if is_judged else None
    count = size = 0

    documents, ids = read_parts(unit.parts, source, keys, notes, examples), None
    if source.format == "tokens":
        documents = read_token_parts(folder, unit.parts, source, special, notes)
        ids = IdWriter(folder, unit.name)
    for document in documents:
        texts = [text.encode() for text in document.texts]
        read = sum(map(len, texts))
        count, size = count + 1, size + read
        advance(read if document.ids is None else document.ids.nbytes)
        if rules is not None:
            kept, reason = rules(document)
            if reason:
                drops.add(reason, document, read)
                continue
            if kept is not document:
                document, texts = kept, [text.encode() for text in kept.texts]

        facts = [] if document.facts is None else [document.facts.encode()]
        writer.add(document.name, [*texts, *facts])
        if ids is not None and document.ids is not None:
            ids.add(document.ids)
        copy, split = digest_texts(texts)
        copies.append(copy)
        splits.append(split)
        if signs:
            signatures.append(sign_text("\0".join(document.texts)))

    writer.close()
    if ids is not None:
        ids.close()
    write_array(folder / f"extract-{unit.name}.digests", np.array([copies, splits], np.uint64))
    if signs:
        table = np.stack(signatures, axis=1) if signatures else np.zeros((MINIMA, 0), np.uint32)
        write_array(folder / f"extract-{unit.name}.signatures", table)

    facts = {
        "documents": count,
        "kept": len(copies),
        "bytes": size,
        "dropped": drops.counts,
        "samples": drops.samples,
        "notes": notes.facts,
    }
    write_atomically(folder / f"extract-{unit.name}.json", json.dumps(facts))


@functools.lru_cache(maxsize=1)
def cached_rules(
    curation: CurationConfig, source: SourceConfig, predicate: Predicate | None
) -> DocumentRules | None:
    """Return the rules for the documents of a source, or None if there are none."""
    rules = DocumentRules(curation, source, predicate)
    return rules if rules.is_active else None


def digest_texts(texts: list[bytes]) -> tuple[int, int]:
    """Return the hash by which copies are found, and the one that chooses the split."""
    copy = hashlib.blake2b(b"\0".join(texts), digest_size=8).digest()
    joined = copy if len(texts) == 1 else hashlib.blake2b(b"".join(texts), digest_size=8).digest()
    return int.from_bytes(copy, "little"), int.from_bytes(joined, "big")


def write_array(path: Path, values: np.ndarray) -> None:
    """Write the bytes of an array, and have them on the disk."""
    with path.open("wb") as file:
        file.write(values.tobytes())
        sync(file)


def read_facts(folder: Path, data: DataConfig, unit: Unit) -> Extract:
    """Return what the first pass over a unit found."""
    source = numbered_sources(data)[unit.source].config
    facts = json.loads((folder / f"extract-{unit.name}.json").read_bytes())
    return Extract(folder, unit, record_shape(source), facts)


def read_signatures(folder: Path, unit: Unit, documents: int) -> np.ndarray:
    """Return the signatures of a unit, uint32 [MINIMA, documents], from the disk as needed."""
    if documents == 0:
        return np.zeros((MINIMA, 0), np.uint32)
    path = folder / f"extract-{unit.name}.signatures"
    return np.memmap(path, "<u4", "r", shape=(MINIMA, documents))


def merge_notes(notes: ReadingNotes, extracts: list[Extract]) -> None:
    """Add to the notes of a source what the passes over its units found."""
    for extract in extracts:
        notes.add_facts(extract.facts["notes"])
