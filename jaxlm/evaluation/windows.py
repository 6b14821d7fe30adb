"""Sliding windows: a decoder reads them so that each token but the first is a target once."""

import numpy as np

from jaxlm.evaluation.texts import TokenizedTexts
from jaxlm.types import Batch


class SlidingWindows:
    """Batches of windows of `context` tokens, `stride` apart; the same shape each time.

    The first window of a text scores all its targets, each further one its last `stride`. So with
    stride = context windows don't overlap, and with a smaller one every target but the first ones
    sees at least `context` - `stride` + 1 tokens. A text is all documents in a row, or each on its
    own. Where the last window and the last batch are not full, the weight is 0.
    """

    def __init__(
        self, tokens: TokenizedTexts, context: int, stride: int, batch_size: int, per_document: bool
    ):
        self.tokens, self.batch_size = tokens, batch_size
        self.context, self.stride = context, stride
        self.ends = tokens.ends if per_document else np.array([len(tokens)], np.int64)
        self.starts = np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])
        targets = self.ends - self.starts - 1
        counts = np.where(targets > 0, 1 + np.maximum(-(-(targets - context) // stride), 0), 0)
        self.last = np.cumsum(counts)  # windows up to and including each text
        self.windows = int(counts.sum())

    def __len__(self) -> int:
        return -(-self.windows // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        numbers = index * self.batch_size + np.arange(self.batch_size)
        inside = (numbers < self.windows)[:, None]
        numbers = np.minimum(numbers, self.windows - 1)
        which = np.searchsorted(self.last, numbers, side="right")
        place = numbers - np.concatenate([[0], self.last])[which]  # within the window's text

        columns = (self.starts[which] + place * self.stride)[:, None] + np.arange(self.context + 1)
        end = self.ends[which][:, None]
        row = np.minimum(columns, end - 1)
        ids, targets = self.tokens.ids[row], columns[:, 1:]

        new = (place == 0)[:, None] | (np.arange(self.context) >= self.context - self.stride)
        weights = inside & new & (targets < end) & self.tokens.scored[row[:, 1:]]
        return Batch(
            tokens=np.ascontiguousarray(ids[:, :-1]),
            targets=np.ascontiguousarray(ids[:, 1:]),
            weights=weights.astype(np.float32),
        )


def tokens_of_windows(windows: int, context: int, stride: int) -> int:
    """Return the tokens of a text that has this number of windows."""
    return context + (windows - 1) * stride + 1
