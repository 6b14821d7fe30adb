"""Which text is trained on and which is held out for validation."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jaxlm import config
from jaxlm.config.errors import ConfigError
from jaxlm.data.sources import Document, documents

TRAIN, VALIDATION = "train", "validation"
SPLITS = (TRAIN, VALIDATION)
FEWEST_DOCUMENTS = 20


class Part(NamedTuple):
    """A document, or the piece of one that falls into `split`. `corpus` counts `corpora(data)`."""

    corpus: int
    split: str
    texts: tuple[str, ...]  # one; of a pair, source and target

    @property
    def bytes(self) -> int:
        """Of UTF-8."""
        return sum(len(text.encode()) for text in self.texts)


class Size(NamedTuple):
    """How much text a split has."""

    documents: int = 0  # a pair is one
    bytes: int = 0  # of UTF-8


def corpora(data: config.DataConfig) -> tuple[tuple[config.SourceConfig, str], ...]:
    """(source, the config key that errors name): the sources in order, then the validation files if there are any."""
    sources = tuple((source, "data.sources") for source in data.sources)
    if data.validation.path is None:
        return sources
    first = data.sources[0]
    held_out = config.SourceConfig(
        name=VALIDATION,
        path=data.validation.path,
        format="pairs" if first.format == "pairs" else "auto",
        text_key=first.text_key,
        source_key=first.source_key,
        target_key=first.target_key,
    )
    return (*sources, (held_out, "data.validation.path"))


def places(data: config.DataConfig) -> list[tuple[int, str]]:
    """Every (corpus, split) that may hold text."""
    sources = range(len(data.sources))
    held_out = sources if data.validation.path is None else [len(data.sources)]
    return [(corpus, TRAIN) for corpus in sources] + [(corpus, VALIDATION) for corpus in held_out]


def cuts(data: config.DataConfig) -> tuple[int, ...] | None:
    """Method `tail`: the byte of each source's text at which its validation part begins."""
    if data.validation.method != "tail":
        return None
    totals = [
        sum(len(document.text.encode()) for document in documents(source))
        for source in data.sources
    ]
    return tuple(int(total * (1 - data.validation.share)) for total in totals)


def parts(data: config.DataConfig, tails: tuple[int, ...] | None) -> Iterator[Part]:
    """Every document of every corpus with its split; `tails` is `cuts(data)`."""
    for corpus, (source, key) in enumerate(corpora(data)):
        found = documents(source, key)
        if tails is not None:
            divided = by_position(found, tails[corpus])
        elif data.validation.method == "hash":
            divided = by_hash(found, data.validation.share)
        else:
            split = TRAIN if corpus < len(data.sources) else VALIDATION
            divided = ((split, document.texts) for document in found)
        yield from (Part(corpus, split, texts) for split, texts in divided)


def by_hash(found: Iterable[Document], share: float) -> Iterator[tuple[str, tuple[str, ...]]]:
    """By the hash of the text alone: documents keep their split when others come or go, and copies stay together."""
    limit = int(share * 2**64)
    for document in found:
        digest = hashlib.blake2b("".join(document.texts).encode(), digest_size=8).digest()
        yield VALIDATION if int.from_bytes(digest, "big") < limit else TRAIN, document.texts


def by_position(found: Iterable[Document], cut: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The first `cut` bytes are for training (less up to 3, so that no character is cut), the rest for validation.

    Not for pairs: the config refuses to cut them.
    """
    position = 0
    for document in found:
        data = document.text.encode()
        inside = min(max(cut - position, 0), len(data))
        while inside < len(data) and data[inside] & 0xC0 == 0x80:  # a continuation byte
            inside -= 1
        position += len(data)
        if inside > 0:
            yield TRAIN, (data[:inside].decode(),)
        if inside < len(data):
            yield VALIDATION, (data[inside:].decode(),)


def survey(data: config.DataConfig, tails: tuple[int, ...] | None) -> dict[tuple[int, str], Size]:
    """(corpus, split) -> its size. `ConfigError` at `data.validation` where the text can't be divided that way."""
    sizes = dict.fromkeys(places(data), Size())
    for part in parts(data, tails):
        size = sizes[part.corpus, part.split]
        sizes[part.corpus, part.split] = Size(size.documents + 1, size.bytes + part.bytes)
    for corpus, (source, key) in enumerate(corpora(data)):
        if not any(size.documents for (of, _), size in sizes.items() if of == corpus):
            raise ConfigError(key, f"{source.path or source.name} holds no text")
    check_splits(data.validation, {split: total(sizes, split) for split in SPLITS})
    return sizes


def total(sizes: dict[tuple[int, str], Size], split: str) -> Size:
    chosen = [size for (_, of), size in sizes.items() if of == split]
    return Size(sum(size.documents for size in chosen), sum(size.bytes for size in chosen))


def check_splits(validation: config.ValidationConfig, totals: dict[str, Size]) -> None:
    count = sum(size.documents for size in totals.values())
    if validation.method == "hash" and count < FEWEST_DOCUMENTS:
        reason = f"'hash' needs at least {FEWEST_DOCUMENTS} documents, found {count}; 'tail' holds out the end of the text instead"
        raise ConfigError("data.validation.method", reason)
    for split, size in totals.items():
        if size.documents == 0:
            reason = f"the {split} split is empty: {count:,} documents, share {validation.share:g}; change the share or use method 'tail'"
            raise ConfigError("data.validation", reason)
