"""Find documents that share text with the evaluation text.

As in GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C) they share an n-gram of 13 words in
lower case and without punctuation. An evaluation document of 8 to 12 words is looked for as a
whole; a shorter one is not. GPT-3 cut the n-gram and 200 characters around it out; here the whole
document goes.
"""

from collections.abc import Iterable

import numpy as np

from jaxlm.data.documents import Document
from jaxlm.data.rules.words import hash_ngrams, hash_words, split_plain_words

NGRAM_WORDS, SHORTEST_WORDS = 13, 8
BUFFER = 1 << 22  # hashes that wait to be sorted in


class EvaluationNgrams:
    """The hashes of the evaluation text's n-grams, by their length in words; 8 bytes for each.

    Two of M hashes and T n-grams of a corpus are equal by chance with a probability of about
    M T / 2**64.
    """

    def __init__(self, documents: Iterable[Document]):
        self.hashes: dict[int, np.ndarray] = {}  # sorted
        waiting: dict[int, list[np.ndarray]] = {}
        waiting_count = 0
        for document in documents:
            for text in document.texts:
                hashes = hash_words(split_plain_words(text))
                length = min(len(hashes), NGRAM_WORDS)
                if length >= SHORTEST_WORDS:
                    ngrams = hash_ngrams(hashes, length)
                    waiting.setdefault(length, []).append(ngrams)
                    waiting_count += len(ngrams)

            if waiting_count > BUFFER:
                self.sort_in(waiting)
                waiting, waiting_count = {}, 0
        self.sort_in(waiting)

    def sort_in(self, waiting: dict[int, list[np.ndarray]]) -> None:
        """Add hashes to the sorted ones."""
        for length, arrays in waiting.items():
            known = self.hashes.get(length, np.zeros(0, np.uint64))
            self.hashes[length] = np.unique(np.concatenate([known, *arrays]))

    @property
    def count(self) -> int:
        """The number of different n-grams."""
        return sum(map(len, self.hashes.values()))

    def share_with(self, text: str) -> bool:
        """Return whether a text has one of the n-grams."""
        words = split_plain_words(text)
        if len(words) < min(self.hashes, default=NGRAM_WORDS):
            return False

        hashes = hash_words(words)
        for length, known in self.hashes.items():
            ngrams = hash_ngrams(hashes, length)
            places = np.minimum(np.searchsorted(known, ngrams), len(known) - 1)
            if np.any(known[places] == ngrams):
                return True
        return False
