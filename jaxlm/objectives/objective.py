"""The type of an objective, and the tokenizer as an objective sees it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.config import ObjectiveConfig
from jaxlm.types import Batch


class Frame(NamedTuple):
    """The ids around one or two texts, and the type of each."""

    ids: tuple[int, ...]  # TEXT and SECOND_TEXT stand for the texts
    types: tuple[int, ...]

    @property
    def added(self) -> int:
        """Return the number of tokens beside the texts."""
        return sum(number >= 0 for number in self.ids)


TEXT, SECOND_TEXT = -1, -2


class Vocabulary(NamedTuple):
    """The ids that objectives use.

    A special token that the tokenizer lacks is None; the config makes sure that no objective needs
    one that is missing.
    """

    size: int  # ids run from 0 to size - 1
    end_of_text: int
    special: np.ndarray  # bool [V]: no text
    begin_of_text: int | None = None
    pad: int | None = None
    mask: int | None = None
    sentinels: np.ndarray = np.zeros(0, np.int32)  # int32, in the order in which spans use them
    fim_prefix: int | None = None
    fim_middle: int | None = None
    fim_suffix: int | None = None
    denoiser_r: int | None = None
    denoiser_s: int | None = None
    denoiser_x: int | None = None
    # A token continues the word of the previous token where its `first_class` equals the
    # `last_class` of that token.
    first_class: np.ndarray = np.zeros(0, np.int8)  # int8 [V]
    last_class: np.ndarray = np.zeros(0, np.int8)  # int8 [V]
    ends_sentence: np.ndarray = np.zeros(0, bool)  # bool [V]
    # What the tokenizer itself puts around a text, and a pair of texts. None: nothing
    text_frame: Frame | None = None
    pair_frame: Frame | None = None


class Pieces(NamedTuple):
    """Whole documents, and parts of those longer than a row, one after another by rows.

    The pieces of a row come from the same or other places of the text, in any order.
    """

    tokens: np.ndarray  # int32 [N], of all pieces
    # int32 [N]: the token before each in the text. Before a document it is the end_of_text of
    # another one
    previous: np.ndarray
    lengths: np.ndarray  # int64 [P], tokens of each piece
    rows: np.ndarray  # int64 [P], ascending: the row of each piece
    count: int  # rows


class PackedRows(NamedTuple):
    """How documents are laid out in rows, several in each.

    A document with an entry in `sizes` stays whole. Of a longer one parts of `part` tokens are cut
    off, which fill a row each, until the rest has one.
    """

    capacity: int  # of a row, in the unit of `sizes`
    part: int  # tokens
    # int64 [n + 1]: how much of a row 0, 1, ..., n tokens take; 0: they are left out
    sizes: np.ndarray
    # (pieces, sample numbers int64 [B], seed) -> [B, ...], with segments from 1 on, 0 for padding
    make_batch: Callable[[Pieces, np.ndarray, int], Batch]


class ExampleLayout(NamedTuple):
    """How the parts of an example, such as its texts, become the window of a sample."""

    # lengths of the parts of examples, int64 [n, parts] -> positions that each takes, int64 [n],
    # 0 where it is left out; whether it is cut, bool [n]
    measure: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    # (window of zeros, int32 [window], parts of one example, int32 each): lays out the parts
    fill: Callable[[np.ndarray, Sequence[np.ndarray]], None]
    # text, int32 [n] -> the parts of an example of it, where no records are read
    parts_of: Callable[[np.ndarray], list[np.ndarray]]
    # (windows int32 [E, window], their rows int64 [E], ascending, number of rows B) -> a batch of
    # several examples in each row. None: examples can't share a row
    pack: Callable[[np.ndarray, np.ndarray, int], Batch] | None = None


class Objective(NamedTuple):
    """How samples are cut from the text and become batches."""

    window: int  # tokens that a sample takes from the text
    stride: int  # tokens from the start of a window to the start of the next
    length: int  # L of `Batch.tokens`
    source_length: int  # S of `Batch.source`; 0: none
    predictions: int  # most targets of a sample: M of `Batch.predict` where there is one, else L
    # (windows int32 [B, window], sample numbers int64 [B], seed) -> [B, ...]
    make_batch: Callable[[np.ndarray, np.ndarray, int], Batch]
    # True: another sample number gives another batch. False: every token that can be is a target.
    random: bool = True
    packed: PackedRows | None = None  # None: documents can't share a row
    examples: ExampleLayout | None = None  # None: samples are cut from running text, or pairs

    @property
    def tokens(self) -> int:
        """Positions that the model reads per sample, both stacks together."""
        return self.length + self.source_length


# (config, sequence length, vocabulary) -> objective
BuildObjective = Callable[[ObjectiveConfig, int, Vocabulary], Objective]
