"""How text is laid out in a sample: inside its frame of begin and end, or shifted for a decoder."""

import numpy as np

from jaxlm import config
from jaxlm.config import ConfigError
from jaxlm.objectives.objective import Vocabulary


def framed_window(sequence_length: int, vocabulary: Vocabulary) -> int:
    """Tokens of text in a sample of `sequence_length`; `ConfigError` at `data.sequence_length` if there are none."""
    window = sequence_length - 2 * (vocabulary.begin_of_text is not None)
    if window < 1:
        raise ConfigError(
            "data.sequence_length",
            f"{sequence_length} leaves no room for text between begin and end",
        )
    return window


def framed(text: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """[B, W] -> [B, W + 2], between begin_of_text and end_of_text; `text` itself where the vocabulary has no begin."""
    if vocabulary.begin_of_text is None:
        return np.ascontiguousarray(text)
    frame = ((0, 0), (1, 1))
    return np.pad(
        text, frame, constant_values=((0, 0), (vocabulary.begin_of_text, vocabulary.end_of_text))
    )


def framed_padded(
    text: np.ndarray, lengths: np.ndarray, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """As `framed`, for rows of which only `lengths` [B] tokens are text and the rest is padding; with the new lengths."""
    if vocabulary.begin_of_text is None:
        return text, lengths
    assert vocabulary.pad is not None
    rows = np.pad(
        text, ((0, 0), (1, 1)), constant_values=((0, 0), (vocabulary.begin_of_text, vocabulary.pad))
    )
    rows[np.arange(len(rows)), lengths + 1] = vocabulary.end_of_text
    return rows, lengths + 2


def ended(text: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """[B, W] -> [B, W + 1], closed by end_of_text."""
    return np.pad(text, ((0, 0), (0, 1)), constant_values=vocabulary.end_of_text)


def shifted(
    targets: np.ndarray, settings: config.ObjectiveConfig, vocabulary: Vocabulary
) -> np.ndarray:
    """[B, T] -> [B, T]: what a decoder reads to write `targets`, the start token and all targets but the last."""
    start = vocabulary.pad if settings.start == "pad" else vocabulary.end_of_text
    assert start is not None
    return np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=start)
