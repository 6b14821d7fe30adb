"""Encode prompts: special tokens by name where the family reads them, and the frame of a text."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxlm import config
from jaxlm.config import UserError
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.interop.tokenizer import TokenizerFrame


def find_token_ids(tokenizer: Tokenizer, names: Sequence[str | None]) -> dict[str, int]:
    """Return the ids of the names that are tokens; None and unknown names are left out."""
    ids = {}
    for name in names:
        token = None if name is None else tokenizer.inner.token_to_id(name)
        if token is not None:
            ids[name] = token
    return ids


def sentinel_ids(tokenizer: Tokenizer, frame: TokenizerFrame) -> dict[str, int]:
    """Return the ids of <extra_id_0>, <extra_id_1>, ... by name."""
    return find_token_ids(tokenizer, [f"<extra_id_{number}>" for number in range(frame.sentinels)])


def split_at_sentinels(ids: np.ndarray, sentinels: np.ndarray) -> dict[int, np.ndarray]:
    """Return the tokens that follow each sentinel in `ids`, by the sentinel's id."""
    places = np.flatnonzero(np.isin(ids, sentinels))
    spans = np.split(ids, places)[1:]
    return {int(ids[place]): span[1:] for place, span in zip(places, spans, strict=True)}


def special_ids_in_prompts(
    model_config: config.ModelConfig, tokenizer: Tokenizer, frame: TokenizerFrame
) -> dict[str, int]:
    """Return the special tokens that a prompt may name, by name.

    An encoder reads the mask, an encoder-decoder the mask and the sentinels. All read the tokens
    that say what is asked for: prefix, suffix and middle of a decoder that infills, a denoiser.
    """
    ids = find_token_ids(tokenizer, [*tokenizer.special.task_tokens.values()])
    if model_config.family == "decoder":
        return ids
    ids |= find_token_ids(tokenizer, [frame.mask])
    if model_config.family == "encoder_decoder":
        ids |= sentinel_ids(tokenizer, frame)
    return ids


def encode_with_special(
    tokenizer: Tokenizer, text: str, special_ids: Mapping[str, int]
) -> np.ndarray:
    """Return int32 [n], the ids of `text`, in which the names of `special_ids` are tokens.

    The name of any other special token is plain text.
    """
    if not special_ids:
        return tokenizer.encode(text)
    added = tokenizer.inner.get_added_tokens_decoder().values()
    others = {token.content for token in added if token.special} - {*special_ids}
    if any(name in text for name in others):
        return encode_pieces(tokenizer, text, special_ids)

    # Without such names the tokenizer reads the text as it does elsewhere: which spaces its tokens
    # take along, and where a word begins, is its own matter.
    tokenizer.inner.encode_special_tokens = False
    try:
        ids = np.array(tokenizer.inner.encode(text, add_special_tokens=False).ids, np.int32)
    finally:
        tokenizer.inner.encode_special_tokens = True
    is_unexpected = tokenizer.reserved[ids] & ~np.isin(ids, list(special_ids.values()))
    return encode_pieces(tokenizer, text, special_ids) if is_unexpected.any() else ids


def encode_pieces(tokenizer: Tokenizer, text: str, special_ids: Mapping[str, int]) -> np.ndarray:
    """Return int32 [n], the ids of the texts between special tokens, each encoded by itself."""
    added = tokenizer.inner.get_added_tokens_decoder()
    names = sorted(special_ids, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, names))})", text)

    # Names are at the odd places. A token may take the spaces beside it along.
    for place in range(1, len(pieces), 2):
        token = added.get(special_ids[pieces[place]])
        if token is not None and token.lstrip:
            pieces[place - 1] = pieces[place - 1].rstrip()
        if token is not None and token.rstrip:
            pieces[place + 1] = pieces[place + 1].lstrip()

    parts = [np.zeros(0, np.int32)]
    for place, piece in enumerate(pieces):
        if place % 2:
            parts.append(np.array([special_ids[piece]], np.int32))
        elif piece:
            parts.append(tokenizer.encode(piece))
    return np.concatenate(parts).astype(np.int32)


def encode_prompt(
    model_config: config.ModelConfig, tokenizer: Tokenizer, frame: TokenizerFrame, text: str
) -> np.ndarray:
    """Return int32 [n], what the model reads of a prompt, in the frame of its tokenizer.

    A decoder continues the text, so nothing stands after it there.
    """
    special_ids = special_ids_in_prompts(model_config, tokenizer, frame)
    ids = encode_with_special(tokenizer, text, special_ids)
    after = () if model_config.family == "decoder" else frame.after
    ids = np.concatenate([frame.before, ids, after]).astype(np.int32)
    if len(ids):
        return ids

    # An empty prompt is the start of a document, which in training follows the end of another.
    begin = find_token_ids(tokenizer, [frame.begin_of_text]).values()
    return np.array([*begin, tokenizer.end_of_text][:1], np.int32)


def check_prompt_length(
    model_config: config.ModelConfig, number: int, length: int, room: int = 0
) -> None:
    """Raise UserError if prompt `number` and `room` new tokens exceed the table of positions."""
    if model_config.positions == "learned" and length + room > model_config.context_length:
        new = f" and {room} new" if room else ""
        raise UserError(
            f"prompt {number}: {length} tokens{new}, but the model's positions end at "
            f"{model_config.context_length} (model.context_length)"
        )


def free_positions(model_config: config.ModelConfig, length: int) -> int | None:
    """Return how many tokens may follow `length` in the table of positions; None without one."""
    return model_config.context_length - length if model_config.positions == "learned" else None
