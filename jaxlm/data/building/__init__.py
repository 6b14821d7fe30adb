"""Build a token store: read the text, judge it, make the tokenizer, write the shards.

The text is read once, unit by unit, and kept in a compressed form while the store is built. The
files of a unit are complete once its JSON is there, so a preparation that was killed goes on where
it stopped, with the same result.
"""

import gzip
import json
import lzma
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.config import DataConfig, SourceConfig, TokenizerConfig
from jaxlm.data.building.assembly import join_parts
from jaxlm.data.building.encoding import encode_unit, is_encoded, read_kept, token_dtype
from jaxlm.data.building.extraction import (
    Extract,
    extract_unit,
    is_extracted,
    merge_notes,
    read_facts,
)
from jaxlm.data.building.judging import (
    Judgement,
    describe_curation,
    judge_documents,
    read_judgement,
)
from jaxlm.data.building.token_units import place_tokenizer
from jaxlm.data.building.units import Unit, plan_units
from jaxlm.data.building.workers import Pool
from jaxlm.data.corpus import new_notes, numbered_sources
from jaxlm.data.reading_notes import ReadingNotes
from jaxlm.data.rules import Predicate
from jaxlm.data.split import (
    SPLITS,
    TRAIN,
    VALIDATION,
    SourceSplit,
    SplitSize,
    source_splits,
    total_size,
)
from jaxlm.data.store import MANIFEST, TOKENIZER
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer, measure_fertility
from jaxlm.data.tokenizer_training import build_tokenizer
from jaxlm.data.vocabulary import SpecialTokens
from jaxlm.files import write_atomically

SHARD_TOKENS = 1 << 28
COMPRESSED_BYTES = 16_000_000  # largest validation text that is compressed, as a yardstick


class StoreInputs(NamedTuple):
    """Everything that decides a store."""

    data: DataConfig
    tokenizer: TokenizerConfig
    vocabulary_size: int  # of a tokenizer that is trained
    special: SpecialTokens
    newlines: Mapping[str, Sequence[int]]  # of large files (fingerprints.py)
    shard_tokens: int = SHARD_TOKENS
    predicate: Predicate | None = None


def build_store(
    folder: Path, inputs: StoreInputs, workers: int | None, report: Callable[[str], None]
) -> dict[str, Any]:
    """Write the tokenizer and the shards into `folder` and return the manifest.

    `workers` processes share the work; None: one for each core. What an earlier call left in the
    folder is used.
    """
    data, special = inputs.data, inputs.special
    sources = numbered_sources(data)
    notes = [new_notes(data) for _ in sources]
    units = plan_units(data, inputs.newlines, notes)

    with Pool(workers or count_cores()) as pool:
        # The first pass reads the text, so that an empty split or a broken file is found at once.
        extract_units(pool, folder, inputs, units)
        judgement, extracts = judge_units(folder, data, units, notes, report)
        tokenizer = make_tokenizer(folder, inputs, units, judgement, report)

        # The second pass turns it into tokens.
        encode_units(pool, folder, data, units, special, judgement)
        entries = assemble(pool, folder, inputs, units, judgement, token_dtype(tokenizer).name)

    curation = describe_curation(data, judgement, extracts)
    return {
        "dtype": token_dtype(tokenizer).name,
        "tokenizer": {
            "hash": tokenizer.hash,
            "size": tokenizer.size,
            "end_of_text": tokenizer.end_of_text,
        },
        "splits": {
            split: [entry for (_, name), entry in entries.items() if name == split]
            for split in SPLITS
        },
        "dropped": {
            name: {reason: size["documents"] for reason, size in source["dropped"].items()}
            for name, source in curation["sources"].items()
        },
        "curation": curation,
        "fertility": {
            source.config.name: find_fertility(folder, inputs, units, judgement, number, tokenizer)
            for number, source in enumerate(sources)
        },
        "validation": describe_validation(
            entries,
            total_size(judgement.sizes, VALIDATION),
            read_validation_text(folder, units, judgement),
        ),
    }


class JudgedUnits(NamedTuple):
    """The units after the first pass, and what becomes of their documents."""

    judgement: Judgement
    extracts: list[Extract]


def judge_units(
    folder: Path,
    data: DataConfig,
    units: Sequence[Unit],
    notes: Sequence[ReadingNotes],
    report: Callable[[str], None],
) -> JudgedUnits:
    """Decide what becomes of each document, and report what was read."""
    extracts = [read_facts(folder, data, unit) for unit in units]
    report_notes(data, notes, extracts, report)
    judgement = read_judgement(folder) or judge_documents(data, folder, extracts, report)
    return JudgedUnits(judgement, extracts)


def count_cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# The passes


def extract_units(pool: Pool, folder: Path, inputs: StoreInputs, units: Sequence[Unit]) -> None:
    """Do the first pass over the units that have not had it."""
    if any(source.format == "tokens" for source in inputs.data.sources):
        place_tokenizer(folder, inputs.tokenizer, inputs.special)
    left = [unit for unit in units if not is_extracted(folder, unit)]
    arguments = inputs.predicate, inputs.special
    pool.run(
        [(extract_unit, (folder, inputs.data, unit, *arguments)) for unit in left],
        size=sum(unit.size for unit in left),
        text="read",
    )


def encode_units(
    pool: Pool,
    folder: Path,
    data: DataConfig,
    units: Sequence[Unit],
    special: SpecialTokens,
    judgement: Judgement,
) -> None:
    """Do the second pass over the units that have not had it."""
    left = [unit for unit in units if not is_encoded(folder, unit)]
    keeps_validation = is_compressed(judgement)
    jobs = [
        (
            encode_unit,
            (
                folder,
                unit,
                count_texts(data, unit),
                special,
                judgement.cuts.get(unit.source),
                keeps_validation,
            ),
        )
        for unit in left
    ]
    kept = sum(size.bytes for size in judgement.sizes.values())
    share = len(left) / max(len(units), 1)
    pool.run(jobs, size=int(kept * share), text="tokenised")


def assemble(
    pool: Pool,
    folder: Path,
    inputs: StoreInputs,
    units: Sequence[Unit],
    judgement: Judgement,
    dtype: str,
) -> dict[SourceSplit, dict[str, Any]]:
    """Write the shards of each source in each split, and return their entries in the manifest."""
    keys = source_splits(inputs.data)
    jobs = [
        (
            join_parts,
            (
                folder,
                [unit for unit in units if unit.source == source],
                source,
                split,
                dtype,
                inputs.shard_tokens,
            ),
        )
        for source, split in keys
    ]
    size = sum(path.stat().st_size for path in folder.glob("part-*.bin"))
    joined = pool.run(jobs, size=size, text="joined")
    return {
        (source, split): describe_text(inputs.data, source, judgement.sizes[source, split]) | entry
        for (source, split), entry in zip(keys, joined, strict=True)
    }


def count_texts(data: DataConfig, unit: Unit) -> int:
    """Return how many texts a document of a unit has."""
    return 2 if numbered_sources(data)[unit.source].config.format == "pairs" else 1


def remove_intermediate(folder: Path) -> None:
    """Remove the files that only the building needs from a folder that has its manifest."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    kept = {MANIFEST, TOKENIZER}
    for split in SPLITS:
        for entry in manifest["splits"][split]:
            kept |= {entry["offsets"], *(shard["file"] for shard in entry["shards"])}
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()


# Tokenizer


def make_tokenizer(
    folder: Path,
    inputs: StoreInputs,
    units: Sequence[Unit],
    judgement: Judgement,
    report: Callable[[str], None],
) -> Tokenizer:
    """Return the tokenizer of the store, made unless it is there."""
    path = folder / TOKENIZER
    if path.exists():
        return load_tokenizer(path, inputs.special)

    # Only training text reaches the tokenizer.
    tokenizer = build_tokenizer(
        inputs.tokenizer,
        inputs.vocabulary_size,
        inputs.special,
        kept_texts(folder, inputs.data, units, judgement, split=TRAIN),
        total_size(judgement.sizes, TRAIN).bytes,
        report,
    )
    write_atomically(path, tokenizer.inner.to_str())
    return tokenizer


def kept_texts(
    folder: Path,
    data: DataConfig,
    units: Sequence[Unit],
    judgement: Judgement,
    split: str | None = None,
) -> Iterator[str]:
    """Yield the texts of some units that are kept, of one split or of both."""
    for unit in units:
        cut = judgement.cuts.get(unit.source)
        for document in read_kept(folder, unit, count_texts(data, unit), cut, split):
            yield from document.texts


# Report and manifest


def report_notes(
    data: DataConfig,
    notes: Sequence[ReadingNotes],
    extracts: Sequence[Extract],
    report: Callable[[str], None],
) -> None:
    """Report what reading each source found; the `notes` get it."""
    for number, (source, _) in enumerate(numbered_sources(data)):
        of_source = [extract for extract in extracts if extract.unit.source == number]
        merge_notes(notes[number], of_source)
        for line in notes[number].lines(source.name):
            report(line)


def find_fertility(
    folder: Path,
    inputs: StoreInputs,
    units: Sequence[Unit],
    judgement: Judgement,
    source: int,
    tokenizer: Tokenizer,
) -> dict[str, float]:
    """Return how many tokens the first texts of a source take."""
    of_source = [unit for unit in units if unit.source == source]
    texts = kept_texts(folder, inputs.data, of_source, judgement)
    return measure_fertility(tokenizer, texts)._asdict()


def describe_text(data: DataConfig, source: int, size: SplitSize) -> dict[str, Any]:
    """Return what the manifest says of a source's text. Each pair counts as two documents."""
    config: SourceConfig = numbered_sources(data)[source].config
    entry: dict[str, Any] = {"source": config.name, "bytes": size.bytes}
    if config.format == "pairs":
        entry["pairs"] = size.documents
    return entry


def is_compressed(judgement: Judgement) -> bool:
    """Return whether the validation text is small enough to be compressed."""
    return total_size(judgement.sizes, VALIDATION).bytes <= COMPRESSED_BYTES


def read_validation_text(folder: Path, units: Sequence[Unit], judgement: Judgement) -> bytes | None:
    """Return the validation text; None for a large one."""
    if not is_compressed(judgement):
        return None
    return b"".join((folder / f"part-{unit.name}.validation").read_bytes() for unit in units)


def describe_validation(
    entries: dict[SourceSplit, dict[str, Any]], size: SplitSize, text: bytes | None
) -> dict[str, Any]:
    """Return tokens and bytes of the validation split, and its size after common compressors."""
    tokens = sum(entry["tokens"] for (_, split), entry in entries.items() if split == VALIDATION)
    return {
        "bytes": size.bytes,
        "tokens": tokens,
        "gzip_bytes": None if text is None else len(gzip.compress(text, 9, mtime=0)),
        "xz_bytes": None if text is None else len(lzma.compress(text, preset=9)),
    }
