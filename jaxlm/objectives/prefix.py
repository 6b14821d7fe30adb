"""Prefix language modelling: predict the next token after a prefix that sees itself both ways.

T5 (arXiv 1910.10683, section 3.2.3).
"""

import numpy as np

from jaxlm import counter_rng
from jaxlm.config import ConfigError, ObjectiveConfig
from jaxlm.objectives import random_ops
from jaxlm.objectives.causal import shift_targets
from jaxlm.objectives.objective import Objective, Vocabulary
from jaxlm.types import Batch


def build(config: ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary) -> Objective:
    """Build the objective for windows of L + 1 tokens, L apart, with a random prefix.

    Its length is uniform in 1, ..., L - 1. Batches have tokens, targets, weights [B, L] and
    prefix_lengths [B]. The last token of the prefix predicts the first after it. Raises
    `ConfigError` at `data.sequence_length` if there is no such prefix.
    """
    del config, vocabulary
    if sequence_length < 2:
        raise ConfigError(
            "data.sequence_length",
            f"{sequence_length} is too short for a prefix and the text after it",
        )

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        tokens, targets = shift_targets(windows)
        bits = counter_rng.random_bits(seed, samples, counter_rng.PREFIX, 0)
        prefix = 1 + random_ops.integers_below(bits, sequence_length - 1)

        # targets[:, i] is token i + 1 of the window.
        is_after_prefix = np.arange(1, sequence_length + 1) >= prefix[:, None]
        return Batch(
            tokens=tokens,
            prefix_lengths=prefix.astype(np.int32),
            targets=targets,
            weights=is_after_prefix.astype(np.float32),
        )

    return Objective(
        window=sequence_length + 1,
        stride=sequence_length,
        length=sequence_length,
        source_length=0,
        predictions=sequence_length,
        make_batch=make_batch,
    )
