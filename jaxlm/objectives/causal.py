"""Causal language modelling: each position predicts the next token."""

import numpy as np

from jaxlm.types import Batch


def causal(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
    """int32 [B, L + 1] windows of tokens -> `Batch` of tokens, targets and weights [B, L]. Draws no random numbers."""
    del samples, seed
    tokens, targets = windows[:, :-1], windows[:, 1:]
    return Batch(tokens=tokens, targets=targets, weights=np.ones(targets.shape, np.float32))
