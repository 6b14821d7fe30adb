"""Describe a tokenizer to the objectives: special tokens by role, words, ends of sentences.

Words. A token continues the word of the previous token where its `first_class` equals the
`last_class` of that token. Both are classes of characters: letters (with combining marks), digits,
and all others. So "don", "'", "t" are three words, and "19", "84" is one. White space belongs to no
word: a token that starts with it starts a word, and after one that ends with it a word starts. How
the text of a token is spelled depends on the tokenizer:

byte-level     (GPT-2) Each character stands for a byte. Bytes that are part of a character count as
               letters, so that the character stays whole.
WordPiece      (BERT) A token with the continuing prefix ("##") continues the previous word, any
               other starts one. WordLevel is the same without a prefix: each token is a word.
SentencePiece  (T5, Llama) "▁" is a space, <0x0A> is a byte. Tokens of any other tokenizer are read
               this way too.

Sentences end with tokens whose text, without white space at its end, ends in a full stop, an
exclamation mark or a question mark.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from jaxlm.config import TokenizerConfig
from jaxlm.objectives import Vocabulary
from jaxlm.objectives.objective import SECOND_TEXT, TEXT, Frame

FIM_ROLES = ("fim_prefix", "fim_middle", "fim_suffix")
DENOISER_ROLES = ("denoiser_r", "denoiser_s", "denoiser_x")
# In the order in which a tokenizer made here numbers them; RoBERTa and BART, too, number the
# padding 1.
ROLES = ("end_of_text", "pad", "begin_of_text", "mask", *FIM_ROLES, *DENOISER_ROLES)

LETTER, DIGIT, OTHER = 0, 1, 2
STARTS, ENDS = -1, -2  # as first and last class: equal to nothing
PROBES = ("a", "the", "1", ".")  # words, one of which has tokens in any tokenizer
REPLACEMENT = "\ufffd"  # Python's substitute for bytes that are no whole character
FALLBACK_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class SpecialTokens(NamedTuple):
    """The names of a run's special tokens by role; None where the run does without."""

    end_of_text: str
    begin_of_text: str | None = None
    pad: str | None = None
    mask: str | None = None
    sentinels: int = 0  # <extra_id_0>, <extra_id_1>, ...; a tokenizer file may have fewer
    fim_prefix: str | None = None
    fim_middle: str | None = None
    fim_suffix: str | None = None
    denoiser_r: str | None = None
    denoiser_s: str | None = None
    denoiser_x: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """Role -> name, without the sentinels, in the order of ROLES."""
        return {role: name for role in ROLES if (name := getattr(self, role)) is not None}

    @property
    def sentinel_names(self) -> list[str]:
        """Names of the sentinels in the order in which spans use them."""
        return [f"<extra_id_{number}>" for number in range(self.sentinels)]

    @property
    def names(self) -> list[str]:
        """All names."""
        return [*self.named.values(), *self.sentinel_names]

    @property
    def keywords(self) -> dict[str, Any]:
        """The fields that are set, as JSON data: `SpecialTokens(**keywords)` is equal to this."""
        return self.named | ({"sentinels": self.sentinels} if self.sentinels else {})

    @property
    def required(self) -> dict[str, str]:
        """Key of `TokenizerConfig` -> a token that a tokenizer must have for it."""
        keys = {role: f"fim_tokens.{number}" for number, role in enumerate(FIM_ROLES)}
        keys |= {role: f"denoiser_tokens.{number}" for number, role in enumerate(DENOISER_ROLES)}
        names = {keys.get(role, role): name for role, name in self.named.items()}
        return names | ({"sentinels": self.sentinel_names[0]} if self.sentinels else {})

    @property
    def task_tokens(self) -> dict[str, str]:
        """Role -> name of the tokens that say what a sample, or a prompt, asks for."""
        roles = (*FIM_ROLES, *DENOISER_ROLES)
        return {role: name for role, name in self.named.items() if role in roles}


def special_tokens(config: TokenizerConfig, needs: tuple[str, ...]) -> SpecialTokens:
    """Return the special tokens of a run.

    `needs` are those of its objective: "pad", "mask", "sentinels", "fim", "denoisers"
    (`ObjectiveConfig.needs`).
    """
    task_tokens: dict[str, str] = {}
    if "fim" in needs:
        task_tokens |= zip(FIM_ROLES, config.fim_tokens, strict=True)
    if "denoisers" in needs:
        task_tokens |= zip(DENOISER_ROLES, config.denoiser_tokens, strict=True)
    return SpecialTokens(
        end_of_text=config.end_of_text,
        begin_of_text=config.begin_of_text,
        pad=config.pad if "pad" in needs else None,
        mask=config.mask if "mask" in needs else None,
        sentinels=config.sentinels if "sentinels" in needs else 0,
        **task_tokens,
    )


class Spelling(NamedTuple):
    """The text of a token and the classes of its first and last character."""

    text: str
    first_class: int
    last_class: int


NO_TEXT = Spelling("", first_class=STARTS, last_class=ENDS)


def build_vocabulary(inner: tokenizers.Tokenizer, special: SpecialTokens, size: int) -> Vocabulary:
    """Return what objectives need of `inner`, for ids from 0 to `size` - 1.

    Special tokens, and ids that no token has, are `Vocabulary.special`: they have no text.
    """
    added, spell = inner.get_added_tokens_decoder(), choose_spelling(inner)
    ids = inner.get_vocab(with_added_tokens=True)

    spellings: list[Spelling | None] = [None] * size
    for token, number in ids.items():
        if number not in added:
            spellings[number] = spell(token)
        elif not added[number].special:
            spellings[number] = spell_text(added[number].content)

    texts = [spelling or NO_TEXT for spelling in spellings]
    ends_sentence = [spelling.text.rstrip().endswith((".", "!", "?")) for spelling in texts]
    return Vocabulary(
        size=size,
        special=np.array([spelling is None for spelling in spellings]),
        sentinels=np.array([ids[name] for name in special.sentinel_names], np.int32),
        first_class=np.array([spelling.first_class for spelling in texts], np.int8),
        last_class=np.array([spelling.last_class for spelling in texts], np.int8),
        ends_sentence=np.array(ends_sentence),
        text_frame=find_frame(inner),
        pair_frame=find_frame(inner, is_pair=True),
        **{role: ids[name] for role, name in special.named.items()},
    )


def find_frame(inner: tokenizers.Tokenizer, *, is_pair: bool = False) -> Frame | None:
    """Return what a tokenizer puts around a text, or a pair of texts; None for nothing."""
    if inner.post_processor is None:
        return None
    for word in PROBES:
        encoding = inner.encode(word, word if is_pair else None)
        frame: list[tuple[int, int]] = []
        for number, kind, text in zip(
            encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True
        ):
            place = number if text is None else SECOND_TEXT if text else TEXT
            if place >= 0 or (place, kind) != (frame or [None])[-1]:
                frame.append((place, kind))
        ids, types = zip(*frame, strict=True) if frame else ((), ())
        # A word that has no tokens shows no place.
        if TEXT in ids and (SECOND_TEXT in ids or not is_pair):
            return Frame(ids, types) if max(ids) >= 0 else None
    return None


def choose_spelling(inner: tokenizers.Tokenizer) -> Callable[[str], Spelling]:
    """Return the function that reads a token of `inner`, by its decoder and its model."""
    parts = json.loads(inner.to_str())
    decoder, model = parts["decoder"] or {}, parts["model"]

    steps = [decoder, *decoder.get("decoders", ())]
    if "ByteLevel" in [step["type"] for step in steps if step]:
        return spell_byte_level
    if model["type"] in ("WordPiece", "WordLevel"):
        return partial(spell_word_piece, prefix=model.get("continuing_subword_prefix"))
    return spell_sentence_piece


def spell_text(text: str) -> Spelling:
    """Return the classes of a text whose spaces are spaces."""
    if not text:
        return NO_TEXT
    return Spelling(
        text,
        first_class=STARTS if text[0].isspace() else character_class(text[0]),
        last_class=ENDS if text[-1].isspace() else character_class(text[-1]),
    )


def character_class(character: str) -> int:
    """Return LETTER, DIGIT or OTHER; part of a character counts as a letter."""
    if character == REPLACEMENT:
        return LETTER
    return {"L": LETTER, "M": LETTER, "N": DIGIT}.get(unicodedata.category(character)[0], OTHER)


def spell_byte_level(token: str) -> Spelling:
    """Read a token of GPT-2's alphabet of bytes."""
    if not BYTES.keys() >= set(token):  # the decoder, too, leaves such a token as it is
        return spell_text(token)
    return spell_text(bytes(BYTES[character] for character in token).decode(errors="replace"))


def spell_word_piece(token: str, prefix: str | None) -> Spelling:
    """Read a token of WordPiece or WordLevel."""
    if prefix and token.startswith(prefix):
        return Spelling(token.removeprefix(prefix), first_class=LETTER, last_class=LETTER)
    return Spelling(token, first_class=STARTS, last_class=LETTER)


def spell_sentence_piece(token: str) -> Spelling:
    """Read a token of SentencePiece."""
    byte = FALLBACK_BYTE.fullmatch(token)
    if byte:
        return spell_text(bytes.fromhex(byte[1]).decode(errors="replace"))
    return spell_text(token.replace("▁", " "))


def map_byte_characters() -> dict[str, int]:
    """Return GPT-2's alphabet of bytes: character -> byte.

    Printable bytes are themselves; the others take the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}


BYTES = map_byte_characters()
