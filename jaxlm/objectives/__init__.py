"""Objectives map (windows of tokens, sample numbers, seed) to a `Batch`.

They are pure numpy. All random choices come from `counter_rng`.
"""

import numpy as np

from jaxlm.config import ConfigError, ModelConfig, ObjectiveConfig
from jaxlm.objectives import (
    causal,
    classify,
    denoisers,
    fill_in_the_middle,
    infilling,
    instruction,
    layout,
    masked,
    objective_mixture,
    pairs,
    preference,
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


# Of examples, which depend on the model that they are for.
EXAMPLE_BUILDERS = {
    "instruction": instruction.build,
    "classify": classify.build,
    "preference": preference.build,
}


def build(
    config: ObjectiveConfig,
    sequence_length: int,
    vocabulary: Vocabulary,
    model: ModelConfig | None = None,
) -> Objective:
    """Build the objective that the config names. Objectives of examples need the `model`.

    Raises `ConfigError` at the key that can't be used with such samples or such a vocabulary.
    """
    if config.kind in EXAMPLE_BUILDERS:
        if model is None:
            raise ValueError(f"objective.kind={config.kind!r} depends on the model")
        return EXAMPLE_BUILDERS[config.kind](config, sequence_length, vocabulary, model)
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
    if objective.examples is not None and (
        sequences == "documents" or objective.examples.pack is not None
    ):
        return None  # examples have a way of their own
    if objective.packed is None:
        reason = f"{sequences!r} does not exist for this objective.kind: use 'windows'"
        raise ConfigError("data.sequences", reason)
    if sequences == "packed":
        return objective.packed
    return layout.unshared(objective.packed)


def example(
    config: ObjectiveConfig,
    sequence_length: int,
    sentinels: int,
    sequences: str = "windows",
    model: ModelConfig | None = None,
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
    objective = build(config, sequence_length, vocabulary, model)

    packed = packed_rows(objective, sequences)
    if packed is not None:
        text = np.full(packed.part, len(special) - 1, np.int32)
        row = Pieces(text, text, lengths=np.array([len(text)]), rows=np.zeros(1, int), count=1)
        return packed.make_batch(row, np.zeros(1, np.int64), 0)

    text = np.full((1, objective.window), len(special) - 1, np.int32)
    if objective.examples is not None:
        text = make_window(objective, text[0, :sequence_length])[None]
        if sequences == "packed" and objective.examples.pack is not None:
            return objective.examples.pack(text, np.zeros(1, np.int64), 1)
    return objective.make_batch(text, np.zeros(1, np.int64), 0)


def make_window(objective: Objective, text: np.ndarray) -> np.ndarray:
    """Return the window of an example that is made of a text (int32 [n]); int32 [window]."""
    assert objective.examples is not None, "an objective of examples"
    window = np.zeros(objective.window, np.int32)
    objective.examples.fill(window, objective.examples.parts_of(text))
    return window


__all__ = ["Objective", "Vocabulary", "build", "example", "make_window", "packed_rows"]
