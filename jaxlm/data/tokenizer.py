"""Convert text to token ids and back.

Every tokenizer is a `tokenizers.Tokenizer`, so that each run has a standard tokenizer.json.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from jaxlm.config import ConfigError, UserError
from jaxlm.config.fields import list_names, suggestion
from jaxlm.data.boundaries import Boundary, find_boundary
from jaxlm.data.tokenizer_files import added_tokens, read_tokenizer_file
from jaxlm.data.vocabulary import BYTES, REPLACEMENT, SpecialTokens, build_vocabulary
from jaxlm.files import write_atomically
from jaxlm.objectives import Vocabulary

PIECE_CHARACTERS = 1 << 16
MOST_CHARACTERS = 1 << 22  # of a stretch without boundaries, which takes up to 300 bytes for each
SAMPLE_CHARACTERS = 1 << 20  # of which the fertility is measured
MOST_CUTS = 1000  # of which all but the last turn out to be no boundaries
PROOF_CHARACTERS = 64  # on both sides of a boundary, which are encoded to see that it is one

ANYWHERE = Boundary(re.compile(r"(?=.)", re.DOTALL))  # bytes: a token is a part of a character


class Tokenizer:
    """A `tokenizers.Tokenizer` (`inner`) with the special tokens that a run uses.

    Ids run from 0 to `size` - 1, special tokens included.
    """

    def __init__(self, inner: tokenizers.Tokenizer, special: SpecialTokens):
        """Raise `ValueError` if `inner` lacks one of the tokens."""
        ids = inner.get_vocab(with_added_tokens=True)
        missing = [name for name in special.names if name not in ids]
        if missing:
            raise ValueError(f"no token {missing[0]!r}")

        # Documents are untrusted: "<|endoftext|>" inside one is plain text, never the special
        # token. The other tokens are left alone where they are special already: RoBERTa's <mask>
        # includes the space before it.
        known = special_token_names(inner)
        new = [name for name in special.names if name not in known]
        inner.add_special_tokens(added_tokens([special.end_of_text, *new]))
        inner.encode_special_tokens = True
        inner.no_truncation()
        inner.no_padding()

        self.inner, self.special = inner, special
        self.size: int = max(ids.values()) + 1
        self.end_of_text: int = ids[special.end_of_text]
        self.reserved = np.zeros(self.size, bool)
        self.reserved[[ids[name] for name in special.names]] = True

        self.is_bytes = inner.to_str() == build_byte_level(special_token_names(inner)).to_str()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens as objectives see them."""
        return build_vocabulary(self.inner, self.special, self.size)

    @cached_property
    def boundary(self) -> Boundary | None:
        """The places at which a long text may be cut; None if none is sure."""
        if self.is_bytes:
            return ANYWHERE

        normalizer = self.inner.normalizer
        separators = " "
        if normalizer is not None:
            normalized = normalizer.normalize_str("a b")
            separators += "".join(
                character
                for character in "\n\t"
                if normalizer.normalize_str(f"a{character}b") == normalized
            )
        return find_boundary(json.loads(self.inner.to_str()), separators, self.special.names)

    @cached_property
    def with_special_tokens(self) -> tokenizers.Tokenizer:
        """A copy of `inner` that reads special tokens from a text, as chat templates write them."""
        inner = tokenizers.Tokenizer.from_str(self.inner.to_str())
        inner.encode_special_tokens = False
        return inner

    @property
    def spells_spaces(self) -> bool:
        """Whether a token begins with the space before its word, as in GPT-2."""
        splitter = json.loads(self.inner.to_str())["pre_tokenizer"] or {}
        steps = splitter.get("pretokenizers", [splitter])
        return any(
            step.get("type") == "ByteLevel" and not step["add_prefix_space"] for step in steps
        )

    @property
    def hash(self) -> str:
        """SHA-256 of the tokenizer.json."""
        return hashlib.sha256(self.inner.to_str().encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write a tokenizer.json."""
        write_atomically(path, self.inner.to_str())

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`; int32 [n].

        No special tokens are added, and none are read from the text.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text, encoded on all cores."""
        if self.is_bytes:
            return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

        encodings = self.inner.encode_batch_fast(list(texts), add_special_tokens=False)
        batch = []
        for text, encoding in zip(texts, encodings, strict=True):
            ids = np.array(encoding.ids, np.int32)
            batch.append(self.encode_reserved(text) if self.reserved[ids].any() else ids)
        return batch

    def encode_reserved(self, text: str) -> np.ndarray:
        """Return the ids of a text with words that the model itself takes for special tokens.

        T5's Unigram model has "</s>" as a word like any other. Such names are encoded in two
        halves. Should normalization produce one all the same, it is left out.
        """
        names = "|".join(map(re.escape, self.special.names))
        cuts = [match.start() + 1 for match in re.finditer(f"(?={names})", text)]
        parts = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]

        encodings = self.inner.encode_batch_fast(parts, add_special_tokens=False)
        ids = np.concatenate([np.array(encoding.ids, np.int32) for encoding in encodings])
        return ids[~self.reserved[ids]]

    def split_text(self, text: str) -> Iterator[str]:
        """Yield the pieces of `text`, whose ids, one after another, are the ids of the text.

        Raises UserError as `find_pieces` does.
        """
        return (text[start:end] for start, end in self.find_pieces(text))

    def find_pieces(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where the pieces of `text` start and end.

        The library takes some 100 bytes per token and one core per text, so long texts are better
        encoded in pieces. The pieces are the text, except that a space between two of them is left
        out where the tokenizer puts one before each. Raises UserError if a stretch without
        boundaries is too long.
        """
        step = self.boundary.step if self.boundary is not None else None
        shortest = PIECE_CHARACTERS if step is None else -(-PIECE_CHARACTERS // step) * step
        start = 0
        while len(text) - start > shortest:
            cut = self.find_cut(text, start + shortest)
            if cut is None:
                break
            check_length(cut.start() - start)
            yield start, cut.start()
            start = cut.end()

        check_length(len(text) - start)
        yield start, len(text)

    def find_cut(self, text: str, start: int) -> re.Match[str] | None:
        """Return the first boundary from `start` on, or None."""
        if self.boundary is None:
            return None
        cuts = islice(self.boundary.pattern.finditer(text, start), MOST_CUTS)
        if self.is_bytes or self.boundary.step is not None:
            return next(cuts, None)
        return next((cut for cut in cuts if self.is_sure(text, cut)), None)

    def is_sure(self, text: str, cut: re.Match[str]) -> bool:
        """Return whether a match of the boundary's pattern is one, as its surroundings confirm."""
        assert self.boundary is not None
        near, reach = self.boundary.near, self.boundary.reach
        if near and near.search(text, max(0, cut.start() - reach), cut.end() + reach):
            return False

        left = text[max(0, cut.start() - PROOF_CHARACTERS) : cut.start()]
        right = text[cut.end() : cut.end() + PROOF_CHARACTERS]
        return self.is_confirmed(left, cut.group(), right)

    def is_confirmed(self, left: str, gap: str, right: str) -> bool:
        """Return whether the ids of two texts are those of both with `gap` between them."""
        pieces = self.encode_batch([left, right, left + gap + right])
        return np.array_equal(np.concatenate(pieces[:2]), pieces[2])

    def decode(self, ids: Any) -> str:
        """Return the text of an array of ids.

        Special tokens are skipped; ids outside the vocabulary become U+FFFD.
        """
        if self.is_bytes:
            return self.decode_bytes(flatten_ids(ids))
        return self.decode_runs(flatten_ids(ids), skip_special_tokens=True)

    def show(self, ids: Any) -> str:
        """Return the text of an array of ids, with special tokens by their names."""
        return self.decode_runs(flatten_ids(ids), skip_special_tokens=False)

    def decode_runs(self, ids: np.ndarray, skip_special_tokens: bool) -> str:
        """Decode runs of ids inside the vocabulary by the library, and replace the others."""
        texts = []
        for is_known, run in groupby(ids.tolist(), key=lambda token: 0 <= token < self.size):
            tokens = list(run)
            if is_known:
                texts.append(self.inner.decode(tokens, skip_special_tokens))
            else:
                texts.append(REPLACEMENT * len(tokens))
        return "".join(texts)

    def decode_bytes(self, ids: np.ndarray) -> str:
        """Decode ids that are bytes, several times faster than the library does."""
        ids = ids[(ids < 256) | (ids >= self.size)]
        outside = (ids < 0) | (ids > 255)
        if not outside.any():
            return ids.astype(np.uint8).tobytes().decode(errors="replace")

        data = [
            REPLACEMENT.encode() if is_outside else bytes([token])
            for token, is_outside in zip(ids, outside, strict=True)
        ]
        return b"".join(data).decode(errors="replace")


def flatten_ids(ids: Any) -> np.ndarray:
    """Return ids of any shape and kind as int64 [n]."""
    return np.asarray(ids, np.int64).ravel()


def special_token_names(inner: tokenizers.Tokenizer) -> list[str]:
    """Return the names that `inner` itself marks as special, in the order of their ids."""
    tokens = sorted(inner.get_added_tokens_decoder().items())
    return [token.content for _, token in tokens if token.special]


def check_length(characters: int) -> None:
    """Raise UserError if so many characters can't be encoded at once."""
    if characters > MOST_CHARACTERS:
        raise UserError(
            f"{characters:,} characters in a row have no place where a token of this tokenizer "
            f"surely ends, and at most {MOST_CHARACTERS:,} can be encoded at once: divide the text "
            "into shorter documents (files or JSON lines)"
        )


def keeps_bytes(inner: tokenizers.Tokenizer) -> bool:
    """Return whether each token is a stretch of the bytes of the text, as in GPT-2."""
    parts = json.loads(inner.to_str())
    splitter: dict[str, Any] = parts["pre_tokenizer"] or {"type": None}
    steps: list[dict[str, Any]] = splitter.get("pretokenizers", [splitter])
    return (
        parts["normalizer"] is None
        and steps[-1]["type"] == "ByteLevel"
        and not steps[-1]["add_prefix_space"]
        and all(step["type"] == "Split" and step["behavior"] == "Isolated" for step in steps[:-1])
    )


class Fertility(NamedTuple):
    """How finely a tokenizer cuts text; 0 where there is none."""

    bytes_per_token: float
    tokens_per_word: float  # words are what white space separates


def measure_fertility(tokenizer: Tokenizer, texts: Iterable[str]) -> Fertility:
    """Return the fertility of the starts of the first texts, SAMPLE_CHARACTERS in all."""
    size = tokens = words = characters = 0
    for text in texts:
        excerpt = text[: min(PIECE_CHARACTERS, SAMPLE_CHARACTERS - characters)]
        characters += len(excerpt)
        size += len(excerpt.encode())
        tokens += len(tokenizer.encode(excerpt))
        words += len(excerpt.split())
        if characters >= SAMPLE_CHARACTERS:
            break
    return Fertility(size / tokens if tokens else 0.0, tokens / words if words else 0.0)


def byte_tokenizer(special: SpecialTokens) -> Tokenizer:
    """Return the tokenizer whose ids below 256 are the bytes.

    From 256 on follow the special tokens: the end of text first, the sentinels last, backwards as
    in T5.
    """
    names = [*special.named.values(), *reversed(special.sentinel_names)]
    return Tokenizer(build_byte_level(names), special)


def build_byte_level(special: Sequence[str]) -> tokenizers.Tokenizer:
    """Return byte-level BPE without merges: id i is the byte i, special tokens follow from 256."""
    inner = tokenizers.Tokenizer(models.BPE(vocab=BYTES, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(  # type: ignore[assignment]
        add_prefix_space=False, use_regex=False
    )
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    inner.add_special_tokens(added_tokens(special))
    return inner


def load_tokenizer(path: Path, special: SpecialTokens) -> Tokenizer:
    """Read a tokenizer file, or the one that a folder holds, that has the special tokens.

    It may have fewer sentinels than `special`, down to one. Raises `ConfigError` at
    `tokenizer.path`, or at the key of the token that is missing: `tokenizer.end_of_text`,
    `tokenizer.mask`, ...
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ConfigError("tokenizer.path", f"{path}: is no regular file")
        inner = read_tokenizer_file(path)
    except ConfigError:
        raise
    except OSError as error:
        place = error.filename or path  # perhaps a second file that belongs to it
        raise ConfigError("tokenizer.path", f"{place}: {error.strerror}") from error
    except BaseException as error:  # the library raises plain Exception, or panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        kind = "a tokenizer.json" if path.suffix == ".json" else "a tokenizer that can be read"
        raise ConfigError("tokenizer.path", f"{path}: not {kind}: {reason}") from error
    return wrap_tokenizer(inner, special, path)


def wrap_tokenizer(inner: tokenizers.Tokenizer, special: SpecialTokens, path: Path) -> Tokenizer:
    """Return a tokenizer that was read from `path`, with the special tokens of `load_tokenizer`."""
    for key, name in special.required.items():
        if inner.token_to_id(name) is None:
            names = special_token_names(inner)
            hint = suggestion(name, names) or f" (its special tokens: {list_names(names)})"
            raise ConfigError(f"tokenizer.{key}", f"{path} has no token {name!r}{hint}")

    # The sentinels of the file are those before the first one that is missing.
    is_there = [inner.token_to_id(name) is not None for name in special.sentinel_names]
    return Tokenizer(inner, special._replace(sentinels=[*is_there, False].index(False)))
