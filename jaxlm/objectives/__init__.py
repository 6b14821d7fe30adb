"""Objectives: (windows of tokens, sample numbers, seed) -> `Batch`. Pure numpy; random choices come from `counter`."""

from collections.abc import Callable

import numpy as np

from jaxlm.objectives.causal import causal
from jaxlm.types import Batch

Objective = Callable[[np.ndarray, np.ndarray, int], Batch]

OBJECTIVES: dict[str, Objective] = {"causal": causal}

__all__ = ["OBJECTIVES", "Objective", "causal"]
