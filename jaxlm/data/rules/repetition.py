"""Judge how much a text repeats itself by the rules of Gopher.

Rae et al. 2021 (arXiv 2112.11446), table A1. Where the paper leaves a choice:

- A line, paragraph or n-gram is a duplicate if an earlier one is the same; the first is not one.
- Words are what stands between white space. Characters of n-grams are those of words: white space
  counts neither in the n-gram nor in the text.
- A word that lies in several n-grams counts once, so a share is at most 1.
- An n-gram that occurs once is no repetition, however short the text.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLANK_LINES = re.compile(r"\n\s*\n")

LINES, PARAGRAPHS = 0.30, 0.30  # shares of duplicates, at most
LINE_CHARACTERS, PARAGRAPH_CHARACTERS = 0.20, 0.20  # shares of the characters
TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}

REPETITION_REASONS = (
    "repetition_lines",
    "repetition_paragraphs",
    "repetition_line_characters",
    "repetition_paragraph_characters",
    *(f"repetition_top_{length}_gram" for length in TOP_NGRAMS),
    *(f"repetition_duplicate_{length}_gram" for length in DUPLICATE_NGRAMS),
)


class RepeatedNgrams(NamedTuple):
    """The n-grams of a text that occur at least twice.

    Each occurrence has a place, the number of its first word, and a group, the n-gram that it is.
    Occurrences are in the order of the text.
    """

    places: np.ndarray  # int64 [n]
    groups: np.ndarray  # int64 [n]
    counts: np.ndarray  # int64 [groups]: occurrences
    first: np.ndarray  # int64 [groups]: place of the first occurrence


def judge_repetition(text: str, words: list[str], lines: list[str]) -> str:
    """Return the first rule that a text breaks, in the order of REPETITION_REASONS, or "".

    `words` and `lines` are those of the text; the lines are stripped and not blank.
    """
    paragraphs = [part for part in map(str.strip, BLANK_LINES.split(text)) if part]
    line_share, line_characters = share_of_duplicates(lines)
    paragraph_share, paragraph_characters = share_of_duplicates(paragraphs)
    if line_share > LINES:
        return "repetition_lines"
    if paragraph_share > PARAGRAPHS:
        return "repetition_paragraphs"
    if line_characters > LINE_CHARACTERS:
        return "repetition_line_characters"
    if paragraph_characters > PARAGRAPH_CHARACTERS:
        return "repetition_paragraph_characters"

    lengths = np.fromiter(map(len, words), np.int64, len(words))
    for length, ngrams in repeated_ngrams(words):
        limit = DUPLICATE_NGRAMS.get(length)
        if limit is None:
            places, limit = top_places(ngrams, lengths, length), TOP_NGRAMS[length]
            reason = f"repetition_top_{length}_gram"
        else:
            places = ngrams.places[ngrams.places != ngrams.first[ngrams.groups]]
            reason = f"repetition_duplicate_{length}_gram"
        if share_of_characters(places, lengths, length) > limit:
            return reason
    return ""


def share_of_duplicates(parts: list[str]) -> tuple[float, float]:
    """Return the shares of the parts, and of their characters, that repeat earlier ones."""
    different = set(parts)
    count = len(parts) - len(different)
    if not count:
        return 0.0, 0.0
    # One division each: 1 - 7 / 10 is more than 3 / 10.
    characters = sum(map(len, parts))
    return count / len(parts), (characters - sum(map(len, different))) / characters


def repeated_ngrams(words: list[str]) -> Iterator[tuple[int, RepeatedNgrams]]:
    """Yield (length, n-grams that occur at least twice) from 2 words, while there are any.

    An n-gram can only occur twice if its first n - 1 words do. So each length looks at the places
    that the one before has left, which are few in a text that repeats little.
    """
    numbers: dict[str, int] = {}
    codes = np.fromiter(
        (numbers.setdefault(word, len(numbers)) for word in words), np.int64, len(words)
    )
    if len(numbers) == len(words):
        return

    places, groups = np.arange(len(words)), codes
    for length in range(2, max(DUPLICATE_NGRAMS) + 1):
        fits = places <= len(words) - length
        places, groups = places[fits], groups[fits]
        # Exact: fewer groups than 2**31 and fewer words than 2**31 give different keys.
        keys = groups * len(numbers) + codes[places + length - 1]

        ngrams = group_repeated(places, keys)
        if not len(ngrams.places):
            return
        yield length, ngrams
        places, groups = ngrams.places, ngrams.groups


def group_repeated(places: np.ndarray, keys: np.ndarray) -> RepeatedNgrams:
    """Return those places whose key occurs at least twice."""
    order = np.argsort(keys, kind="stable")
    is_new = np.concatenate([[True], np.diff(keys[order]) != 0])[: len(keys)]
    starts = np.flatnonzero(is_new)
    counts = np.diff(np.append(starts, len(keys)))

    is_repeated = counts > 1
    groups_in_order = np.repeat(np.cumsum(is_repeated) - 1, counts)
    keep = np.repeat(is_repeated, counts)
    chosen, groups = order[keep], groups_in_order[keep]
    first = places[order[starts[is_repeated]]]

    by_place = np.argsort(chosen)
    return RepeatedNgrams(places[chosen[by_place]], groups[by_place], counts[is_repeated], first)


def top_places(ngrams: RepeatedNgrams, lengths: np.ndarray, length: int) -> np.ndarray:
    """Return the places of the most frequent n-gram; of several, of the longest in characters."""
    top = np.flatnonzero(ngrams.counts == ngrams.counts.max())
    ends = np.concatenate([[0], np.cumsum(lengths)])
    sizes = ends[ngrams.first[top] + length] - ends[ngrams.first[top]]
    return ngrams.places[ngrams.groups == top[np.argmax(sizes)]]


def share_of_characters(places: np.ndarray, lengths: np.ndarray, length: int) -> float:
    """Return the share of the characters of all words that lie in n-grams at these places."""
    covered = np.zeros(len(lengths) + 1, np.int64)
    covered[places] = 1
    np.subtract.at(covered, places + length, 1)
    is_covered = np.cumsum(covered)[:-1] > 0
    return float(lengths[is_covered].sum() / lengths.sum())
