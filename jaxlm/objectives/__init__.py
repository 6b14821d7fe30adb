"""Objectives: (windows of tokens, sample numbers, seed) -> `Batch`. Pure numpy; random choices come from `counter`."""

import numpy as np

from jaxlm import config
from jaxlm.objectives import causal, infilling, masked, pairs, prefix, span
from jaxlm.objectives.objective import Objective, Vocabulary
from jaxlm.types import Batch

BUILDERS = {
    "causal": causal.build,
    "prefix": prefix.build,
    "masked": masked.build,
    "span": span.build,
    "infilling": infilling.build,
    "pairs": pairs.build,
}


def build(
    settings: config.ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary
) -> Objective:
    """The objective that the settings name; `ConfigError` at the key that can't be used with such samples or such a vocabulary."""
    return BUILDERS[settings.kind](settings, sequence_length, vocabulary)


def example(settings: config.ObjectiveConfig, sequence_length: int, sentinels: int) -> Batch:
    """The batch of one sample of meaningless text: its fields and their shapes, known before there is a tokenizer. Errors as `build`."""
    special = np.arange(sentinels + 4) < sentinels + 3
    vocabulary = Vocabulary(
        size=len(special),
        end_of_text=0,
        special=special,
        pad=1,
        mask=2,
        sentinels=np.arange(3, sentinels + 3, dtype=np.int32),
        first=np.zeros(len(special), np.int8),
        last=np.zeros(len(special), np.int8),
        ends_sentence=np.zeros(len(special), bool),
    )
    made = build(settings, sequence_length, vocabulary)
    text = np.full((1, made.window), len(special) - 1, np.int32)
    return made.make(text, np.zeros(1, np.int64), 0)


__all__ = ["Objective", "Vocabulary", "build", "example"]
