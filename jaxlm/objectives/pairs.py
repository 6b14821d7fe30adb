"""Source-target pairs: write a target from its source.

This is the task of the original Transformer (arXiv 1706.03762).
"""

import numpy as np

from jaxlm.config import ObjectiveConfig
from jaxlm.objectives import layout
from jaxlm.objectives.objective import Objective, Vocabulary
from jaxlm.types import Batch


def build(config: ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary) -> Objective:
    """Build the objective for windows that are rows of a table.

    A row has S columns of source, then T of target, each text with its end_of_text and then
    padding. Batches have source [B, S], source_lengths [B], and tokens, targets, weights [B, T].
    """
    target_length = config.target_length or sequence_length

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        del samples, seed
        source = np.ascontiguousarray(windows[:, :sequence_length])
        targets = np.ascontiguousarray(windows[:, sequence_length:])
        is_text = np.arange(target_length) < text_lengths(targets, vocabulary)[:, None]
        return Batch(
            tokens=layout.shift_right(targets, config, vocabulary),
            source=source,
            source_lengths=text_lengths(source, vocabulary),
            targets=targets,
            weights=is_text.astype(np.float32),
        )

    return Objective(
        window=sequence_length + target_length,
        stride=1,
        length=target_length,
        source_length=sequence_length,
        predictions=target_length,
        make_batch=make_batch,
        random=False,
    )


def text_lengths(rows: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Return the tokens of each row up to and including the first end_of_text; int32 [B].

    A text that was cut and has no end counts as a whole row. The padding is not looked for: it may
    be the same token as the end.
    """
    ends = rows == vocabulary.end_of_text
    return np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, rows.shape[1]).astype(np.int32)
