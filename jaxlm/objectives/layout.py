"""Lay out text in a sample: between begin and end, or shifted for a decoder."""

from functools import cached_property

import numpy as np

from jaxlm.config import ConfigError, ObjectiveConfig
from jaxlm.objectives.objective import PackedRows, Pieces, Vocabulary
from jaxlm.types import Batch


def framed_window(sequence_length: int, vocabulary: Vocabulary) -> int:
    """Return how many tokens of text a sample of `sequence_length` has room for.

    Raises `ConfigError` at `data.sequence_length` if there are none.
    """
    window = sequence_length - 2 * (vocabulary.begin_of_text is not None)
    if window < 1:
        raise ConfigError(
            "data.sequence_length",
            f"{sequence_length} leaves no room for text between begin and end",
        )
    return window


def add_frame(text: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Put text [B, W] between begin_of_text and end_of_text, [B, W + 2].

    Without a begin_of_text in the vocabulary the text stays as it is.
    """
    if vocabulary.begin_of_text is None:
        return np.ascontiguousarray(text)
    ends = (vocabulary.begin_of_text, vocabulary.end_of_text)
    return np.pad(text, ((0, 0), (1, 1)), constant_values=((0, 0), ends))


def add_frame_padded(
    text: np.ndarray, lengths: np.ndarray, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Put the first `lengths` [B] tokens of padded text between begin and end.

    Returns the rows [B, W + 2], padded again, and the new lengths. Without a begin_of_text in the
    vocabulary both stay as they are.
    """
    if vocabulary.begin_of_text is None:
        return text, lengths
    assert vocabulary.pad is not None

    ends = (vocabulary.begin_of_text, vocabulary.pad)
    rows = np.pad(text, ((0, 0), (1, 1)), constant_values=((0, 0), ends))
    rows[np.arange(len(rows)), lengths + 1] = vocabulary.end_of_text
    return rows, lengths + 2


def append_end(text: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Append end_of_text to text [B, W], [B, W + 1]."""
    return np.pad(text, ((0, 0), (0, 1)), constant_values=vocabulary.end_of_text)


def shift_right(targets: np.ndarray, config: ObjectiveConfig, vocabulary: Vocabulary) -> np.ndarray:
    """Return the tokens [B, T] that a decoder reads to write `targets` [B, T].

    These are the start token and all targets but the last.
    """
    start = start_token(config, vocabulary)
    return np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=start)


def start_token(config: ObjectiveConfig, vocabulary: Vocabulary) -> int:
    """Return the first input of a decoder."""
    start = vocabulary.pad if config.start == "pad" else vocabulary.end_of_text
    assert start is not None
    return start


# Documents side by side in rows


class Placement:
    """Pieces of different sizes in rows: from the left, without gaps, in their order.

    Each piece is a segment of its row, numbered from 1; 0 is the padding after the last.
    """

    def __init__(self, rows: np.ndarray, sizes: np.ndarray, shape: tuple[int, int]):
        """Place pieces of `sizes` (int64 [P]) in `rows` (int64 [P], ascending) of a [B, W] array.

        Raises IndexError if a row is too narrow for its pieces.
        """
        self.rows, self.sizes, self.shape = rows, sizes, shape
        self.numbers = segment_numbers(rows)
        before = np.cumsum(sizes) - sizes
        columns = before - before[np.arange(len(rows)) - self.numbers + 1]
        if (columns + sizes > shape[1]).any():
            raise IndexError(f"pieces of a row exceed its {shape[1]} columns")
        self.starts = rows * shape[1] + columns  # of the flat array

    @cached_property
    def offsets(self) -> np.ndarray:
        """Return the place within its piece of each element; int64 [N]."""
        return ragged_range(self.sizes)

    @cached_property
    def cells(self) -> np.ndarray:
        """Return the place in the flat array of each element; int64 [N]."""
        return np.repeat(self.starts, self.sizes) + self.offsets

    def fill(self, values: np.ndarray, padding: int = 0) -> np.ndarray:
        """Return an int32 [B, W] array with the elements of all pieces (int [N]) in their places.

        `padding` stands after the last piece of each row.
        """
        array = np.full(self.shape, padding, np.int32)
        array.reshape(-1)[self.cells] = values
        return array

    @cached_property
    def segments(self) -> np.ndarray:
        """Return the number of each cell's piece in its row, int32 [B, W]; 0: padding."""
        return self.fill(np.repeat(self.numbers, self.sizes))

    @cached_property
    def positions(self) -> np.ndarray:
        """Return the position of each cell in its piece, int32 [B, W]; 0 in the padding."""
        return self.fill(self.offsets)


def segment_numbers(rows: np.ndarray) -> np.ndarray:
    """Return the number of each piece in its row, from 1 on; int64 [P]. `rows` ascend."""
    is_first = np.diff(rows, prepend=-1) != 0
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(rows)), 0))
    return np.arange(len(rows)) - first + 1


def append_ends(text: np.ndarray, lengths: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Append end_of_text to each piece of `text`; `lengths` (int64 [P]) count it. int32 [N]."""
    ended = np.full(int(lengths.sum()), vocabulary.end_of_text, np.int32)
    is_text = np.ones(len(ended), bool)
    is_text[np.cumsum(lengths) - 1] = False
    ended[is_text] = text
    return ended


def shift_pieces(
    targets: np.ndarray, lengths: np.ndarray, config: ObjectiveConfig, vocabulary: Vocabulary
) -> np.ndarray:
    """Return what a decoder reads to write the pieces `targets`: `shift_right` of each; [N]."""
    tokens = np.roll(targets, 1)
    tokens[np.cumsum(lengths) - lengths] = start_token(config, vocabulary)
    return tokens


def framed_sizes(width: int, vocabulary: Vocabulary) -> np.ndarray:
    """Return how many columns 0, 1, ... tokens of a document take, up to `width`; int64.

    A document has its end_of_text; a begin_of_text is added where the vocabulary has one.
    """
    if vocabulary.begin_of_text is None:
        return np.arange(width + 1)
    return np.concatenate([[0], np.arange(2, width + 1)])


def frame_pieces(pieces: Pieces, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of all pieces between begin and end, int32 [N], and their new lengths.

    A piece that ends with its document has its end_of_text. Without a begin_of_text in the
    vocabulary all stay as they are.
    """
    if vocabulary.begin_of_text is None:
        return pieces.tokens, pieces.lengths

    is_part = ~ends_document(pieces, vocabulary)
    lengths = pieces.lengths + 1 + is_part
    ends = np.cumsum(lengths)
    framed = np.full(ends[-1] if len(ends) else 0, vocabulary.end_of_text, np.int32)
    framed[ends - lengths] = vocabulary.begin_of_text
    framed[np.repeat(ends - lengths + 1, pieces.lengths) + ragged_range(pieces.lengths)] = (
        pieces.tokens
    )
    return framed, lengths


def ends_document(pieces: Pieces, vocabulary: Vocabulary) -> np.ndarray:
    """Return which pieces end with the end_of_text of their document; bool [P]."""
    return pieces.tokens[np.cumsum(pieces.lengths) - 1] == vocabulary.end_of_text


def unshared(packed: PackedRows) -> PackedRows:
    """Return the layout of one document per row: its batches have lengths in place of segments."""

    def make_batch(pieces: Pieces, samples: np.ndarray, seed: int) -> Batch:
        batch = packed.make_batch(pieces, samples, seed)
        batch = batch._replace(lengths=count_cells(batch.segments), segments=None, positions=None)
        if batch.source is None:
            return batch
        return batch._replace(
            source_lengths=count_cells(batch.source_segments),
            source_segments=None,
            source_positions=None,
        )

    return packed._replace(make_batch=make_batch)


def count_cells(segments: np.ndarray | None) -> np.ndarray:
    """Return how many cells of each row are no padding; int32 [B]."""
    assert segments is not None, "rows of documents have segments"
    return np.count_nonzero(segments, axis=1).astype(np.int32)


def ragged_range(lengths: np.ndarray) -> np.ndarray:
    """Return 0, ..., lengths[0] - 1, 0, ..., lengths[1] - 1 and so on; int64."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def padding_token(vocabulary: Vocabulary) -> int:
    """Return the token that stands in the padding, where nothing reads it."""
    return vocabulary.end_of_text if vocabulary.pad is None else vocabulary.pad
