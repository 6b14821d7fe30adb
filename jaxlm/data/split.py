"""Divide the text of the sources into a training and a validation split."""

from typing import NamedTuple

from jaxlm.config import ConfigError, DataConfig, ValidationConfig
from jaxlm.data.corpus import VALIDATION

TRAIN = "train"
SPLITS = (TRAIN, VALIDATION)
FEWEST_DOCUMENTS = 20

SourceSplit = tuple[int, str]  # (number in `numbered_sources`, split)


class SplitDocument(NamedTuple):
    """A document, or the stretch of one that falls into `split`."""

    name: str  # of the file, with the line in JSON lines
    split: str
    texts: tuple[str, ...]  # one; of a record, all
    facts: str | None = None  # of examples


class SplitSize(NamedTuple):
    """How much text a split has."""

    documents: int = 0  # a pair is one
    bytes: int = 0  # of UTF-8


def source_splits(data: DataConfig) -> list[SourceSplit]:
    """Return every (source, split) that may hold text."""
    train = range(len(data.sources))
    validation = train if data.validation.path is None else [len(data.sources)]
    return [(source, TRAIN) for source in train] + [(source, VALIDATION) for source in validation]


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
