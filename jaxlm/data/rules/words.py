"""Hash the words of a text, and the n-grams of these."""

import re
import zlib

import numpy as np

PUNCTUATION = re.compile(r"[^\w\s]|_")
FACTOR = np.uint64(0x9E37_79B9_7F4A_7C15)  # odd, so that multiplying loses nothing
SHIFT = np.uint64(29)


def split_plain_words(text: str) -> list[str]:
    """Return the words of a text in lower case and without punctuation."""
    return PUNCTUATION.sub("", text.lower()).split()


def hash_words(words: list[str]) -> np.ndarray:
    """Return a hash of each word, uint64 [n]; the same on every machine."""
    encoded = [word.encode() for word in words]
    return mix(np.fromiter(map(zlib.crc32, encoded), np.uint64, len(words)))


def hash_ngrams(hashes: np.ndarray, length: int) -> np.ndarray:
    """Return the hash of each n-gram of `length` words, uint64 [n - length + 1], given theirs."""
    count = max(len(hashes) - length + 1, 0)
    combined = np.zeros(count, np.uint64)
    for place in range(length):
        combined = mix(combined * FACTOR + hashes[place : place + count])
    return combined


def mix(values: np.ndarray) -> np.ndarray:
    """Return values whose every bit depends on those above and below it, uint64."""
    values = (values ^ (values >> SHIFT)) * FACTOR
    return values ^ (values >> SHIFT)
