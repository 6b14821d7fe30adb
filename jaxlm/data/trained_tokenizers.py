"""Train tokenizers: byte-level BPE, WordPiece and Unigram.

Of each kind the ids are numbered alike: the special tokens first (the end of text is id 0), then
what the kind needs, the pieces that were learned, and the sentinels. As in T5, <extra_id_0> is the
very last. There are fewer ids than asked for if the texts have no more pieces.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from jaxlm.data.boundaries import GPT2, GPT4, WHITE_SPACE, bound_pattern
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.data.tokenizer_files import LONGEST_WORD, SPACE, added_tokens
from jaxlm.data.vocabulary import SpecialTokens

PATTERNS = {"gpt2": GPT2, "gpt4": GPT4, "whitespace": WHITE_SPACE}
UNKNOWN_WORD = "[UNK]"  # of WordPiece, where a word has a character that no token has
UNKNOWN = "<unk>"  # of Unigram, which writes bytes instead
CONTINUES = "##"
CODE_POINTS = 0x110000
CHARACTER_SHARE = 4  # WordPiece: at most a quarter of the ids are characters at the start of words
MORE_MERGES = 5 / 4  # WordPiece: pieces that are learned, so that some can be left out

ASCII = [chr(code) for code in range(0x21, 0x7F)]
ESCAPE = "\ufdd0"  # no character of any text, as Unicode says; all the same it is read back
NEVER_CHOSEN = -1e6  # the score of tokens that Unigram must not find in a text
SCORE_DIGITS = 2
LONG_STRETCH = re.compile(r"(\S{4096})\S+")
SHRINKING_FACTOR = 0.5  # of the pieces that a round keeps; 0.75 takes twice as long for 0.2%


def split_steps(splits_by: str, longest_piece: int | None) -> list[Any]:
    """Return the pre-tokenizers that cut a text into words of at most `longest_piece` characters.

    A space belongs to the word after it, except for "bert".
    """
    steps: list[Any] = []
    if splits_by in PATTERNS:
        steps.append(pre_tokenizers.Split(Regex(PATTERNS[splits_by]), "isolated"))
    if splits_by == "bert":
        steps.append(pre_tokenizers.BertPreTokenizer())
    if longest_piece is not None:
        steps.append(pre_tokenizers.Split(Regex(bound_pattern(longest_piece)), "isolated"))
    return steps


def train_bpe(
    texts: Iterable[str],
    size: int,
    special: SpecialTokens,
    splits_by: str = "gpt2",
    longest_piece: int | None = None,
) -> Tokenizer:
    """Train byte-level BPE with at most `size` ids. The 256 bytes follow the special tokens."""
    inner = tokenizers.Tokenizer(models.BPE())
    if splits_by == "gpt2" and longest_piece is None:
        # The same words by the library's own code, and the tokenizer.json of earlier versions.
        splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        steps = split_steps(splits_by, longest_piece)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        splitter = pre_tokenizers.Sequence([*steps, byte_level])
    inner.pre_tokenizer = splitter  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]

    trainer = trainers.BpeTrainer(
        vocab_size=size - special.sentinels,
        special_tokens=added_tokens(special.named.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    inner.add_special_tokens(added_tokens(reversed(special.sentinel_names)))
    return Tokenizer(inner, special)


# WordPiece


def train_word_piece(
    texts: Iterable[str],
    size: int,
    special: SpecialTokens,
    splits_by: str = "bert",
    longest_piece: int | None = None,
) -> Tokenizer:
    """Train WordPiece with at most `size` ids, which tells capitals apart.

    It is learned as BPE whose words begin with a mark: the library's own training of WordPiece
    numbers its tokens by chance. [UNK] and the characters follow the special tokens.
    """
    normalizer: Any = normalizers.BertNormalizer(lowercase=False)
    if splits_by == "whitespace":
        splitter: Any = pre_tokenizers.WhitespaceSplit()
        steps = [splitter, *split_steps("none", longest_piece)]
    else:
        steps = split_steps(splits_by, longest_piece)

    learned = tokenizers.Tokenizer(models.BPE())
    learned.normalizer = normalizer
    mark = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always", split=False)
    learned.pre_tokenizer = pre_tokenizers.Sequence([*steps, mark])  # type: ignore[assignment]
    counts = np.zeros(CODE_POINTS, np.int64)
    trainer = trainers.BpeTrainer(vocab_size=int(size * MORE_MERGES), show_progress=False)
    learned.train_from_iterator(count_characters(texts, counts), trainer)

    room = size - special.sentinels
    names = [*special.named.values(), UNKNOWN_WORD]
    pieces = sorted(learned.get_vocab(), key=learned.get_vocab().__getitem__)
    ranked = rank_characters(pieces, counts)
    common = sorted(ranked[: max(1, room // CHARACTER_SHARE)])
    inside = [c for c in common if splits_by != "bert" or may_continue(c)]
    tokens = [*names, *common, *(CONTINUES + character for character in inside)]
    for piece in pieces:
        if len(piece) > 1:
            starts = piece.startswith(SPACE)
            tokens.append(piece.removeprefix(SPACE) if starts else CONTINUES + piece)
    tokens += ranked  # where there are few pieces, more characters have room

    hidden = set(special.sentinel_names)
    chosen = [token for token in dict.fromkeys(tokens) if token not in hidden][:room]
    inner = tokenizers.Tokenizer(
        models.WordPiece(
            {token: number for number, token in enumerate(chosen)},
            unk_token=UNKNOWN_WORD,
            max_input_chars_per_word=longest_piece or LONGEST_WORD,
        )
    )
    inner.normalizer = normalizer
    inner.pre_tokenizer = (  # type: ignore[assignment]
        steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    )
    inner.decoder = decoders.WordPiece()  # type: ignore[assignment]
    inner.add_special_tokens(added_tokens([*names, *reversed(special.sentinel_names)]))
    return Tokenizer(inner, special)


def count_characters(texts: Iterable[str], counts: np.ndarray) -> Iterator[str]:
    """Yield the texts, and add how often they have each character to `counts`."""
    for text in texts:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        numbers, times = np.unique(codes, return_counts=True)
        counts[numbers] += times
        yield text


def rank_characters(pieces: list[str], counts: np.ndarray) -> list[str]:
    """Return the pieces that are characters of the texts, the most frequent first."""
    characters = [piece for piece in pieces if len(piece) == 1 and counts[ord(piece)]]
    return sorted(characters, key=lambda character: (-counts[ord(character)], character))


def may_continue(character: str) -> bool:
    """Return whether BERT's words have the character behind another: no mark, no Han character."""
    is_mark = unicodedata.category(character).startswith("P") or (
        character.isascii() and not character.isalnum()
    )
    is_han = any(
        low <= character <= high
        for low, high in (("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"))
    )
    return not (is_mark or is_han)


# Unigram


def train_unigram(
    texts: Iterable[str],
    size: int,
    special: SpecialTokens,
    splits_by: str = "whitespace",
    longest_piece: int | None = None,
) -> Tokenizer:
    """Train Unigram with at most `size` ids, which writes rare characters as bytes.

    A space is "▁" and every text is read back as it was. <unk>, which no text has, and the 256
    bytes follow the special tokens. The library adds up in any order, so the scores are rounded:
    two trainings have the same pieces, and rarely another score.
    """
    steps = split_steps(splits_by, longest_piece)
    mark = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=False)
    # The mark itself may be in a text. It is escaped, and so is the character that escapes it.
    normalizer: Any = normalizers.Sequence(
        [normalizers.Replace(ESCAPE, f"{ESCAPE}0"), normalizers.Replace(SPACE, f"{ESCAPE}1")]
    )
    splitter: Any = pre_tokenizers.Sequence([*steps, mark])

    names = [*special.named.values(), UNKNOWN]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    # All that names and bytes are written with has a piece, which is then better than they are.
    alphabet = sorted({SPACE, *ASCII, *"".join(special.names)} - {" "})
    room = size - special.sentinels - len(names) - len(fallback)

    learned = tokenizers.Tokenizer(models.Unigram())
    learned.normalizer, learned.pre_tokenizer = normalizer, splitter
    trainer = trainers.UnigramTrainer(
        vocab_size=max(room, len(alphabet)) + 1,  # the character that escapes may be one more
        initial_alphabet=alphabet,
        shrinking_factor=SHRINKING_FACTOR,
        show_progress=False,
    )
    if longest_piece is not None:
        texts = shorten_stretches(texts)
    texts = limit_characters(texts, alphabet, room // 2)
    learned.train_from_iterator(texts, trainer)
    scores = read_scores(learned, {*names, *fallback, *special.sentinel_names})

    inner = tokenizers.Tokenizer(
        models.Unigram(
            [
                *((name, NEVER_CHOSEN) for name in [*names, *fallback]),
                *choose_pieces(scores, alphabet, room),
            ],
            names.index(UNKNOWN),
            byte_fallback=True,
        )
    )
    inner.normalizer, inner.pre_tokenizer = normalizer, splitter
    inner.decoder = decoders.Sequence(  # type: ignore[assignment]
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(f"{ESCAPE}1", SPACE),
            decoders.Replace(f"{ESCAPE}0", ESCAPE),
        ]
    )
    inner.add_special_tokens(added_tokens([*names, *reversed(special.sentinel_names)]))
    return Tokenizer(inner, special)


def shorten_stretches(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts with the start alone of a stretch without white space.

    Such a text takes half a minute of each MB, ten times as long as for BPE.
    """
    for text in texts:
        yield LONG_STRETCH.sub(r"\1", text)


def limit_characters(texts: Iterable[str], alphabet: list[str], most: int) -> Iterator[str]:
    """Yield the texts with spaces for their characters once these are too many.

    Bytes stand for the others, and the library wants a piece for each character.
    """
    known = {" ", *alphabet}
    for text in texts:
        new = sorted(set(text) - known, key=lambda character: (-text.count(character), character))
        room = max(0, most - len(known))
        known.update(new[:room])
        yield text.translate(dict.fromkeys(map(ord, new[room:]), " ")) if new[room:] else text


def read_scores(learned: tokenizers.Tokenizer, reserved: set[str]) -> dict[str, float]:
    """Return the pieces that were learned, without the reserved ones, and their scores."""
    pieces = json.loads(learned.to_str())["model"]["vocab"]
    return {
        piece: round(score, SCORE_DIGITS)
        for piece, score in pieces
        if piece not in reserved and score is not None  # as it is without a text
    }


def choose_pieces(
    scores: dict[str, float], alphabet: list[str], most: int
) -> list[tuple[str, float]]:
    """Return the best pieces, the alphabet among them, in the order of their scores."""
    lowest = min(scores.values(), default=0.0)
    scores = dict.fromkeys(alphabet, lowest) | scores
    needed = set(alphabet)
    ranked = sorted(scores.items(), key=lambda item: (item[0] not in needed, -item[1], item[0]))
    return sorted(ranked[:most], key=lambda item: (-item[1], item[0]))


TRAINERS = {"bpe": train_bpe, "wordpiece": train_word_piece, "unigram": train_unigram}
