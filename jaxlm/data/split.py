"""Divide the text of the sources into a training and a validation split."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from jaxlm.config import ConfigError, DataConfig, ValidationConfig
from jaxlm.data.corpus import VALIDATION, Corpus, numbered_sources
from jaxlm.data.documents import Document
from jaxlm.data.reading_notes import ReadingNotes

TRAIN = "train"
SPLITS = (TRAIN, VALIDATION)
FEWEST_DOCUMENTS = 20

SourceSplit = tuple[int, str]  # (number in `numbered_sources`, split)
NamedSplit = tuple[str, str, tuple[str, ...]]  # (name of a document, split, its texts)


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


def source_splits(data: DataConfig) -> list[SourceSplit]:
    """Return every (source, split) that may hold text."""
    train = range(len(data.sources))
    validation = train if data.validation.path is None else [len(data.sources)]
    return [(source, TRAIN) for source in train] + [(source, VALIDATION) for source in validation]


def find_tail_starts(corpus: Corpus) -> tuple[int, ...] | None:
    """Return the byte of each source at which its validation text starts (method `tail` only).

    This reads all the text.
    """
    validation = corpus.data.validation
    if validation.method != "tail":
        return None

    starts = []
    for number in range(len(corpus.data.sources)):
        size = sum(len(document.text.encode()) for document in corpus.documents(number))
        starts.append(int(size * (1 - validation.share)))
    return tuple(starts)


def split_documents(
    corpus: Corpus,
    tail_starts: tuple[int, ...] | None,
    notes: Sequence[ReadingNotes | None] | None = None,
) -> Iterator[SplitDocument]:
    """Yield every document that is kept, of every source, with its split.

    `tail_starts` is `find_tail_starts(corpus)`, `notes` are those of each source.
    """
    data = corpus.data
    count = len(numbered_sources(data))
    for number, source_notes in enumerate(notes or [None] * count):
        documents = corpus.documents(number, source_notes)
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
    corpus: Corpus,
    tail_starts: tuple[int, ...] | None,
    notes: Sequence[ReadingNotes | None] | None = None,
) -> dict[SourceSplit, SplitSize]:
    """Return how much text each source has in each split; `notes` as in `split_documents`.

    Raises `ConfigError` at the source without text, or at `data.validation` where the text can't
    be divided that way.
    """
    data = corpus.data
    sizes = dict.fromkeys(source_splits(data), SplitSize())
    for document in split_documents(corpus, tail_starts, notes):
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
