"""The windows of an evaluation: every token but the first of each array is a target exactly once."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxlm.data.shards import TokenArray
from jaxlm.types import Batch


class EvaluationWindows:
    """A list of batches [batch_size, sequence_length] over each array in turn.

    The last window of an array and the last batch are padded: token 0, weight 0. All batches have the same shape.
    """

    def __init__(self, arrays: Sequence[TokenArray], sequence_length: int, batch_size: int):
        self.arrays, self.sequence_length, self.batch_size = tuple(arrays), sequence_length, batch_size
        counts = [-(-max(len(array) - 1, 0) // sequence_length) for array in arrays]
        self.ends = np.cumsum(counts, dtype=np.int64)  # windows up to and including each array

    def __len__(self) -> int:
        return -(-int(self.ends[-1]) // self.batch_size) if len(self.ends) else 0

    def __getitem__(self, index: int) -> Batch:
        """Batch `index`; tokens and targets int32, weights float32."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        windows = np.zeros((self.batch_size, self.sequence_length + 1), np.int32)
        weights = np.zeros((self.batch_size, self.sequence_length), np.float32)
        first = index * self.batch_size
        for row, number in enumerate(range(first, min(first + self.batch_size, int(self.ends[-1])))):
            tokens = self.window(number)
            windows[row, : len(tokens)] = tokens
            weights[row, : len(tokens) - 1] = 1
        return Batch(tokens=windows[:, :-1], targets=windows[:, 1:], weights=weights)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    def window(self, number: int) -> np.ndarray:
        """int32 [at most L + 1]: the tokens of one window."""
        which = int(np.searchsorted(self.ends, number, side="right"))
        start = (number - (int(self.ends[which - 1]) if which else 0)) * self.sequence_length
        array = self.arrays[which]
        return array.windows(np.array([start]), min(self.sequence_length + 1, len(array) - start))[0]
