"""Pairs on disk: documents in turn sources and targets, read as the rows of a table."""

from pathlib import Path

import numpy as np

from jaxlm.config.errors import UserError
from jaxlm.data.shards import TokenArray
from jaxlm.objectives import Objective, Vocabulary


class PairArray:
    """The pairs of a source, by number. Beside the tokens, 16 bytes a pair are kept in memory: where its two texts begin."""

    def __init__(self, tokens: TokenArray, offsets: Path, pairs: int, vocabulary: Vocabulary):
        """`tokens` hold 2 * `pairs` documents that begin at the `offsets` (as a `TokenWriter` leaves them).

        `ValueError` if the vocabulary has no pad token, `UserError` if the offsets are missing or damaged.
        """
        if vocabulary.pad is None:
            raise ValueError("pairs are padded: the tokenizer needs a pad token")
        self.tokens, self.pad, self.end_of_text = tokens, vocabulary.pad, vocabulary.end_of_text
        self.offsets = read_offsets(offsets, 2 * pairs + 1, len(tokens))

    def __len__(self) -> int:
        return len(self.offsets) // 2

    def places(self, objective: Objective) -> int:
        """Where a sample can begin: at each pair."""
        del objective
        return len(self)

    def read(self, starts: np.ndarray, objective: Objective) -> np.ndarray:
        """int32 [n, S + T]: the pairs `starts` (int64 [n]), S = `objective.source_length` columns of source, T = `length` of target.

        Each text ends with the end of text, also one that was cut to fit; behind it is padding.
        """
        return np.concatenate(
            [
                self.texts(2 * starts, objective.source_length),
                self.texts(2 * starts + 1, objective.length),
            ],
            axis=1,
        )

    def texts(self, documents: np.ndarray, width: int) -> np.ndarray:
        """int32 [n, width]: documents (int64 [n]), cut or padded."""
        begins, ends = self.offsets[documents], self.offsets[documents + 1]
        lengths = np.minimum(ends - begins, width)
        rows = np.full((len(documents), width), self.pad, self.tokens.dtype)
        for row, begin, length in zip(rows, begins.tolist(), lengths.tolist(), strict=True):
            self.tokens.read_into(row[:length].view(np.uint8).data, begin)
        rows[ends - begins > width, -1] = self.end_of_text
        return rows.astype(np.int32)


def read_offsets(path: Path, count: int, tokens: int) -> np.ndarray:
    """int64 [count]: where documents begin, and the end of the last, which is the number of tokens."""
    try:
        offsets = np.fromfile(path, "<i8")
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; delete the folder {path.parent} to have it built again"
        ) from error
    if len(offsets) != count or offsets[-1] != tokens:
        raise UserError(f"{path}: damaged; delete the folder {path.parent} to have it built again")
    return offsets
