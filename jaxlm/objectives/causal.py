"""Causal language modelling: each position predicts the next token."""

import numpy as np

from jaxlm.config import ObjectiveConfig
from jaxlm.objectives import layout
from jaxlm.objectives.objective import Objective, PackedRows, Pieces, Vocabulary
from jaxlm.types import Batch


def build(config: ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary) -> Objective:
    """Build the objective for windows of L + 1 tokens, L apart, or documents in rows of L.

    Neighbouring windows share one token, so that every token but the first is a target. In rows
    every token is a target: the first of a document follows an end_of_text, as in windows and in
    generation, and the first of a part follows the token before it. So no position is spent on an
    end_of_text that predicts nothing.
    """
    del config

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        del samples, seed
        tokens, targets = shift_targets(windows)
        return Batch(tokens=tokens, targets=targets, weights=np.ones(targets.shape, np.float32))

    def make_packed_batch(pieces: Pieces, samples: np.ndarray, seed: int) -> Batch:
        del samples, seed
        place = layout.Placement(pieces.rows, pieces.lengths, (pieces.count, sequence_length))
        padding = layout.padding_token(vocabulary)
        return Batch(
            tokens=place.fill(pieces.previous, padding),
            segments=place.segments,
            positions=place.positions,
            targets=place.fill(pieces.tokens, padding),
            weights=(place.segments > 0).astype(np.float32),
        )

    return Objective(
        window=sequence_length + 1,
        stride=sequence_length,
        length=sequence_length,
        source_length=0,
        predictions=sequence_length,
        make_batch=make_batch,
        random=False,
        packed=PackedRows(
            capacity=sequence_length,
            part=sequence_length,
            sizes=np.arange(sequence_length + 1),
            make_batch=make_packed_batch,
        ),
    )


def shift_targets(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens and targets, both [B, L], of windows [B, L + 1]."""
    return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])
