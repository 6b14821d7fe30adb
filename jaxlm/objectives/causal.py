"""Causal language modelling: each position predicts the next token."""

import numpy as np

from jaxlm.config import ObjectiveConfig
from jaxlm.objectives.objective import Objective, Vocabulary
from jaxlm.types import Batch


def build(config: ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary) -> Objective:
    """Build the objective for windows of L + 1 tokens, L apart.

    Neighbouring windows share one token, so that every token but the first is a target.
    """
    del config, vocabulary

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        del samples, seed
        tokens, targets = shift_targets(windows)
        return Batch(tokens=tokens, targets=targets, weights=np.ones(targets.shape, np.float32))

    return Objective(
        window=sequence_length + 1,
        stride=sequence_length,
        length=sequence_length,
        source_length=0,
        predictions=sequence_length,
        make_batch=make_batch,
        random=False,
    )


def shift_targets(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens and targets, both [B, L], of windows [B, L + 1]."""
    return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])
