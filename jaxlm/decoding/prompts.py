"""Prompts as token ids: special tokens by name where the family reads them, and what belongs around a text."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxlm import config
from jaxlm.config import UserError


class Special(Protocol):
    """What is needed of a model's special tokens; interop.tokenizer.Special has it."""

    @property
    def begin_of_text(self) -> str | None: ...
    @property
    def mask(self) -> str | None: ...
    @property
    def sentinels(self) -> int: ...
    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    @property
    def pad_id(self) -> int | None: ...
    @property
    def decoder_start_id(self) -> int | None: ...
    @property
    def forced_bos_id(self) -> int | None: ...
    @property
    def forced_eos_id(self) -> int | None: ...
    @property
    def before(self) -> tuple[int, ...]: ...
    @property
    def after(self) -> tuple[int, ...]: ...


class Tokenizer(Protocol):
    """What is needed of a tokenizer; data.Tokenizer has it."""

    end_of_text: int
    inner: Any  # tokenizers.Tokenizer

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, ids: Any) -> str: ...

    def show(self, ids: Any) -> str: ...


def sentinels(tokenizer: Tokenizer, special: Special) -> dict[str, int]:
    """The ids of <extra_id_0>, <extra_id_1>, ... by name."""
    return ids_of(tokenizer, [f"<extra_id_{number}>" for number in range(special.sentinels)])


def ids_of(tokenizer: Tokenizer, names: Sequence[str | None]) -> dict[str, int]:
    found = {name: tokenizer.inner.token_to_id(name) for name in names if name is not None}
    return {name: number for name, number in found.items() if number is not None}


def readable(model: config.ModelConfig, tokenizer: Tokenizer, special: Special) -> dict[str, int]:
    """The special tokens that a prompt may name: an encoder's mask, an encoder-decoder's mask and sentinels."""
    if model.family == "decoder":
        return {}
    return ids_of(tokenizer, [special.mask]) | (
        sentinels(tokenizer, special) if model.family == "encoder_decoder" else {}
    )


def encode(tokenizer: Tokenizer, text: str, names: Mapping[str, int]) -> np.ndarray:
    """int32 [n]: the ids of `text`, in which `names` are special tokens; any other token's name is plain text."""
    if not names:
        return tokenizer.encode(text)
    added, spaced = tokenizer.inner.get_added_tokens_decoder(), begins_words(tokenizer.inner)
    pieces = re.split(f"({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})", text)
    for place in range(1, len(pieces), 2):
        token = added.get(names[pieces[place]])
        if spaced or (token is not None and token.lstrip):
            pieces[place - 1] = pieces[place - 1].rstrip()
        if token is not None and token.rstrip:
            pieces[place + 1] = pieces[place + 1].lstrip()
    parts = [
        np.array([names[piece]]) if place % 2 else tokenizer.encode(piece)
        for place, piece in enumerate(pieces)
        if piece
    ]
    return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)


def begins_words(inner: Any) -> bool:
    """Whether tokens begin with the space before their word, as GPT-2's do: one that stands for such tokens stands for the space too."""
    splitter = inner.pre_tokenizer
    return type(splitter).__name__ == "ByteLevel" and splitter.use_regex


def framed(
    model: config.ModelConfig, tokenizer: Tokenizer, special: Special, text: str
) -> np.ndarray:
    """int32 [n]: what the model reads of a prompt. A decoder goes on with the text, so nothing stands after it there."""
    ids = encode(tokenizer, text, readable(model, tokenizer, special))
    after = () if model.family == "decoder" else special.after
    ids = np.concatenate([special.before, ids, after]).astype(np.int32)
    if len(ids):
        return ids
    # Nothing to go on with: the beginning of a document, which the end of another precedes in training.
    begin = ids_of(tokenizer, [special.begin_of_text]).values()
    return np.array([*begin, tokenizer.end_of_text][:1], np.int32)


def check_length(model: config.ModelConfig, number: int, length: int, room: int = 0) -> None:
    """UserError if prompt `number` has more tokens than there are positions, with `room` for new ones."""
    if model.positions == "learned" and length + room > model.context_length:
        need = f" and {room} new" if room else ""
        reason = f"{length} tokens{need}, but the model's positions end at {model.context_length} (model.context_length)"
        raise UserError(f"prompt {number}: {reason}")


def free_positions(model: config.ModelConfig, length: int) -> int | None:
    """Tokens that may follow so many within the model's table of positions; None: it has none."""
    return model.context_length - length if model.positions == "learned" else None
