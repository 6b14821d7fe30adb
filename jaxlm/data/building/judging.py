"""Between the two passes: find duplicates, and divide what is kept into the splits.

It reads what the first pass left of each document, not the texts. Its result is a byte per document
in `splits-N`, and the JSON of all sources in `judged.json`, which comes last.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import ConfigError, DataConfig
from jaxlm.data.building.extraction import SAMPLES as SAMPLES_OF_EACH
from jaxlm.data.building.extraction import Extract, read_signatures, sample_text, write_array
from jaxlm.data.building.extracts import read_extract
from jaxlm.data.building.token_units import find_token_cut, has_ids
from jaxlm.data.building.units import Unit
from jaxlm.data.corpus import numbered_sources
from jaxlm.data.near_duplicates import BAND_MINIMA, BANDS, find_near_duplicates
from jaxlm.data.rules.document_rules import EMPTY
from jaxlm.data.split import (
    TRAIN,
    VALIDATION,
    SourceSplit,
    SplitSize,
    check_splits,
    source_splits,
    total_size,
)
from jaxlm.files import write_atomically

UNREADABLE = "unreadable"
EXACT_DUPLICATE, NEAR_DUPLICATE = "exact_duplicate", "near_duplicate"

# A byte of each document.
IN_TRAIN, IN_VALIDATION, CUT, IS_COPY, IS_NEAR = range(5)
DROPPED = {IS_COPY: EXACT_DUPLICATE, IS_NEAR: NEAR_DUPLICATE}

JUDGED = "judged.json"


class Cut(NamedTuple):
    """The document in which the validation text of a source starts (method `tail`)."""

    unit: int
    document: int  # of the unit
    byte: int
    token: int = 0  # of a document of tokens


class Judgement(NamedTuple):
    """The documents that are kept and dropped, and how much text each split has."""

    sizes: dict[SourceSplit, SplitSize]
    cuts: dict[int, Cut]  # by source
    dropped: dict[int, dict[str, list[int]]]  # by source and reason: documents, bytes
    samples: dict[int, dict[str, list[dict[str, str]]]]


def judge_documents(
    data: DataConfig, folder: Path, extracts: Sequence[Extract], report: Callable[[str], None]
) -> Judgement:
    """Write what becomes of each document, and return the judgement."""
    codes = find_duplicates(data, folder, extracts, report)
    cuts = divide(data, folder, extracts, codes)

    sizes = dict.fromkeys(source_splits(data), SplitSize())
    judgement = Judgement(sizes, cuts, {}, {})
    first = 0
    for extract in extracts:
        unit, size = extract.unit, extract.text_bytes
        of_unit = codes[first : first + len(size)]
        first += len(size)
        add_sizes(judgement, unit, of_unit, size)
        add_dropped(judgement, folder, extract, of_unit, size)
        write_array(folder / f"splits-{unit.name}", of_unit)

    check_sizes(data, sizes)
    write_atomically(folder / JUDGED, json.dumps(to_json(judgement)))
    return judgement


def find_duplicates(
    data: DataConfig, folder: Path, extracts: Sequence[Extract], report: Callable[[str], None]
) -> np.ndarray:
    """Return which documents repeat earlier ones, uint8 [all documents]; the others are 0."""
    counts = [extract.documents for extract in extracts]
    codes = np.zeros(sum(counts), np.uint8)
    curation = data.curation
    if not curation.exact_duplicates and curation.near_duplicates is None:
        return codes

    # The units of the sources come before those of the validation files, which are not judged.
    started = time.monotonic()
    judged = [extract for extract in extracts if extract.unit.source < len(data.sources)]
    total = sum(counts[: len(judged)])
    # A copy is a near duplicate as well, but is called what it is.
    is_copy = find_copies(np.concatenate([extract.digests[0] for extract in judged]))
    codes[:total][is_copy] = IS_COPY
    if curation.near_duplicates is not None:
        signatures = [
            read_signatures(folder, extract.unit, extract.documents) for extract in judged
        ]
        is_near = find_near_duplicates(signatures, curation.near_duplicates)
        codes[:total][is_near & ~is_copy] = IS_NEAR

    report(
        f"curation: {np.count_nonzero(codes):,} of {total:,} documents are duplicates "
        f"({np.count_nonzero(is_copy):,} exact), compared in {time.monotonic() - started:.1f} s"
    )
    return codes


def find_copies(digests: np.ndarray) -> np.ndarray:
    """Return which digests an earlier document has as well, bool [documents]."""
    _, first = np.unique(digests, return_index=True)
    is_copy = np.ones(len(digests), bool)
    is_copy[first] = False
    return is_copy


# Splits


def divide(
    data: DataConfig, folder: Path, extracts: Sequence[Extract], codes: np.ndarray
) -> dict[int, Cut]:
    """Put the documents that are kept into their splits, in `codes`, and return the cuts."""
    cuts: dict[int, Cut] = {}
    method, share = data.validation.method, data.validation.share
    tail_starts = find_tail_starts(data, extracts, codes) if method == "tail" else []
    positions = [0] * len(numbered_sources(data))
    first = 0
    for extract in extracts:
        source, count = extract.unit.source, extract.documents
        of_unit = codes[first : first + count]
        is_kept = of_unit == IN_TRAIN
        first += count

        if method == "source":
            if source >= len(data.sources):
                of_unit[is_kept] = IN_VALIDATION
        elif method == "hash":
            # By the text alone: documents keep their split when others come or go, and copies stay
            # together.
            of_unit[is_kept & (extract.digests[1] < int(share * 2**64))] = IN_VALIDATION
        else:
            sizes = np.where(is_kept, extract.text_bytes, 0)
            ends = positions[source] + np.cumsum(sizes)
            positions[source] += int(sizes.sum())
            start = tail_starts[source]
            of_unit[is_kept & (ends - sizes >= start)] = IN_VALIDATION
            for document in np.flatnonzero(is_kept & (ends > start) & (ends - sizes < start)):
                byte = start - int(ends[document] - sizes[document])
                byte, token = move_cut(folder, extract, int(document), byte)
                of_unit[document] = CUT if byte else IN_VALIDATION
                if byte:
                    cuts[source] = Cut(extract.unit.number, int(document), byte, token)
    return cuts


def find_tail_starts(data: DataConfig, extracts: Sequence[Extract], codes: np.ndarray) -> list[int]:
    """Return the byte of each source at which its validation text starts."""
    totals = [0] * len(numbered_sources(data))
    first = 0
    for extract in extracts:
        size = extract.text_bytes
        is_kept = codes[first : first + len(size)] == IN_TRAIN
        totals[extract.unit.source] += int(size[is_kept].sum())
        first += len(size)
    return [int(total * (1 - data.validation.share)) for total in totals]


def move_cut(folder: Path, extract: Extract, document: int, byte: int) -> tuple[int, int]:
    """Return the byte of a cut, moved back by up to 3 so that it cuts no character, and 0.

    In a document of tokens the cut is moved back to the start of a token, which is returned as
    well. Not for pairs: the config refuses to cut them.
    """
    if has_ids(folder, extract.unit.name):
        token, byte = find_token_cut(folder, extract.unit.name, document, byte)
        return byte, token

    wanted = np.arange(extract.documents) == document
    ((_, (_, text)),) = read_extract(folder, extract.unit.name, extract.sizes, wanted)
    encoded = text.encode()
    while byte < len(encoded) and encoded[byte] & 0xC0 == 0x80:  # a continuation byte
        byte -= 1
    return byte, 0


def add_sizes(judgement: Judgement, unit: Unit, codes: np.ndarray, sizes: np.ndarray) -> None:
    """Add the documents of a unit to the sizes of the splits."""
    for split, code in ((TRAIN, IN_TRAIN), (VALIDATION, IN_VALIDATION)):
        is_in = codes == code
        count, size = int(np.count_nonzero(is_in)), int(sizes[is_in].sum())
        cut = judgement.cuts.get(unit.source)
        if cut is not None and cut.unit == unit.number:
            left = int(sizes[cut.document]) - cut.byte
            count, size = count + 1, size + (cut.byte if split == TRAIN else left)
        if count:
            before = judgement.sizes[unit.source, split]
            total = SplitSize(before.documents + count, before.bytes + size)
            judgement.sizes[unit.source, split] = total


def check_sizes(data: DataConfig, sizes: dict[SourceSplit, SplitSize]) -> None:
    """Raise ConfigError at a source without text, or where the text can't be divided that way."""
    for number, (source, keys) in enumerate(numbered_sources(data)):
        splits = [size for (owner, _), size in sizes.items() if owner == number]
        if not any(size.documents for size in splits):
            raise ConfigError(keys.path, f"{source.path or source.name} holds no text")
    check_splits(
        data.validation, {split: total_size(sizes, split) for split in (TRAIN, VALIDATION)}
    )


# Report


def add_dropped(
    judgement: Judgement, folder: Path, extract: Extract, codes: np.ndarray, sizes: np.ndarray
) -> None:
    """Count what a unit loses, with the first texts of each reason."""
    source = extract.unit.source
    dropped = judgement.dropped.setdefault(source, {})
    samples = judgement.samples.setdefault(source, {})
    for reason, (count, size) in extract.facts["dropped"].items():
        add_count(dropped, reason, count, size)
        kept = samples.setdefault(reason, [])
        kept += extract.facts["samples"][reason][: SAMPLES_OF_EACH - len(kept)]

    for code, reason in DROPPED.items():
        is_dropped = codes == code
        if not is_dropped.any():
            continue
        add_count(dropped, reason, int(np.count_nonzero(is_dropped)), int(sizes[is_dropped].sum()))
        kept = samples.setdefault(reason, [])
        first = np.flatnonzero(is_dropped)[: SAMPLES_OF_EACH - len(kept)]
        wanted = np.isin(np.arange(len(codes)), first)
        documents = read_extract(folder, extract.unit.name, extract.sizes, wanted)
        kept += [sample_text(name, text) for _, (name, text, *_) in documents]


def add_count(counts: dict[str, list[int]], reason: str, documents: int, size: int) -> None:
    """Add to the documents and bytes of a reason."""
    before = counts.setdefault(reason, [0, 0])
    before[0] += documents
    before[1] += size


def describe_curation(
    data: DataConfig, judgement: Judgement, extracts: Sequence[Extract]
) -> dict[str, Any]:
    """Return what the report of a store says of curation, as JSON data."""
    sources = {}
    for number, (source, _) in enumerate(numbered_sources(data)):
        facts = [extract.facts for extract in extracts if extract.unit.source == number]
        unread, samples = count_unread([fact["notes"] for fact in facts])
        dropped = {reason: list(counts) for reason, counts in unread.items()}
        for reason, (count, size) in judgement.dropped.get(number, {}).items():
            add_count(dropped, reason, count, size)
        sources[source.name] = {
            "read": {
                "documents": sum(count for count, _ in unread.values())
                + sum(fact["documents"] for fact in facts),
                "bytes": sum(fact["bytes"] for fact in facts),
            },
            "dropped": {
                reason: {"documents": count, "bytes": size}
                for reason, (count, size) in dropped.items()
            },
            "samples": samples | judgement.samples.get(number, {}),
        }
    similarity = data.curation.near_duplicates
    return {
        "sources": sources,
        "config": dataclasses.asdict(data.curation),
        "near_duplicates": similarity
        and {"similarity": similarity, "bands": BANDS, "rows": BAND_MINIMA},
    }


def count_unread(
    notes: Sequence[dict[str, Any]],
) -> tuple[dict[str, list[int]], dict[str, list[dict[str, str]]]]:
    """Return what no rule has seen: documents and bytes by reason, and messages as samples."""
    counts = {
        UNREADABLE: sum(facts["faults"] for facts in notes),
        EMPTY: sum(facts.get("empty", 0) for facts in notes),
    }
    faults = [text for facts in notes for text in facts.get("samples", [])]
    samples = [sample_text("", text) for text in faults[:SAMPLES_OF_EACH]]
    return (
        {reason: [count, 0] for reason, count in counts.items() if count},
        {UNREADABLE: samples} if samples else {},
    )


def to_json(judgement: Judgement) -> dict[str, Any]:
    """Return a judgement as JSON data."""
    return {
        "sizes": [[source, split, *size] for (source, split), size in judgement.sizes.items()],
        "cuts": [[source, *cut] for source, cut in judgement.cuts.items()],
        "dropped": list(judgement.dropped.items()),
        "samples": list(judgement.samples.items()),
    }


def read_judgement(folder: Path) -> Judgement | None:
    """Return the judgement that an interrupted preparation left, or None."""
    try:
        data = json.loads((folder / JUDGED).read_bytes())
    except FileNotFoundError:
        return None
    return Judgement(
        sizes={(source, split): SplitSize(*size) for source, split, *size in data["sizes"]},
        cuts={source: Cut(*cut) for source, *cut in data["cuts"]},
        dropped=dict(data["dropped"]),
        samples=dict(data["samples"]),
    )
