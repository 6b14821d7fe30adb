"""What objectives know of a tokenizer: its special tokens by their roles, where words begin and where sentences end.

Words. A token goes on with the word of the token before it where `first` of the one equals `last` of the other. Both are classes
of characters: letters (with combining marks), digits, and all others; so "don", "'", "t" are three words and "19", "84" is one.
White space belongs to no word: a token that begins with it begins a word, and after one that ends with it a word begins. How a
token's text is spelled depends on the tokenizer:

byte-level     (GPT-2) each character stands for a byte. Bytes that are part of a character count as letters, so that it stays whole.
WordPiece      (BERT) a token with the continuing prefix ("##") goes on with the word before it, any other begins one. WordLevel is
               the same without a prefix: each token is a word.
SentencePiece  (T5, Llama) "▁" is a space, <0x0A> is a byte. Tokens of any other tokenizer are read this way too.

Sentences end with tokens whose text, without white space at its end, ends in a full stop, an exclamation or a question mark.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from jaxlm import config
from jaxlm.objectives import Vocabulary

ROLES = (
    "end_of_text",
    "pad",
    "begin_of_text",
    "mask",
)  # a tokenizer made here numbers the padding 1, as RoBERTa and BART do

LETTER, DIGIT, OTHER = 0, 1, 2
BEGINS, ENDS = -1, -2  # as `first` and `last`: equal to nothing
REPLACEMENT = "\ufffd"  # what Python makes of bytes that are no whole character
FALLBACK_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def byte_characters() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones are themselves, the others take the characters from U+0100 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}


BYTES = byte_characters()


class SpecialTokens(NamedTuple):
    """The names of the special tokens that a run uses, by their roles; None is one that it does without."""

    end_of_text: str
    begin_of_text: str | None = None
    pad: str | None = None
    mask: str | None = None
    sentinels: int = 0  # at most so many of <extra_id_0>, <extra_id_1>, ...

    @property
    def named(self) -> dict[str, str]:
        """Role -> name, without the sentinels; in the order in which a tokenizer made here numbers them."""
        return {role: name for role in ROLES if (name := getattr(self, role)) is not None}

    @property
    def sentinel_names(self) -> list[str]:
        """In the order in which spans use them."""
        return [f"<extra_id_{number}>" for number in range(self.sentinels)]

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [*self.named.values(), *self.sentinel_names]

    @property
    def settings(self) -> dict[str, Any]:
        """What is there, as JSON data: `SpecialTokens(**settings)` is the same again."""
        return self.named | ({"sentinels": self.sentinels} if self.sentinels else {})

    @property
    def required(self) -> dict[str, str]:
        """Field of `config.TokenizerConfig` -> a token that a tokenizer must have for it."""
        return self.named | ({"sentinels": self.sentinel_names[0]} if self.sentinels else {})


def special_tokens(settings: config.TokenizerConfig, needs: tuple[str, ...]) -> SpecialTokens:
    """The special tokens of a run whose objective `needs` these ("pad", "mask", "sentinels"; `config.ObjectiveConfig.needs`)."""
    return SpecialTokens(
        settings.end_of_text,
        settings.begin_of_text,
        settings.pad if "pad" in needs else None,
        settings.mask if "mask" in needs else None,
        settings.sentinels if "sentinels" in needs else 0,
    )


class Spelled(NamedTuple):
    """A token's text and the classes of its first and its last character."""

    text: str
    first: int
    last: int


NO_TEXT = Spelled("", BEGINS, ENDS)


def vocabulary(inner: tokenizers.Tokenizer, special: SpecialTokens, size: int) -> Vocabulary:
    """What objectives know of `inner`. Special tokens and ids that no token has are `special`: they have no text."""
    added, spell = inner.get_added_tokens_decoder(), speller(inner)
    spelled: list[Spelled | None] = [None] * size
    ids = inner.get_vocab(with_added_tokens=True)
    for token, number in ids.items():
        if number not in added:
            spelled[number] = spell(token)
        elif not added[number].special:
            spelled[number] = plain(added[number].content)
    found = [NO_TEXT if token is None else token for token in spelled]
    return Vocabulary(
        size=size,
        special=np.array([token is None for token in spelled]),
        sentinels=np.array([ids[name] for name in special.sentinel_names], np.int32),
        first=np.array([token.first for token in found], np.int8),
        last=np.array([token.last for token in found], np.int8),
        ends_sentence=np.array([token.text.rstrip().endswith((".", "!", "?")) for token in found]),
        **{role: ids[name] for role, name in special.named.items()},
    )


def speller(inner: tokenizers.Tokenizer) -> Callable[[str], Spelled]:
    """How the tokens of `inner` are read, by its decoder and its model."""
    parts = json.loads(inner.to_str())
    decoder, model = parts["decoder"] or {}, parts["model"]
    if "ByteLevel" in [step["type"] for step in (decoder, *decoder.get("decoders", ())) if step]:
        return byte_level
    if model["type"] in ("WordPiece", "WordLevel"):
        return partial(word_piece, prefix=model.get("continuing_subword_prefix"))
    return sentence_piece


def plain(text: str) -> Spelled:
    if not text:
        return NO_TEXT
    return Spelled(
        text,
        BEGINS if text[0].isspace() else character_class(text[0]),
        ENDS if text[-1].isspace() else character_class(text[-1]),
    )


def character_class(character: str) -> int:
    if character == REPLACEMENT:
        return LETTER
    return {"L": LETTER, "M": LETTER, "N": DIGIT}.get(unicodedata.category(character)[0], OTHER)


def byte_level(token: str) -> Spelled:
    if not BYTES.keys() >= set(token):  # the decoder, too, leaves such a token as it is
        return plain(token)
    return plain(bytes(BYTES[character] for character in token).decode(errors="replace"))


def word_piece(token: str, prefix: str | None) -> Spelled:
    if prefix and token.startswith(prefix):
        return Spelled(token.removeprefix(prefix), LETTER, LETTER)
    return Spelled(token, BEGINS, LETTER)


def sentence_piece(token: str) -> Spelled:
    byte = FALLBACK_BYTE.fullmatch(token)
    return plain(
        bytes.fromhex(byte[1]).decode(errors="replace") if byte else token.replace("▁", " ")
    )
