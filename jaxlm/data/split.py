"""Divide the text of the sources into a training and a validation split."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from jaxlm.config import ConfigError, DataConfig, SourceConfig, ValidationConfig
from jaxlm.data.documents import Document, SourceKeys
from jaxlm.data.formats import is_json_lines
from jaxlm.data.listing import list_files
from jaxlm.data.reading_notes import ReadingNotes
from jaxlm.data.sources import read_documents

TRAIN, VALIDATION = "train", "validation"
SPLITS = (TRAIN, VALIDATION)
FEWEST_DOCUMENTS = 20

SourceSplit = tuple[int, str]  # (number in `numbered_sources`, split)
NamedSplit = tuple[str, str, tuple[str, ...]]  # (name of a document, split, its texts)


class NumberedSource(NamedTuple):
    """A source by its number, and the names of its fields in messages."""

    config: SourceConfig
    keys: SourceKeys


class SplitDocument(NamedTuple):
    """A document, or the stretch of one that falls into `split`."""

    source: int  # number in `numbered_sources`
    name: str  # of the file, with the line in JSON lines
    split: str
    texts: tuple[str, ...]  # one; of a pair, source and target

    @property
    def size(self) -> int:
        """Size in bytes of the UTF-8 text."""
        return sum(len(text.encode()) for text in self.texts)


class SplitSize(NamedTuple):
    """How much text a split has."""

    documents: int = 0  # a pair is one
    bytes: int = 0  # of UTF-8


def numbered_sources(data: DataConfig) -> tuple[NumberedSource, ...]:
    """Return each source, and the names of its fields in messages.

    The validation files, if the config names any, come last as a source of their own.
    """
    sources = []
    for number, source in enumerate(data.sources):
        key = f"data.sources.{number}"
        sources.append(NumberedSource(source, SourceKeys(f"{key}.path", key)))

    if data.validation.path is not None:
        keys = SourceKeys("data.validation.path", "data.sources.0")
        sources.append(NumberedSource(validation_source(data, keys), keys))
    return tuple(sources)


def validation_source(data: DataConfig, keys: SourceKeys) -> SourceConfig:
    """Return the validation files as a source. They are read as those of the first source are.

    Beside plain text there may be JSON lines, which are told by their names.
    """
    first = data.sources[0]
    source = SourceConfig(
        name=VALIDATION,
        path=data.validation.path,
        format="auto" if first.format == "python_stdlib" else first.format,
        text_key=first.text_key,
        text_keys=first.text_keys,
        text_join=first.text_join,
        source_key=first.source_key,
        target_key=first.target_key,
    )
    if source.format == "text" and any(map(is_json_lines, list_files(source, keys))):
        return replace(source, format="auto")
    return source


def check_files(data: DataConfig) -> None:
    """Raise ConfigError at the path of a source, or of the validation, that names no files."""
    for source, keys in numbered_sources(data):
        list_files(source, keys)


def source_splits(data: DataConfig) -> list[SourceSplit]:
    """Return every (source, split) that may hold text."""
    train = range(len(data.sources))
    validation = train if data.validation.path is None else [len(data.sources)]
    return [(source, TRAIN) for source in train] + [(source, VALIDATION) for source in validation]


def new_notes(data: DataConfig) -> list[ReadingNotes]:
    """Return empty notes for each of `numbered_sources(data)`."""
    return [ReadingNotes(data.on_error == "skip") for _ in numbered_sources(data)]


def find_tail_starts(data: DataConfig) -> tuple[int, ...] | None:
    """Return the byte of each source at which its validation text starts (method `tail` only).

    This reads all the text.
    """
    if data.validation.method != "tail":
        return None

    starts = []
    for source, keys in numbered_sources(data):
        documents = read_documents(source, keys, ReadingNotes(data.on_error == "skip"))
        size = sum(len(document.text.encode()) for document in documents)
        starts.append(int(size * (1 - data.validation.share)))
    return tuple(starts)


def split_documents(
    data: DataConfig,
    tail_starts: tuple[int, ...] | None,
    notes: list[ReadingNotes] | None = None,
) -> Iterator[SplitDocument]:
    """Yield every document of every source with its split.

    `tail_starts` is `find_tail_starts(data)`, `notes` has one for each source: `new_notes(data)`.
    """
    notes = new_notes(data) if notes is None else notes
    for number, (source, keys) in enumerate(numbered_sources(data)):
        documents = read_documents(source, keys, notes[number])
        if tail_starts is not None:
            divided = split_by_position(documents, tail_starts[number])
        elif data.validation.method == "hash":
            divided = split_by_hash(documents, data.validation.share)
        else:
            split = TRAIN if number < len(data.sources) else VALIDATION
            divided = ((document.name, split, document.texts) for document in documents)

        for name, split, texts in divided:
            yield SplitDocument(number, name, split, texts)


def split_by_hash(documents: Iterable[Document], share: float) -> Iterator[NamedSplit]:
    """Yield (name, split, texts), chosen by the hash of the text alone.

    Documents keep their split when others come or go, and copies stay together.
    """
    limit = int(share * 2**64)
    for document in documents:
        digest = hashlib.blake2b("".join(document.texts).encode(), digest_size=8).digest()
        split = VALIDATION if int.from_bytes(digest, "big") < limit else TRAIN
        yield document.name, split, document.texts


def split_by_position(documents: Iterable[Document], tail_start: int) -> Iterator[NamedSplit]:
    """Yield (name, split, texts): the bytes before `tail_start` train, the rest validate.

    The cut moves back by up to 3 bytes so that it cuts no character. Not for pairs: the config
    refuses to cut them.
    """
    position = 0
    for document in documents:
        data = document.text.encode()
        cut = min(max(tail_start - position, 0), len(data))
        while cut < len(data) and data[cut] & 0xC0 == 0x80:  # a continuation byte
            cut -= 1
        position += len(data)

        if cut > 0:
            yield document.name, TRAIN, (data[:cut].decode(),)
        if cut < len(data):
            yield document.name, VALIDATION, (data[cut:].decode(),)


def measure_splits(
    data: DataConfig,
    tail_starts: tuple[int, ...] | None,
    notes: list[ReadingNotes] | None = None,
) -> dict[SourceSplit, SplitSize]:
    """Return how much text each source has in each split; `notes` as in `split_documents`.

    Raises `ConfigError` at the source without text, or at `data.validation` where the text can't
    be divided that way.
    """
    sizes = dict.fromkeys(source_splits(data), SplitSize())
    for document in split_documents(data, tail_starts, notes):
        key = (document.source, document.split)
        sizes[key] = SplitSize(sizes[key].documents + 1, sizes[key].bytes + document.size)

    for number, (source, keys) in enumerate(numbered_sources(data)):
        splits = [size for (owner, _), size in sizes.items() if owner == number]
        if not any(size.documents for size in splits):
            raise ConfigError(keys.path, f"{source.path or source.name} holds no text")

    check_splits(data.validation, {split: total_size(sizes, split) for split in SPLITS})
    return sizes


def total_size(sizes: dict[SourceSplit, SplitSize], split: str) -> SplitSize:
    """Return how much text all sources have in a split."""
    of_split = [size for (_, name), size in sizes.items() if name == split]
    return SplitSize(sum(size.documents for size in of_split), sum(size.bytes for size in of_split))


def check_splits(validation: ValidationConfig, sizes: dict[str, SplitSize]) -> None:
    """Raise `ConfigError` at `data.validation` if a split is empty or likely to be."""
    count = sum(size.documents for size in sizes.values())
    if validation.method == "hash" and count < FEWEST_DOCUMENTS:
        raise ConfigError(
            "data.validation.method",
            f"'hash' needs at least {FEWEST_DOCUMENTS} documents, found {count}; "
            "'tail' holds out the end of the text instead",
        )
    for split, size in sizes.items():
        if size.documents == 0:
            raise ConfigError(*explain_empty_split(validation, split, count))


def explain_empty_split(validation: ValidationConfig, split: str, count: int) -> tuple[str, str]:
    """Return the key and the reason why a split of `count` documents is empty."""
    documents = f"{count:,} document{'s' * (count != 1)}"
    if validation.method == "source":
        key = "data.validation.path" if split == VALIDATION else "data.sources"
        return key, f"the {split} split is empty"

    change = "lower" if split == TRAIN else "raise"
    remedy = f"{change} the share"
    if validation.method == "hash":
        remedy += " or use data.validation.method=tail, which cuts documents"
    reason = f"the {split} split of {documents} is empty with a share of {validation.share:g}"
    return "data.validation.share", f"{reason}: {remedy}"
