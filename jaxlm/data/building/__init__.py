"""Build a token store: read the text, judge it, make the tokenizer, write the shards.

The text is read once, unit by unit, and kept in a compressed form while the store is built. The
files of a unit are complete once its JSON is there, so a preparation that was killed goes on where
it stopped, with the same result. A training run can begin once the validation split is complete,
and reads the parts of the training split as they come.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.config import DataConfig, SourceConfig, TokenizerConfig
from jaxlm.data.building.assembly import is_joined, join_parts, read_joined
from jaxlm.data.building.encoding import encode_unit, is_encoded, read_kept
from jaxlm.data.building.extraction import Extract, extract_unit, is_extracted, read_facts
from jaxlm.data.building.judging import (
    Judgement,
    describe_curation,
    judge_documents,
    read_judgement,
)
from jaxlm.data.building.label_counts import count_labels
from jaxlm.data.building.manifest import (
    count_text,
    describe_manifest,
    describe_parts,
    describe_text,
    is_compressed,
    measure_validation,
    report_notes,
)
from jaxlm.data.building.token_units import place_tokenizer
from jaxlm.data.building.units import Unit, order_units, plan_units
from jaxlm.data.building.workers import Pool
from jaxlm.data.corpus import new_notes, numbered_sources
from jaxlm.data.documents import record_shape
from jaxlm.data.examples import ExampleSpec
from jaxlm.data.reading_notes import ReadingNotes
from jaxlm.data.rules import Predicate
from jaxlm.data.shards import token_dtype
from jaxlm.data.split import SPLITS, TRAIN, VALIDATION, SourceSplit, source_splits, total_size
from jaxlm.data.store import MANIFEST, TOKENIZER
from jaxlm.data.tokenizer import Fertility, Tokenizer, load_tokenizer, measure_fertility
from jaxlm.data.tokenizer_training import build_tokenizer
from jaxlm.data.vocabulary import SpecialTokens
from jaxlm.files import write_atomically
from jaxlm.hardware import count_cores

SHARD_TOKENS = 1 << 28


class StoreInputs(NamedTuple):
    """Everything that decides a store."""

    data: DataConfig
    tokenizer: TokenizerConfig
    vocabulary_size: int  # of a tokenizer that is trained
    special: SpecialTokens
    newlines: Mapping[str, Sequence[int]]  # of large files (fingerprints.py)
    shard_tokens: int = SHARD_TOKENS
    predicate: Predicate | None = None
    examples: ExampleSpec | None = None  # how examples become texts


class JudgedUnits(NamedTuple):
    """The units after the first pass, and what becomes of their documents."""

    units: list[Unit]
    judgement: Judgement
    extracts: list[Extract]
    labels: dict[str, dict[str, int]] | None = None  # examples of each, by split


def build_store(
    folder: Path, inputs: StoreInputs, workers: int | None, report: Callable[[str], None]
) -> dict[str, Any]:
    """Write the tokenizer and the shards into `folder` and return the manifest.

    `workers` processes share the work; None: one for each core. What an earlier call left in the
    folder is used.
    """
    with Pool(workers or count_cores()) as pool:
        judged, tokenizer = do_first_pass(pool, folder, inputs, report)
        entries = do_second_pass(pool, folder, inputs, judged, tokenizer, SPLITS)
    return describe_store(folder, inputs, judged, tokenizer, entries)


def begin_store(
    folder: Path, inputs: StoreInputs, workers: int | None, report: Callable[[str], None]
) -> dict[str, Any]:
    """Build a store up to the tokens of its training split.

    Return the manifest without these, and `parts`: for each source the units that they will come
    from. Otherwise as `build_store`.
    """
    with Pool(workers or count_cores()) as pool:
        judged, tokenizer = do_first_pass(pool, folder, inputs, report)
        entries = do_second_pass(pool, folder, inputs, judged, tokenizer, (VALIDATION,))
    manifest = describe_store(folder, inputs, judged, tokenizer, entries)
    return manifest | {"parts": describe_parts(inputs.data, judged.units, judged.judgement)}


def do_first_pass(
    pool: Pool, folder: Path, inputs: StoreInputs, report: Callable[[str], None]
) -> tuple[JudgedUnits, Tokenizer]:
    """Read the text, so that an empty split or a broken file is found at once; make the tokenizer.

    The text is judged, too.
    """
    data = inputs.data
    notes = [new_notes(data) for _ in numbered_sources(data)]
    units = plan_units(data, inputs.newlines, notes)
    extract_units(pool, folder, inputs, units)
    judged = judge_units(folder, data, units, notes, report)
    labels = count_labels(folder, data, units, judged.judgement, inputs.examples, report)
    judged = judged._replace(labels=labels)
    return judged, make_tokenizer(folder, inputs, judged, report)


def do_second_pass(
    pool: Pool,
    folder: Path,
    inputs: StoreInputs,
    judged: JudgedUnits,
    tokenizer: Tokenizer,
    splits: Sequence[str],
) -> dict[SourceSplit, dict[str, Any]]:
    """Turn the text of some splits into shards, and return their entries in the manifest."""
    encode_units(pool, folder, inputs, judged.units, judged.judgement, splits)
    return assemble(pool, folder, inputs, judged, token_dtype(tokenizer.size).name, splits)


def describe_store(
    folder: Path,
    inputs: StoreInputs,
    judged: JudgedUnits,
    tokenizer: Tokenizer,
    entries: Mapping[SourceSplit, dict[str, Any]],
) -> dict[str, Any]:
    """Return the manifest of a store with these entries."""
    fertility = {
        source.config.name: find_fertility(folder, inputs, judged, number, tokenizer)._asdict()
        for number, source in enumerate(numbered_sources(inputs.data))
    }
    validation = measure_validation(folder, judged.units, judged.judgement, entries)
    dtype = token_dtype(tokenizer.size).name
    curation = describe_curation(inputs.data, judged.judgement, judged.extracts)
    manifest = describe_manifest(dtype, tokenizer, entries, curation, fertility, validation)
    return manifest if judged.labels is None else {**manifest, "labels": judged.labels}


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
    return JudgedUnits(list(units), judgement, extracts)


# The passes


def extract_units(pool: Pool, folder: Path, inputs: StoreInputs, units: Sequence[Unit]) -> None:
    """Do the first pass over the units that have not had it."""
    if any(source.format == "tokens" for source in inputs.data.sources):
        place_tokenizer(folder, inputs.tokenizer, inputs.special)
    left = [unit for unit in units if not is_extracted(folder, unit)]
    arguments = inputs.predicate, inputs.special, inputs.examples
    pool.run(
        [(extract_unit, (folder, inputs.data, unit, *arguments)) for unit in left],
        size=sum(unit.size for unit in left),
        text="read",
    )


def encode_units(
    pool: Pool,
    folder: Path,
    inputs: StoreInputs,
    units: Sequence[Unit],
    judgement: Judgement,
    splits: Sequence[str] = SPLITS,
) -> None:
    """Do the second pass over the units that have not had it, in the order of a run.

    `splits` are all of them, or one.
    """
    data = inputs.data
    keeps_validation = is_compressed(judgement)
    jobs = []
    for unit in order_units(units, data.first_weights):
        left = [split for split in splits if not is_encoded(folder, unit, split)]
        source, cut = source_of(data, unit), judgement.cuts.get(unit.source)
        if left:
            arguments = (folder, unit, source, inputs.special, cut, left, keeps_validation)
            jobs.append((encode_unit, arguments))
    kept = sum(total_size(judgement.sizes, split).bytes for split in splits)
    share = len(jobs) / max(len(units), 1)
    pool.run(jobs, size=int(kept * share), text="tokenised")


def assemble(
    pool: Pool,
    folder: Path,
    inputs: StoreInputs,
    judged: JudgedUnits,
    dtype: str,
    splits: Sequence[str],
) -> dict[SourceSplit, dict[str, Any]]:
    """Write the shards of each source in some splits, and return their entries in the manifest."""
    keys = [key for key in source_splits(inputs.data) if key[1] in splits]
    jobs = [
        (
            join_parts,
            (folder, of_source(judged.units, source), source, split, dtype, inputs.shard_tokens),
        )
        for source, split in keys
        if not is_joined(folder, source, split)
    ]
    size = sum(path.stat().st_size for split in splits for path in folder.glob(f"part-*-{split}-*"))
    pool.run(jobs, size=size, text="joined")
    entries = {
        (source, split): describe_text(inputs.data, source, judged.judgement.sizes[source, split])
        | read_joined(folder, source, split)
        for source, split in keys
    }
    return {key: entry | count_text(folder, entry) for key, entry in entries.items()}


def of_source(units: Sequence[Unit], source: int) -> list[Unit]:
    """Return the units of a source."""
    return [unit for unit in units if unit.source == source]


def source_of(data: DataConfig, unit: Unit) -> SourceConfig:
    """Return the source of a unit."""
    return numbered_sources(data)[unit.source].config


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
    folder: Path, inputs: StoreInputs, judged: JudgedUnits, report: Callable[[str], None]
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
        kept_texts(folder, inputs.data, judged.units, judged.judgement, split=TRAIN),
        total_size(judged.judgement.sizes, TRAIN).bytes,
        report,
    )
    write_atomically(path, tokenizer.inner.to_str())
    return tokenizer


def find_fertility(
    folder: Path, inputs: StoreInputs, judged: JudgedUnits, source: int, tokenizer: Tokenizer
) -> Fertility:
    """Return how many tokens the first texts of a source take."""
    units = of_source(judged.units, source)
    return measure_fertility(tokenizer, kept_texts(folder, inputs.data, units, judged.judgement))


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
        for document in read_kept(folder, unit, record_shape(source_of(data, unit)), cut, split):
            yield from document.texts
