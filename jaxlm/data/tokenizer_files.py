"""Read tokenizers in the formats of other projects: GPT-2, BERT, SentencePiece, tiktoken.

Each becomes the `tokenizers.Tokenizer` with the same ids. The special tokens that a file holds are
marked as such.
"""

import base64
import binascii
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from jaxlm.data.boundaries import GPT2, GPT4, GPT4O, OUTER_SPACES, SEVERAL_SPACES
from jaxlm.data.sentencepiece_file import (
    BPE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    USER_DEFINED,
    Piece,
    SentencePieceModel,
    read_sentencepiece,
)
from jaxlm.data.vocabulary import BYTES
from jaxlm.files import read_utf8

TOKENIZER_JSON = "tokenizer.json"
# The vocabulary of a byte-level BPE and its merges, as Hugging Face and OpenAI name them.
MERGES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
WORD_PIECES = "vocab.txt"
BYTE_LEVEL_TOKENS = ("<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>")
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ALBERT_TOKENS = {"[CLS]", "[SEP]"}
LONGEST_WORD = 100  # characters; longer ones are unknown to BERT
SPACE = "▁"
CHARACTERS = {byte: character for character, byte in BYTES.items()}

LLAMA3_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>")
# The ranks of a tiktoken file, which say nothing else -> its pattern, and its special tokens by id
# (tiktoken_ext/openai_public.py; Llama 3's tokenizer.py).
TIKTOKEN: dict[int, tuple[str, dict[str, int]]] = {
    50_256: (GPT2, {"<|endoftext|>": 50_256}),
    50_280: (GPT2, {"<|endoftext|>": 50_256}),
    100_256: (
        GPT4,
        {
            "<|endoftext|>": 100_257,
            "<|fim_prefix|>": 100_258,
            "<|fim_middle|>": 100_259,
            "<|fim_suffix|>": 100_260,
            "<|endofprompt|>": 100_276,
        },
    ),
    128_000: (GPT4, {name: 128_000 + number for number, name in enumerate(LLAMA3_TOKENS)}),
    199_998: (GPT4O, {"<|endoftext|>": 199_999, "<|endofprompt|>": 200_018}),
}


def read_tokenizer_file(path: Path) -> tokenizers.Tokenizer:
    """Read a tokenizer from a file, or from a folder that holds one.

    Raises OSError, and ValueError for a file of no format that is known.
    """
    path = find_file(path)
    if path.name in MERGES or path.name in MERGES.values():
        return read_byte_level(path)
    if path.suffix == ".json":
        return tokenizers.Tokenizer.from_str(read_utf8(path))

    data = path.read_bytes()
    if is_tiktoken(data):
        return read_tiktoken(data)
    if path.suffix == ".model":
        return build_sentencepiece(read_sentencepiece(path))
    if path.name.endswith(WORD_PIECES):
        return build_word_piece(read_utf8(path))
    return tokenizers.Tokenizer.from_str(read_utf8(path))


def find_file(path: Path) -> Path:
    """Return the file of a tokenizer: `path`, or the first that its folder holds."""
    if not path.is_dir():
        return path
    for pattern in (TOKENIZER_JSON, *MERGES, "*.model", "*.tiktoken", WORD_PIECES):
        for found in sorted(path.glob(pattern)):
            return found
    return path / TOKENIZER_JSON


def mark_special(inner: tokenizers.Tokenizer, names: Iterable[str]) -> tokenizers.Tokenizer:
    """Mark those of `names` that the tokenizer has as special, and return it."""
    inner.add_special_tokens(
        added_tokens(name for name in names if inner.token_to_id(name) is not None)
    )
    return inner


def added_tokens(names: Iterable[str]) -> list[AddedToken]:
    """Return special tokens as the library wants them."""
    return [AddedToken(name, special=True, normalized=False) for name in names]


# Byte-level BPE


def read_byte_level(path: Path) -> tokenizers.Tokenizer:
    """Read the vocabulary and the merges of GPT-2 or RoBERTa; `path` is one of the two files."""
    vocabulary_name, merges_name = next(names for names in MERGES.items() if path.name in names)
    vocabulary = json.loads(read_utf8(path.with_name(vocabulary_name)))
    lines = read_utf8(path.with_name(merges_name)).split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if not isinstance(vocabulary, dict) or any(len(merge) != 2 for merge in merges):
        raise ValueError("not the vocabulary and merges of a byte-level BPE")
    return mark_special(build_byte_level_bpe(vocabulary, merges, GPT2), BYTE_LEVEL_TOKENS)


def build_byte_level_bpe(
    vocabulary: dict[str, int], merges: list[Any], pattern: str, **options: Any
) -> tokenizers.Tokenizer:
    """Return a byte-level BPE whose words are the matches of a pattern."""
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, merges, **options))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == GPT2)
    if pattern == GPT2:
        inner.pre_tokenizer = byte_level  # type: ignore[assignment]
    else:
        words = pre_tokenizers.Split(Regex(pattern), "isolated")
        inner.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
            [words, byte_level]
        )
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return inner


def is_tiktoken(data: bytes) -> bool:
    """Return whether a file has tiktoken's lines: a token in base64, a space, its rank."""
    token, _, rank = data[: data.find(b"\n")].partition(b" ")
    try:
        return bool(base64.b64decode(token, validate=True)) and rank.strip().isdigit()
    except binascii.Error:
        return False


def read_tiktoken(data: bytes) -> tokenizers.Tokenizer:
    """Return the tokenizer of a tiktoken file.

    Two tokens are joined if their union is a token, those of the lowest rank first: each way to
    divide a token is a merge of its rank.
    """
    ranks = {}
    for line in data.split(b"\n"):
        if line:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    if len(ranks) not in TIKTOKEN:
        known = ", ".join(f"{count:,}" for count in TIKTOKEN)
        raise ValueError(
            f"has {len(ranks):,} ranks, of which neither pattern nor special tokens are known "
            f"(those of {known} are: GPT-2, Codex, GPT-4, Llama 3, GPT-4o)"
        )

    pattern, special = TIKTOKEN[len(ranks)]
    merges = []
    for token, rank in ranks.items():
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [half for half in halves if half[0] in ranks and half[1] in ranks]
        pairs.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(rank, pair) for pair in pairs]
    merges.sort(key=lambda merge: merge[0])
    spelled = {token: "".join(map(CHARACTERS.__getitem__, token)) for token in ranks}

    vocabulary = {spelled[token]: rank for token, rank in ranks.items()} | special
    pairs = [(spelled[left], spelled[right]) for _, (left, right) in merges]
    inner = build_byte_level_bpe(vocabulary, pairs, pattern, ignore_merges=True)
    return mark_special(inner, special)


# WordPiece


def build_word_piece(text: str) -> tokenizers.Tokenizer:
    """Return the tokenizer of BERT's vocab.txt: a token on each line.

    It ignores capitals if no token has one.
    """
    tokens = text.rstrip("\n").split("\n")
    vocabulary = {token.rstrip("\r"): number for number, token in enumerate(tokens)}
    if "[UNK]" not in vocabulary:
        raise ValueError("not a vocabulary of WordPiece: it has no [UNK]")
    is_lower = all(token == token.lower() for token in vocabulary if not token.startswith("["))

    inner = tokenizers.Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
    )
    inner.normalizer = normalizers.BertNormalizer(lowercase=is_lower)  # type: ignore[assignment]
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    inner.decoder = decoders.WordPiece()  # type: ignore[assignment]
    return mark_special(inner, BERT_TOKENS)


# SentencePiece


def build_sentencepiece(model: SentencePieceModel) -> tokenizers.Tokenizer:
    """Return the tokenizer of a SentencePiece model of kind Unigram or BPE."""
    if model.kind not in (UNIGRAM, BPE) or model.space_after or not model.escapes_spaces:
        raise ValueError("a SentencePiece model of a kind that is not read (Unigram and BPE are)")

    names = {piece.text for piece in model.pieces}
    unknown = [number for number, piece in enumerate(model.pieces) if piece.kind == UNKNOWN]
    if model.kind == UNIGRAM:
        scored = [(piece.text, unigram_score(model, piece)) for piece in model.pieces]
        inner = tokenizers.Tokenizer(
            models.Unigram(scored, unknown[0] if unknown else None, model.byte_fallback)
        )
    else:
        inner = tokenizers.Tokenizer(
            models.BPE(
                {piece.text: number for number, piece in enumerate(model.pieces)},
                find_merges(model),
                unk_token=model.pieces[unknown[0]].text if unknown else None,
                fuse_unk=True,
                byte_fallback=model.byte_fallback,
            )
        )

    inner.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        normalization_steps(model, is_albert=names >= ALBERT_TOKENS)
    )
    prefix = "always" if model.adds_prefix else "never"
    inner.pre_tokenizer = pre_tokenizers.Metaspace(  # type: ignore[assignment]
        SPACE, prepend_scheme=prefix, split=model.kind == UNIGRAM
    )
    spaces = decoders.Metaspace(SPACE, prepend_scheme=prefix)
    inner.decoder = (  # type: ignore[assignment]
        decoders.Sequence([decoders.ByteFallback(), spaces]) if model.byte_fallback else spaces
    )
    if model.kind == BPE:
        words = [piece.text for piece in model.pieces if piece.kind == USER_DEFINED]
        inner.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    special = (piece.text for piece in model.pieces if piece.kind in (CONTROL, UNKNOWN))
    return mark_special(inner, special)


def unigram_score(model: SentencePieceModel, piece: Piece) -> float:
    """Return the score of a piece: for words of the user one that any other division falls below.

    As in unigram_model.cc, with the length of the word in characters.
    """
    if piece.kind != USER_DEFINED:
        return piece.score
    best = max(other.score for other in model.pieces if other.kind == NORMAL)
    return len(piece.text) * best - 0.1


def normalization_steps(model: SentencePieceModel, is_albert: bool) -> list[Any]:
    """Return the normalizers of a model. ALBERT's tokenizer changes the text before its model does.

    It turns two single quotes into a double one, drops accents and ignores capitals.
    """
    steps: list[Any] = []
    if is_albert:
        steps += [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        steps += [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.joins_spaces:
        steps.append(normalizers.Replace(Regex(OUTER_SPACES), ""))
        steps.append(normalizers.Replace(Regex(SEVERAL_SPACES), " "))
    return steps


def find_merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Return the merges of a BPE model, which lists tokens and their scores alone.

    Two tokens are joined if their union is one, those of the highest score first.
    """
    numbers = {piece.text: number for number, piece in enumerate(model.pieces)}
    merges = []
    for piece in model.pieces:
        halves = [(piece.text[:cut], piece.text[cut:]) for cut in range(1, len(piece.text))]
        pairs = [half for half in halves if half[0] in numbers and half[1] in numbers]
        pairs.sort(key=lambda pair: (numbers[pair[0]], numbers[pair[1]]))
        merges += [(piece.score, pair) for pair in pairs]
    merges.sort(key=lambda merge: -merge[0])
    return [pair for _, pair in merges]
