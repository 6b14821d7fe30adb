"""What an objective is, and what it knows of the tokenizer."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxlm.types import Batch


class Vocabulary(NamedTuple):
    """The ids that objectives use. A special token that the tokenizer lacks is None; the config sees to it that none is missing."""

    size: int  # ids run from 0 to size - 1
    end_of_text: int
    special: np.ndarray  # bool [V]: no text
    begin_of_text: int | None = None
    pad: int | None = None
    mask: int | None = None
    sentinels: np.ndarray = np.zeros(0, np.int32)  # int32: in the order in which spans use them
    # A token goes on with the word of the token before it where `first` of the one equals `last` of the other.
    first: np.ndarray = np.zeros(0, np.int8)  # int8 [V]
    last: np.ndarray = np.zeros(0, np.int8)  # int8 [V]
    ends_sentence: np.ndarray = np.zeros(0, bool)  # bool [V]


class Objective(NamedTuple):
    """How samples are cut from the text and become batches."""

    window: int  # tokens that a sample takes from the text
    stride: int  # tokens from the beginning of a window to that of the next
    length: int  # L of `Batch.tokens`
    source_length: int  # S of `Batch.source`; 0: none
    predictions: int  # targets of a sample at most: M of `Batch.predict` where there is one, else L
    make: Callable[
        [np.ndarray, np.ndarray, int], Batch
    ]  # int32 [B, window], sample numbers int64 [B], seed -> [B, ...]
    random: bool = True  # another sample number gives another batch; if not, all tokens are targets that can be

    @property
    def tokens(self) -> int:
        """Positions that the model reads per sample, both stacks together."""
        return self.length + self.source_length
