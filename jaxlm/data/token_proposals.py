"""Propose tokens for the text of a domain: frequent words that a tokenizer cuts into many."""

import bisect
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import tokenizers

from jaxlm.data.new_tokens import LONGEST_TOKEN, keeps_words_whole

FEWEST_OCCURRENCES = 2
# A word, which begins with a letter; alone, and with the space before it, which most tokenizers
# make part of its first token.
WORD = re.compile(r"(?<!\w)[^\W\d_]\w*")
SPACED_WORD = re.compile(r" [^\W\d_]\w*")
# Candidates for each token that is wanted, whose saving is counted exactly
CANDIDATES = 4
WORDS_AT_ONCE = 1 << 16  # that are encoded
# Characters of a text, and in all, on which a tokenizer is measured
EXCERPT, SAMPLE = 1 << 16, 1 << 22


class ProposedToken(NamedTuple):
    """A word as a token, and what it saves in the text that it was found in."""

    content: str
    occurrences: int  # of the word itself
    pieces: int  # tokens that the tokenizer makes of it
    saved: int  # tokens, in all words that begin with it


def propose_tokens(
    inner: tokenizers.Tokenizer, texts: Iterable[str], count: int
) -> list[ProposedToken]:
    """Return up to `count` words as tokens, those first that save the most tokens.

    A word saves its pieces but one each time that it occurs. A token with a space before it is also
    found at the start of longer words, which may take fewer tokens by it or more; that counts too.
    Words with equal savings come in alphabetical order.
    """
    words = count_words(inner, texts)
    pieces = dict(zip(words, count_pieces(inner, list(words)), strict=True))
    names = inner.get_vocab(with_added_tokens=True)

    candidates = [
        word
        for word, occurrences in words.items()
        if occurrences >= FEWEST_OCCURRENCES
        and pieces[word] > 1
        and word not in names
        and len(word) <= LONGEST_TOKEN
    ]
    candidates.sort(key=lambda word: (-words[word] * (pieces[word] - 1), word))
    candidates = candidates[: CANDIDATES * count]

    whole = keeps_words_whole(inner)
    saved = [words[word] * (pieces[word] - 1) for word in candidates]
    if not whole:
        saved = count_savings(inner, candidates, words, pieces)
    proposed = [
        ProposedToken(word, words[word], pieces[word], tokens)
        for word, tokens in zip(candidates, saved, strict=True)
        if tokens > 0
    ]
    return sorted(proposed, key=lambda token: (-token.saved, token.content))[:count]


def count_words(inner: tokenizers.Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """Return how often each word occurs, as a token would find it."""
    whole = keeps_words_whole(inner)
    pattern = WORD if whole else SPACED_WORD
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(pattern.findall(text))

    normalizer = inner.normalizer
    if not whole or normalizer is None:
        return counts
    # An uncased tokenizer finds a word in any case.
    normal: Counter[str] = Counter()
    for word, occurrences in counts.items():
        normal[normalizer.normalize_str(word)] += occurrences
    return Counter({word: n for word, n in normal.items() if WORD.fullmatch(word)})


def count_pieces(inner: tokenizers.Tokenizer, words: Sequence[str]) -> list[int]:
    """Return the number of tokens of each word."""
    counts = []
    for start in range(0, len(words), WORDS_AT_ONCE):
        batch = list(words[start : start + WORDS_AT_ONCE])
        encodings = inner.encode_batch_fast(batch, add_special_tokens=False)
        counts += [len(encoding.ids) for encoding in encodings]
    return counts


def count_savings(
    inner: tokenizers.Tokenizer,
    candidates: Sequence[str],
    words: Counter[str],
    pieces: dict[str, int],
) -> list[int]:
    """Return the tokens that each candidate saves in all words that begin with it."""
    ordered = sorted(words)
    ranges = []
    for word in candidates:
        start = bisect.bisect_left(ordered, word)
        end = start
        while end < len(ordered) and ordered[end].startswith(word):
            end += 1
        ranges.append(ordered[start:end])

    rests = sorted(
        {
            longer[len(word) :]
            for word, longer_words in zip(candidates, ranges, strict=True)
            for longer in longer_words
        }
    )
    rest_pieces = dict(zip(rests, count_pieces(inner, rests), strict=True))
    return [
        sum(
            words[longer] * (pieces[longer] - 1 - rest_pieces[longer[len(word) :]])
            for longer in longer_words
        )
        for word, longer_words in zip(candidates, ranges, strict=True)
    ]


def measure_bytes_per_token(inner: tokenizers.Tokenizer, texts: Iterable[str]) -> float:
    """Return the bytes of a token in the starts of the first texts; 0 without text."""
    excerpts, left = [], SAMPLE
    for text in texts:
        excerpts.append(text[: min(EXCERPT, left)])
        left -= len(excerpts[-1])
        if left <= 0:
            break

    tokens = sum(count_pieces(inner, excerpts))
    return sum(len(text.encode()) for text in excerpts) / tokens if tokens else 0.0
