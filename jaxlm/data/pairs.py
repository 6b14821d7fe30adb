"""Read pairs of texts from a store as the rows of a table.

The documents of a source of pairs are a source text, its target text, the next source text and so
on.
"""

from pathlib import Path

import numpy as np

from jaxlm.data.shards import TokenArray, read_offsets
from jaxlm.objectives import Objective, Vocabulary


class PairArray:
    """The pairs of a source, by number.

    Where their texts begin is read from a file that is mapped into memory.
    """

    def __init__(self, tokens: TokenArray, offsets: Path, pairs: int, vocabulary: Vocabulary):
        """Take the tokens of 2 * `pairs` documents that begin at `offsets` (of a `TokenWriter`).

        Raises `ValueError` if the vocabulary has no pad token, `UserError` if the offsets are
        missing or damaged.
        """
        if vocabulary.pad is None:
            raise ValueError("pairs are padded: the tokenizer needs a pad token")
        self.tokens, self.pad, self.end_of_text = tokens, vocabulary.pad, vocabulary.end_of_text
        self.offsets = read_offsets(offsets, count=2 * pairs + 1, tokens=len(tokens))

    def __len__(self) -> int:
        return len(self.offsets) // 2

    def start_count(self, objective: Objective) -> int:
        """Return the number of pairs: a sample starts at each."""
        del objective
        return len(self)

    def read_samples(self, starts: np.ndarray, objective: Objective) -> np.ndarray:
        """Return the pairs `starts` (int64 [n]); int32 [n, S + T].

        S = `objective.source_length` columns are the source, T = `objective.length` the target.
        Each text ends with end_of_text, also one that was cut to fit. Padding follows it.
        """
        sources = self.read_texts(2 * starts, objective.source_length)
        targets = self.read_texts(2 * starts + 1, objective.length)
        return np.concatenate([sources, targets], axis=1)

    def read_texts(self, documents: np.ndarray, width: int) -> np.ndarray:
        """Return documents by number (int64 [n]), cut or padded to `width`; int32 [n, width]."""
        begins, ends = self.offsets[documents], self.offsets[documents + 1]
        lengths = np.minimum(ends - begins, width)

        rows = np.full((len(documents), width), self.pad, self.tokens.dtype)
        for row, begin, length in zip(rows, begins.tolist(), lengths.tolist(), strict=True):
            self.tokens.read_into(row[:length].view(np.uint8).data, begin)

        rows[ends - begins > width, -1] = self.end_of_text
        return rows.astype(np.int32)
