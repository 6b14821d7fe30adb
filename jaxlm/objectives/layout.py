"""Lay out text in a sample: between begin and end, or shifted for a decoder."""

import numpy as np

from jaxlm.config import ConfigError, ObjectiveConfig
from jaxlm.objectives.objective import Vocabulary


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
    start = vocabulary.pad if config.start == "pad" else vocabulary.end_of_text
    assert start is not None
    return np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=start)
