"""Prefix language modelling: the next token after a prefix that sees itself in both directions (T5, arXiv 1910.10683, section 3.2.3)."""

import numpy as np

from jaxlm import config, counter_rng
from jaxlm.config import ConfigError
from jaxlm.objectives import random_ops
from jaxlm.objectives.causal import next_token
from jaxlm.objectives.objective import Objective, Vocabulary
from jaxlm.types import Batch


def build(
    settings: config.ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary
) -> Objective:
    """Windows of L + 1 tokens, L apart; the prefix is uniform in 1, ..., L - 1 tokens long.

    Batches have tokens, targets, weights [B, L] and prefix_lengths [B]. The last token of the prefix predicts the first behind it.
    `ConfigError` at `data.sequence_length` if there is no such prefix.
    """
    del settings, vocabulary
    if sequence_length < 2:
        raise ConfigError(
            "data.sequence_length",
            f"{sequence_length} is too short for a prefix and what follows it",
        )

    def make(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        tokens, targets = next_token(windows)
        prefix = 1 + random_ops.below(
            counter_rng.random_bits(seed, samples, counter_rng.PREFIX, 0), sequence_length - 1
        )
        behind = (
            np.arange(1, sequence_length + 1) >= prefix[:, None]
        )  # targets[:, i] is token i + 1 of the window
        return Batch(
            tokens=tokens,
            prefix_lengths=prefix.astype(np.int32),
            targets=targets,
            weights=behind.astype(np.float32),
        )

    return Objective(
        sequence_length + 1, sequence_length, sequence_length, 0, sequence_length, make
    )
