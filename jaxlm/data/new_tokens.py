"""Add tokens to a tokenizer. The ids of a text without them stay what they were."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import AddedToken

from jaxlm.config import UserError
from jaxlm.config.fields import shorten
from jaxlm.files import strip_byte_order_mark

MOST_TOKENS = 1 << 16  # that are added at once
LONGEST_TOKEN = 256  # characters
LARGEST_FILE = MOST_TOKENS * LONGEST_TOKEN  # bytes


class NewToken(NamedTuple):
    """A token to add, and where the user names it."""

    content: str
    place: str  # FILE:LINE, or the option
    special: bool = False  # never read from a document


def read_token_file(path: Path) -> list[NewToken]:
    """Return the tokens of a file with one on each line; a space before a token is part of it.

    Raises UserError, with file and line, for an empty line and one that is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from error
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path}: is larger than {LARGEST_FILE >> 20} MiB")

    lines = strip_byte_order_mark(content).split(b"\n")
    if not lines[-1]:
        del lines[-1]
    if not lines:
        raise UserError(f"{path}: is empty; it needs a token on each line")

    tokens = []
    for number, line in enumerate(lines, 1):
        place = f"{path}:{number}"
        try:
            tokens.append(NewToken(line.removesuffix(b"\r").decode(), place))
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: is not UTF-8 (byte {error.start})") from error
    return tokens


def check_new_tokens(tokens: Sequence[NewToken]) -> None:
    """Raise UserError, with the place, for a token that no tokenizer should get."""
    if len(tokens) > MOST_TOKENS:
        place = tokens[MOST_TOKENS].place
        raise UserError(f"{place}: is one token too many; at most {MOST_TOKENS:,} are added")

    places: dict[str, str] = {}
    for token in tokens:
        if not token.content.strip():
            raise UserError(f"{token.place}: is empty; each line is a token")
        if token.content != token.content.rstrip():
            raise UserError(
                f"{token.place}: {shorten(token.content)} ends with white space, which belongs to "
                "the next word"
            )
        if len(token.content) > LONGEST_TOKEN:
            raise UserError(
                f"{token.place}: {shorten(token.content)} has {len(token.content):,} characters; "
                f"a token has at most {LONGEST_TOKEN}"
            )
        if token.content in places:
            raise UserError(
                f"{token.place}: {shorten(token.content)} stands there twice, first at "
                f"{places[token.content]}"
            )
        places[token.content] = token.place


def add_new_tokens(inner: tokenizers.Tokenizer, tokens: Sequence[NewToken]) -> dict[int, list[int]]:
    """Add tokens to `inner`; return the id of each and the ids that its text had before.

    Raises UserError, with the place, for a token that `inner` has already, that it can't find in a
    text, or whose text it can't give back.
    """
    check_new_tokens(tokens)
    names = inner.get_vocab(with_added_tokens=True)
    reads_special = inner.encode_special_tokens
    # The pieces of "<|im_start|>" are those of a plain text.
    inner.encode_special_tokens = True
    encodings = inner.encode_batch([token.content for token in tokens], add_special_tokens=False)

    pieces = [encoding.ids for encoding in encodings]
    for token, ids in zip(tokens, pieces, strict=True):
        check_is_new(inner, names, token, ids)

    texts: set[str] = set()  # as the tokenizer looks for them
    for token in tokens:
        added = describe_token(inner, token)
        text = token.content
        if added.normalized and inner.normalizer is not None:
            text = inner.normalizer.normalize_str(text)
        if text in texts:
            raise never_found(token)
        texts.add(text)
        add = inner.add_special_tokens if token.special else inner.add_tokens
        add([added])
    inner.encode_special_tokens = False
    new_ids = [check_is_found(inner, token) for token in tokens]
    inner.encode_special_tokens = reads_special
    return dict(zip(new_ids, pieces, strict=True))


def check_is_new(
    inner: tokenizers.Tokenizer, names: dict[str, int], token: NewToken, ids: list[int]
) -> None:
    """Raise UserError for a token that the tokenizer has, or of which it sees nothing."""
    shown = shorten(token.content)
    if token.content in names:
        raise UserError(f"{token.place}: {shown} is a token already, {names[token.content]}")
    if not ids:
        raise UserError(f"{token.place}: the tokenizer leaves nothing of {shown}")
    if len(ids) == 1 and inner.decode(ids, skip_special_tokens=False) == token.content:
        raise UserError(f"{token.place}: {shown} is one token already, {ids[0]}")


def describe_token(inner: tokenizers.Tokenizer, token: NewToken) -> AddedToken:
    """Return the token with its flags.

    It is looked for in the normalized text if its own text is normalized in nothing but its
    capitals: an uncased tokenizer finds it in any case. WordPiece would start a new word after a
    token inside a word, so there it is found as a whole word only.
    """
    is_word = re.fullmatch(r"\w+", token.content) is not None
    normalizer = inner.normalizer
    is_normalized = False
    if normalizer is not None and not token.special:
        normal = normalizer.normalize_str(token.content)
        is_normalized = is_word and normal.casefold() == token.content.casefold()
    return AddedToken(
        token.content,
        single_word=is_word and keeps_words_whole(inner),
        normalized=is_normalized,
        special=token.special,
    )


def keeps_words_whole(inner: tokenizers.Tokenizer) -> bool:
    """Return whether a tokenizer marks the tokens inside a word, and not the space before it."""
    return type(inner.model).__name__ in ("WordPiece", "WordLevel")


def never_found(token: NewToken) -> UserError:
    """Return the error for a token whose text is that of another one."""
    reason = "would never be found: another token takes its text"
    return UserError(f"{token.place}: {shorten(token.content)} {reason}")


def check_is_found(inner: tokenizers.Tokenizer, token: NewToken) -> int:
    """Return the id of a token that was added; UserError if its text is not read or written so."""
    number = inner.token_to_id(token.content)
    assert number is not None
    shown = shorten(token.content)
    if inner.encode(token.content, add_special_tokens=False).ids != [number]:
        raise never_found(token)
    # Some decoders leave out the space at the start of a text; uncased ones write small letters.
    decoded = inner.decode([number], skip_special_tokens=False)
    if decoded.strip().casefold() != token.content.strip().casefold():
        raise UserError(
            f"{token.place}: {shown} can't be given back as text: the tokenizer takes its "
            "characters for bytes; a space before it helps"
        )
    return number
