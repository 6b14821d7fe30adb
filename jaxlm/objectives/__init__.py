"""Objectives map (windows of tokens, sample numbers, seed) to a `Batch`.

They are pure numpy. All random choices come from `counter_rng`.
"""

import numpy as np

from jaxlm.config import ConfigError, ObjectiveConfig
from jaxlm.objectives import (
    causal,
    denoisers,
    fill_in_the_middle,
    infilling,
    layout,
    masked,
    objective_mixture,
    pairs,
    prefix,
    replaced_tokens,
    span,
)
from jaxlm.objectives.objective import Objective, PackedRows, Pieces, Vocabulary
from jaxlm.types import Batch

BUILDERS = {
    "causal": causal.build,
    "prefix": prefix.build,
    "fill_in_the_middle": fill_in_the_middle.build,
    "masked": masked.build,
    "replaced_tokens": replaced_tokens.build,
    "span": span.build,
    "infilling": infilling.build,
    "pairs": pairs.build,
}


def build(config: ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary) -> Objective:
    """Build the objective that the config names.

    Raises `ConfigError` at the key that can't be used with such samples or such a vocabulary.
    """
    if len(config.mixed) > 1 or config.parts:
        return objective_mixture.build(config, sequence_length, vocabulary, build)

    plain = BUILDERS[config.kind]
    if config.denoiser is not None:
        return denoisers.build_marked(config, sequence_length, vocabulary, plain)
    return plain(config, sequence_length, vocabulary)


def packed_rows(objective: Objective, sequences: str) -> PackedRows | None:
    """Return how documents are laid out in rows; None for `data.sequences="windows"`.

    Raises `ConfigError` at `data.sequences` where the objective has no such rows.
    """
    if sequences == "windows":
        return None
    if objective.packed is None:
        reason = f"{sequences!r} does not exist for this objective.kind: use 'windows'"
        raise ConfigError("data.sequences", reason)
    if sequences == "packed":
        return objective.packed
    return layout.unshared(objective.packed)


def example(
    config: ObjectiveConfig, sequence_length: int, sentinels: int, sequences: str = "windows"
) -> Batch:
    """Return the batch of one sample of meaningless text, with the errors of `build`.

    It shows the fields of a batch and their shapes before there is a tokenizer.
    """
    special = np.arange(sentinels + 10) < sentinels + 9
    vocabulary = Vocabulary(
        size=len(special),
        end_of_text=0,
        special=special,
        pad=1,
        mask=2,
        sentinels=np.arange(9, sentinels + 9, dtype=np.int32),
        fim_prefix=3,
        fim_middle=4,
        fim_suffix=5,
        denoiser_r=6,
        denoiser_s=7,
        denoiser_x=8,
        first_class=np.zeros(len(special), np.int8),
        last_class=np.zeros(len(special), np.int8),
        ends_sentence=np.zeros(len(special), bool),
    )
    objective = build(config, sequence_length, vocabulary)

    packed = packed_rows(objective, sequences)
    if packed is not None:
        text = np.full(packed.part, len(special) - 1, np.int32)
        row = Pieces(text, text, lengths=np.array([len(text)]), rows=np.zeros(1, int), count=1)
        return packed.make_batch(row, np.zeros(1, np.int64), 0)

    text = np.full((1, objective.window), len(special) - 1, np.int32)
    return objective.make_batch(text, np.zeros(1, np.int64), 0)


__all__ = ["Objective", "Vocabulary", "build", "example", "packed_rows"]
