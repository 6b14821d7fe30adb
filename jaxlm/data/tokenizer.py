"""Text to token ids and back. Every tokenizer is a `tokenizers.Tokenizer`, so that each run carries a standard tokenizer.json."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from jaxlm.config.errors import ConfigError
from jaxlm.config.fields import suggestion

PIECE_CHARACTERS = 1 << 16

# Where tokens end whatever stands around: for bytes before any character, for GPT-2's pre-tokenizer after a single newline.
ANYWHERE = re.compile(r"(?=.)", re.DOTALL)
WORD_NEWLINE_WORD = re.compile(r"(?<=\S)\n(?=\S)")


class Tokenizer:
    """`inner` with the id of the token that ends a document. Ids run from 0 to `size` - 1, special tokens included."""

    def __init__(self, inner: tokenizers.Tokenizer, end_of_text: str):
        end_id = inner.token_to_id(end_of_text)
        if end_id is None:
            raise ValueError(f"no token {end_of_text!r}")
        # Documents are untrusted: "<|endoftext|>" inside one is plain text, never the special token.
        inner.add_special_tokens([AddedToken(end_of_text, special=True, normalized=False)])
        inner.encode_special_tokens = True
        inner.no_truncation()
        inner.no_padding()
        self.inner = inner
        self.size: int = max(inner.get_vocab(with_added_tokens=True).values()) + 1
        self.end_of_text = end_id
        self.is_bytes = inner.to_str() == byte_level(end_of_text).to_str()
        self.boundary = ANYWHERE if self.is_bytes else WORD_NEWLINE_WORD if is_gpt2_like(inner) else None

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
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

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
        ids = np.asarray(ids, np.int64).ravel()
        if self.is_bytes:
            return self.decode_bytes(ids)
        runs = groupby(ids.tolist(), key=lambda token: 0 <= token < self.size)
        return "".join(self.inner.decode(list(run)) if known else "\ufffd" * len(list(run)) for known, run in runs)

    def decode_bytes(self, ids: np.ndarray) -> str:
        ids = ids[ids != self.end_of_text]
        outside = (ids < 0) | (ids > 255)
        if not outside.any():
            return ids.astype(np.uint8).tobytes().decode(errors="replace")
        replacement = "\ufffd".encode()
        return b"".join(replacement if bad else bytes([token]) for token, bad in zip(ids, outside, strict=True)).decode(errors="replace")


def byte_level(end_of_text: str) -> tokenizers.Tokenizer:
    """Byte-level BPE without merges: id i is the byte i, and the end of text is 256."""
    # GPT-2's spelling of bytes: printable ones are themselves, the others take the characters from U+0100 on, in order.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    vocabulary = {chr(byte if byte in printable else next(others)): byte for byte in range(256)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    inner.add_special_tokens([AddedToken(end_of_text, special=True, normalized=False)])
    return inner


def is_gpt2_like(inner: tokenizers.Tokenizer) -> bool:
    """Whether text is cut by GPT-2's pattern and not changed before."""
    splitter: Any = inner.pre_tokenizer
    cuts = isinstance(splitter, pre_tokenizers.ByteLevel) and splitter.use_regex and not splitter.add_prefix_space
    return inner.normalizer is None and cuts


def byte_tokenizer(end_of_text: str) -> Tokenizer:
    """256 ids that equal the bytes, and the end of text as id 256."""
    return Tokenizer(byte_level(end_of_text), end_of_text)


def train_bpe(texts: Iterable[str], size: int, end_of_text: str) -> Tokenizer:
    """Byte-level BPE with GPT-2's pre-tokenization and at most `size` ids (fewer if the texts have no more pairs to merge).

    The end of text is id 0, then come the 256 bytes, then the merges in order.
    """
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(end_of_text, special=True, normalized=False)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return Tokenizer(inner, end_of_text)


def load_tokenizer(path: Path, end_of_text: str) -> Tokenizer:
    """Any tokenizer.json that has the token `end_of_text`; `ConfigError` at `tokenizer.path` or `tokenizer.end_of_text`."""
    try:
        inner = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("tokenizer.path", f"{path}: {error.strerror}") from error
    except Exception as error:  # the library raises plain Exception
        raise ConfigError("tokenizer.path", f"{path}: not a tokenizer.json: {' '.join(str(error).split())}") from error
    if inner.token_to_id(end_of_text) is None:
        special = [token.content for token in inner.get_added_tokens_decoder().values() if token.special]
        known = suggestion(end_of_text, special) or f" (its special tokens: {', '.join(map(repr, special)) or 'none'})"
        raise ConfigError("tokenizer.end_of_text", f"{path} has no token {end_of_text!r}{known}")
    return Tokenizer(inner, end_of_text)
