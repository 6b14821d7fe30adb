"""Source-target pairs, the task of the original Transformer (arXiv 1706.03762): a target is written from its source."""

import numpy as np

from jaxlm import config
from jaxlm.objectives import layout
from jaxlm.objectives.objective import Objective, Vocabulary
from jaxlm.types import Batch


def build(
    settings: config.ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary
) -> Objective:
    """Windows are rows of a table: S columns of source, then T of target, each with its end_of_text and then padding.

    Batches have source [B, S], source_lengths [B], and tokens, targets, weights [B, T].
    """
    target_length = settings.target_length or sequence_length

    def make(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        del samples, seed
        source, targets = (
            np.ascontiguousarray(windows[:, :sequence_length]),
            np.ascontiguousarray(windows[:, sequence_length:]),
        )
        written = np.arange(target_length) < lengths(targets, vocabulary)[:, None]
        return Batch(
            tokens=layout.shifted(targets, settings, vocabulary),
            source=source,
            source_lengths=lengths(source, vocabulary),
            targets=targets,
            weights=written.astype(np.float32),
        )

    return Objective(
        sequence_length + target_length,
        1,
        target_length,
        sequence_length,
        target_length,
        make,
        random=False,
    )


def lengths(rows: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """int32 [B]: tokens up to the first end_of_text, which counts; all where a text was cut and has none.

    By the end, not by the padding: the two may be the same token.
    """
    ends = rows == vocabulary.end_of_text
    return np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, rows.shape[1]).astype(np.int32)
