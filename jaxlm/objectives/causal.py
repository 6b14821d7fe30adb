"""Causal language modelling: each position predicts the next token."""

import numpy as np

from jaxlm import config
from jaxlm.objectives.objective import Objective, Vocabulary
from jaxlm.types import Batch


def build(
    settings: config.ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary
) -> Objective:
    """Windows of L + 1 tokens, L apart: neighbours share one token, so that every token but the first is a target."""
    del settings, vocabulary

    def make(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        del samples, seed
        tokens, targets = next_token(windows)
        return Batch(tokens=tokens, targets=targets, weights=np.ones(targets.shape, np.float32))

    return Objective(
        sequence_length + 1,
        sequence_length,
        sequence_length,
        0,
        sequence_length,
        make,
        random=False,
    )


def next_token(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[B, L + 1] -> tokens and targets, both [B, L]."""
    return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])
