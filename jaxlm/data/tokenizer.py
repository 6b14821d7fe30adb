"""Text to token ids and back. Every tokenizer is a `tokenizers.Tokenizer`, so that each run carries a standard tokenizer.json."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from jaxlm.config.errors import ConfigError
from jaxlm.config.fields import suggestion
from jaxlm.data.vocabulary import BYTES, SpecialTokens, vocabulary
from jaxlm.objectives import Vocabulary

PIECE_CHARACTERS = 1 << 16

# Where tokens end whatever stands around: for bytes before any character, for GPT-2's pre-tokenizer after a single newline.
ANYWHERE = re.compile(r"(?=.)", re.DOTALL)
WORD_NEWLINE_WORD = re.compile(r"(?<=\S)\n(?=\S)")


class Tokenizer:
    """`inner` with the special tokens that a run uses. Ids run from 0 to `size` - 1, special tokens included."""

    def __init__(self, inner: tokenizers.Tokenizer, special: SpecialTokens):
        """`ValueError` if `inner` lacks one of the tokens."""
        ids = inner.get_vocab(with_added_tokens=True)
        missing = [name for name in special.names if name not in ids]
        if missing:
            raise ValueError(f"no token {missing[0]!r}")
        # Documents are untrusted: "<|endoftext|>" inside one is plain text, never the special token. The other tokens are left
        # alone where they are special already: RoBERTa's <mask> takes the space before it along.
        known = special_names(inner)
        inner.add_special_tokens(
            added([special.end_of_text, *(name for name in special.names if name not in known)])
        )
        inner.encode_special_tokens = True
        inner.no_truncation()
        inner.no_padding()
        self.inner, self.special = inner, special
        self.size: int = max(ids.values()) + 1
        self.end_of_text: int = ids[special.end_of_text]
        self.is_bytes = inner.to_str() == byte_level(special_names(inner)).to_str()
        self.boundary = (
            ANYWHERE if self.is_bytes else WORD_NEWLINE_WORD if is_gpt2_like(inner) else None
        )
        self.reserved = np.zeros(self.size, bool)
        self.reserved[[ids[name] for name in special.names]] = True

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What objectives know of it."""
        return vocabulary(self.inner, self.special, self.size)

    @property
    def hash(self) -> str:
        """SHA-256 of the tokenizer.json."""
        return hashlib.sha256(self.inner.to_str().encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Writes a tokenizer.json."""
        path.write_text(self.inner.to_str(), encoding="utf-8")

    def encode(self, text: str) -> np.ndarray:
        """int32 [n] ids of `text`; no special tokens are added, and none are read from the text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, on all cores."""
        if self.is_bytes:
            return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]
        encodings = self.inner.encode_batch_fast(list(texts), add_special_tokens=False)
        found = [np.array(encoding.ids, np.int32) for encoding in encodings]
        return [
            self.encode_broken(text) if self.reserved[ids].any() else ids
            for text, ids in zip(texts, found, strict=True)
        ]

    def encode_broken(self, text: str) -> np.ndarray:
        """int32 [n] ids of a text whose words the model itself takes for special tokens.

        T5's Unigram model holds "</s>" as a word like any other. Such names are encoded in two halves; should normalization
        bring forth one all the same, it is left out.
        """
        cuts = [
            found.start() + 1
            for found in re.finditer(f"(?={'|'.join(map(re.escape, self.special.names))})", text)
        ]
        parts = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
        encodings = self.inner.encode_batch_fast(parts, add_special_tokens=False)
        ids = np.concatenate([np.array(encoding.ids, np.int32) for encoding in encodings])
        return ids[~self.reserved[ids]]

    def pieces(self, text: str) -> Iterator[str]:
        """`text` cut where no token can span the cut, if such places are known: the ids of the pieces are those of the text.

        The library takes some 100 bytes a token and one core for each text, so long texts are better encoded in pieces.
        """
        start = 0
        while self.boundary and (cut := self.boundary.search(text, start + PIECE_CHARACTERS)):
            yield text[start : cut.end()]
            start = cut.end()
        yield text[start:]

    def decode(self, ids: Any) -> str:
        """Text of an array of ids. Special tokens are skipped; ids outside the vocabulary become U+FFFD."""
        return (
            self.decode_bytes(flat(ids))
            if self.is_bytes
            else self.decode_runs(flat(ids), skip_special_tokens=True)
        )

    def show(self, ids: Any) -> str:
        """As `decode`, with special tokens by their names."""
        return self.decode_runs(flat(ids), skip_special_tokens=False)

    def decode_runs(self, ids: np.ndarray, skip_special_tokens: bool) -> str:
        runs = groupby(ids.tolist(), key=lambda token: 0 <= token < self.size)
        parts = [(list(run), known) for known, run in runs]
        return "".join(
            self.inner.decode(run, skip_special_tokens) if known else "\ufffd" * len(run)
            for run, known in parts
        )

    def decode_bytes(self, ids: np.ndarray) -> str:
        ids = ids[(ids < 256) | (ids >= self.size)]
        outside = (ids < 0) | (ids > 255)
        if not outside.any():
            return ids.astype(np.uint8).tobytes().decode(errors="replace")
        replacement = "\ufffd".encode()
        return b"".join(
            replacement if bad else bytes([token]) for token, bad in zip(ids, outside, strict=True)
        ).decode(errors="replace")


def flat(ids: Any) -> np.ndarray:
    return np.asarray(ids, np.int64).ravel()


def added(names: Iterable[str]) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False) for name in names]


def special_names(inner: tokenizers.Tokenizer) -> list[str]:
    """The special tokens that `inner` knows as such, in the order of their ids."""
    return [
        token.content
        for _, token in sorted(inner.get_added_tokens_decoder().items())
        if token.special
    ]


def byte_level(special: Sequence[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE without merges: id i is the byte i, and the special tokens follow from 256 on."""
    inner = tokenizers.Tokenizer(models.BPE(vocab=BYTES, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    inner.add_special_tokens(added(special))
    return inner


def is_gpt2_like(inner: tokenizers.Tokenizer) -> bool:
    """Whether text is cut by GPT-2's pattern and not changed before."""
    splitter: Any = inner.pre_tokenizer
    cuts = (
        isinstance(splitter, pre_tokenizers.ByteLevel)
        and splitter.use_regex
        and not splitter.add_prefix_space
    )
    return inner.normalizer is None and cuts


def byte_tokenizer(special: SpecialTokens) -> Tokenizer:
    """256 ids that equal the bytes, from 256 on the special tokens: the end of text first, the sentinels last, backwards as in T5."""
    return Tokenizer(
        byte_level([*special.named.values(), *reversed(special.sentinel_names)]), special
    )


def train_bpe(texts: Iterable[str], size: int, special: SpecialTokens) -> Tokenizer:
    """Byte-level BPE with GPT-2's pre-tokenization and at most `size` ids (fewer if the texts have no more pairs to merge).

    The special tokens come first (the end of text is id 0), then the 256 bytes, the merges in order, and the sentinels: as in T5,
    <extra_id_0> is the very last.
    """
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=size - special.sentinels,
        special_tokens=added(special.named.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    inner.add_special_tokens(added(reversed(special.sentinel_names)))
    return Tokenizer(inner, special)


def load_tokenizer(path: Path, special: SpecialTokens) -> Tokenizer:
    """Any tokenizer.json that has the special tokens; of the sentinels it may have fewer, down to one.

    `ConfigError` at `tokenizer.path`, or at the key of the token that is missing: `tokenizer.end_of_text`, `tokenizer.mask`, ...
    """
    try:
        inner = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("tokenizer.path", f"{path}: {error.strerror}") from error
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(
            "tokenizer.path", f"{path}: not a tokenizer.json: {' '.join(str(error).split())}"
        ) from error
    for key, name in special.required.items():
        if inner.token_to_id(name) is None:
            names = special_names(inner)
            known = (
                suggestion(name, names)
                or f" (its special tokens: {', '.join(map(repr, names)) or 'none'})"
            )
            raise ConfigError(f"tokenizer.{key}", f"{path} has no token {name!r}{known}")
    sentinels = [inner.token_to_id(name) is not None for name in special.sentinel_names]
    return Tokenizer(inner, special._replace(sentinels=[*sentinels, False].index(False)))
