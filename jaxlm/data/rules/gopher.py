"""Judge the quality of a text by the rules of Gopher.

Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher"
(arXiv 2112.11446), appendix A.1.1. Words are what stands between white space; lines are those that
are not blank. The list of stop words makes these rules for English.
"""

from collections.abc import Iterable

WORDS_AT_LEAST, WORDS_AT_MOST = 50, 100_000
WORD_LENGTH_AT_LEAST, WORD_LENGTH_AT_MOST = 3, 10  # characters, on average
SYMBOLS_PER_WORD = 0.1  # at most, of hashes and of ellipses each
BULLET_LINES, ELLIPSIS_LINES = 0.9, 0.3  # shares of the lines, at most
ALPHABETIC_WORDS = 0.8  # share of the words, at least
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
STOP_WORDS_AT_LEAST = 2  # different ones

# The paper names no characters: the bullets of Unicode's punctuation and geometric shapes, and
# what plain text has in their place.
BULLETS = (*"•‣⁃◦▪▫●○■□▶►·-–", "* ")  # noqa: RUF001
ELLIPSES = ("...", "…")
EDGE_PUNCTUATION = ".,;:!?\"'()[]{}“”‘’«»—–-_*"  # noqa: RUF001

GOPHER_REASONS = (
    "gopher_word_count",
    "gopher_mean_word_length",
    "gopher_symbol_ratio",
    "gopher_bullet_lines",
    "gopher_ellipsis_lines",
    "gopher_alphabetic_words",
    "gopher_stop_words",
)


def judge_quality(text: str, words: list[str], lines: list[str]) -> str:
    """Return the first rule that a text breaks, or "".

    `words` and `lines` are those of the text; the lines are stripped and not blank.
    """
    count = len(words)
    if not WORDS_AT_LEAST <= count <= WORDS_AT_MOST:
        return "gopher_word_count"
    if not WORD_LENGTH_AT_LEAST <= sum(map(len, words)) / count <= WORD_LENGTH_AT_MOST:
        return "gopher_mean_word_length"

    ellipses = sum(map(text.count, ELLIPSES))
    if max(text.count("#"), ellipses) / count > SYMBOLS_PER_WORD:
        return "gopher_symbol_ratio"
    if share_of_lines(lines, (line.startswith(BULLETS) for line in lines)) > BULLET_LINES:
        return "gopher_bullet_lines"
    if share_of_lines(lines, (line.endswith(ELLIPSES) for line in lines)) > ELLIPSIS_LINES:
        return "gopher_ellipsis_lines"

    if sum(map(has_letter, words)) / count < ALPHABETIC_WORDS:
        return "gopher_alphabetic_words"
    if count_stop_words(words) < STOP_WORDS_AT_LEAST:
        return "gopher_stop_words"
    return ""


def share_of_lines(lines: list[str], flags: Iterable[bool]) -> float:
    """Return the share of the lines whose flag is set."""
    return sum(flags) / len(lines)


def has_letter(word: str) -> bool:
    """Return whether a word has at least one alphabetic character."""
    return word.isalpha() or any(map(str.isalpha, word))


def count_stop_words(words: list[str]) -> int:
    """Return how many of the stop words a text has, each counted once."""
    present: set[str] = set()
    for word in words:
        plain = word.strip(EDGE_PUNCTUATION).lower()
        if plain in STOP_WORDS:
            present.add(plain)
            # Two are enough: most texts end here after a few words.
            if len(present) >= STOP_WORDS_AT_LEAST:
                break
    return len(present)
