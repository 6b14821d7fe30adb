"""Pseudo-log-likelihood: each token is hidden in turn and predicted from all others.

Salazar et al. 2020, arXiv 1910.14659.
"""

from typing import NamedTuple

import numpy as np

from jaxlm.evaluation.texts import TokenizedTexts
from jaxlm.objectives import Vocabulary
from jaxlm.types import Batch


class FramedTexts(NamedTuple):
    """Texts as an encoder reads them."""

    rows: np.ndarray  # int32 [n, L]: padded
    lengths: np.ndarray  # int32 [n]
    hidden: np.ndarray  # int64 [targets, 2]: row and column of each token that is to be hidden


def frame_texts(
    tokens: TokenizedTexts, context: int, vocabulary: Vocabulary, per_document: bool
) -> FramedTexts:
    """Cut texts into pieces of at most `context` tokens.

    Where the vocabulary has a begin_of_text, each piece is framed by it and end_of_text. Pieces are
    cut from all documents in a row, or from each on its own. Special tokens are never hidden.
    """
    begin, end = [], []
    if vocabulary.begin_of_text is not None:
        begin, end = [vocabulary.begin_of_text], [vocabulary.end_of_text]
    width = context - len(begin) - len(end)
    ends = tokens.ends.tolist() if per_document else [len(tokens)]
    texts = [tokens.ids[start:stop] for start, stop in zip([0, *ends], ends, strict=False)]
    pieces = [text[at : at + width] for text in texts for at in range(0, len(text), width)]

    pad = 0 if vocabulary.pad is None else vocabulary.pad
    rows = np.full((len(pieces), context), pad, np.int32)
    lengths = np.array([len(begin) + len(piece) + len(end) for piece in pieces], np.int32)
    for row, piece, length in zip(rows, pieces, lengths, strict=True):
        row[:length] = np.concatenate([begin, piece, end])

    ordinary = ~vocabulary.special[rows] & (np.arange(context) < lengths[:, None])
    return FramedTexts(rows, lengths, np.argwhere(ordinary))


class HiddenTokens:
    """Batches of rows with one hidden token each; there are as many rows as targets."""

    def __init__(self, texts: FramedTexts, mask: int, batch_size: int):
        self.texts, self.mask, self.batch_size = texts, mask, batch_size

    def __len__(self) -> int:
        return -(-len(self.texts.hidden) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        numbers = index * self.batch_size + np.arange(self.batch_size)
        row, column = self.texts.hidden[np.minimum(numbers, len(self.texts.hidden) - 1)].T
        tokens = self.texts.rows[row]
        targets = tokens[np.arange(len(row)), column]
        tokens[np.arange(len(row)), column] = self.mask
        return Batch(
            tokens=tokens,
            lengths=self.texts.lengths[row],
            predict=column[:, None].astype(np.int32),
            targets=targets[:, None],
            weights=(numbers < len(self.texts.hidden))[:, None].astype(np.float32),
        )
