"""Divide the text of the sources into a training and a validation split."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jaxlm.config import ConfigError, DataConfig, SourceConfig, ValidationConfig
from jaxlm.data.sources import Document, read_documents

TRAIN, VALIDATION = "train", "validation"
SPLITS = (TRAIN, VALIDATION)
FEWEST_DOCUMENTS = 20

SourceSplit = tuple[int, str]  # (number in `numbered_sources`, split)


class SplitDocument(NamedTuple):
    """A document, or the stretch of one that falls into `split`."""

    source: int  # number in `numbered_sources`
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


def numbered_sources(data: DataConfig) -> tuple[tuple[SourceConfig, str], ...]:
    """Return each source and the config key that its errors name.

    The validation files, if the config names any, come last as a source of their own.
    """
    sources = tuple((source, "data.sources") for source in data.sources)
    if data.validation.path is None:
        return sources

    first = data.sources[0]
    validation = SourceConfig(
        name=VALIDATION,
        path=data.validation.path,
        format="pairs" if first.format == "pairs" else "auto",
        text_key=first.text_key,
        source_key=first.source_key,
        target_key=first.target_key,
    )
    return (*sources, (validation, "data.validation.path"))


def source_splits(data: DataConfig) -> list[SourceSplit]:
    """Return every (source, split) that may hold text."""
    train = range(len(data.sources))
    validation = train if data.validation.path is None else [len(data.sources)]
    return [(source, TRAIN) for source in train] + [(source, VALIDATION) for source in validation]


def find_tail_starts(data: DataConfig) -> tuple[int, ...] | None:
    """Return the byte of each source at which its validation text starts (method `tail` only).

    This reads all the text.
    """
    if data.validation.method != "tail":
        return None

    starts = []
    for source in data.sources:
        size = sum(len(document.text.encode()) for document in read_documents(source))
        starts.append(int(size * (1 - data.validation.share)))
    return tuple(starts)


def split_documents(
    data: DataConfig, tail_starts: tuple[int, ...] | None
) -> Iterator[SplitDocument]:
    """Yield every document of every source with its split.

    `tail_starts` is `find_tail_starts(data)`.
    """
    for number, (source, config_key) in enumerate(numbered_sources(data)):
        documents = read_documents(source, config_key)
        if tail_starts is not None:
            divided = split_by_position(documents, tail_starts[number])
        elif data.validation.method == "hash":
            divided = split_by_hash(documents, data.validation.share)
        else:
            split = TRAIN if number < len(data.sources) else VALIDATION
            divided = ((split, document.texts) for document in documents)

        yield from (SplitDocument(number, split, texts) for split, texts in divided)


def split_by_hash(
    documents: Iterable[Document], share: float
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (split, texts), chosen by the hash of the text alone.

    Documents keep their split when others come or go, and copies stay together.
    """
    limit = int(share * 2**64)
    for document in documents:
        digest = hashlib.blake2b("".join(document.texts).encode(), digest_size=8).digest()
        split = VALIDATION if int.from_bytes(digest, "big") < limit else TRAIN
        yield split, document.texts


def split_by_position(
    documents: Iterable[Document], tail_start: int
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (split, texts): the bytes before `tail_start` for training, the rest for validation.

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
            yield TRAIN, (data[:cut].decode(),)
        if cut < len(data):
            yield VALIDATION, (data[cut:].decode(),)


def measure_splits(
    data: DataConfig, tail_starts: tuple[int, ...] | None
) -> dict[SourceSplit, SplitSize]:
    """Return how much text each source has in each split.

    Raises `ConfigError` at the source without text, or at `data.validation` where the text can't
    be divided that way.
    """
    sizes = dict.fromkeys(source_splits(data), SplitSize())
    for document in split_documents(data, tail_starts):
        key = (document.source, document.split)
        sizes[key] = SplitSize(sizes[key].documents + 1, sizes[key].bytes + document.size)

    for number, (source, config_key) in enumerate(numbered_sources(data)):
        splits = [size for (owner, _), size in sizes.items() if owner == number]
        if not any(size.documents for size in splits):
            raise ConfigError(config_key, f"{source.path or source.name} holds no text")

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
            raise ConfigError(
                "data.validation",
                f"the {split} split is empty: {count:,} documents, share {validation.share:g}; "
                "change the share or use method 'tail'",
            )
