"""Batches of random text, cut by a config's own objective, for runs without data.

They need no tokenizer and no store.
"""

from typing import Any

import numpy as np

from jaxlm import objectives
from jaxlm.config import Config, ConfigError
from jaxlm.objectives.objective import Pieces
from jaxlm.types import Batch

# Special tokens that an objective may use, beside the sentinels; they have the first ids.
SPECIAL = ("end_of_text", "begin_of_text", "pad", "mask")
SPECIAL += ("fim_prefix", "fim_middle", "fim_suffix", "denoiser_r", "denoiser_s", "denoiser_x")


def vocabulary(config: Config) -> objectives.Vocabulary:
    """Return a vocabulary of the model's size whose first ids are the special tokens.

    Raises ConfigError if it has no room for text beside them.
    """
    size, first_text = config.model.vocabulary_size, first_text_id(config)
    if size <= first_text:
        reason = f"{size} ids leave no room for text beside {first_text} special tokens"
        raise ConfigError("model.vocabulary_size", reason)
    sentinels = np.arange(first_text - config.tokenizer.sentinels, first_text, dtype=np.int32)
    roles: dict[str, Any] = {name: number for number, name in enumerate(SPECIAL)}
    return objectives.Vocabulary(
        size=size,
        special=np.arange(size) < first_text,
        sentinels=sentinels,
        first_class=np.zeros(size, np.int8),
        last_class=np.zeros(size, np.int8),
        ends_sentence=np.zeros(size, bool),
        **roles,
    )


def first_text_id(config: Config) -> int:
    """Return the number of special tokens, which have the first ids."""
    return len(SPECIAL) + config.tokenizer.sentinels


def objective(config: Config) -> objectives.Objective:
    """Return the config's objective over that vocabulary."""
    return objectives.build(
        config.objective, config.data.sequence_length, vocabulary(config), config.model
    )


def batch(config: Config, number: int) -> Batch:
    """Return batch `number` of independent tokens, in which the n-th has a share of 1 / n.

    A model learns these frequencies within a few dozen steps, so a loss curve over them falls.
    Where `data.sequences` lays whole documents out in rows, each row is one document.
    """
    built = objective(config)
    packed = objectives.packed_rows(built, config.data.sequences)
    rows = config.training.batch_size
    first = first_text_id(config)
    count = config.model.vocabulary_size - first

    random = np.random.default_rng(number)
    cumulative = np.cumsum(1 / np.arange(1, count + 1))
    columns = built.window if packed is None else packed.part
    if built.examples is not None:
        columns = config.data.sequence_length
    drawn = np.searchsorted(cumulative, random.random((rows, columns)) * cumulative[-1])
    windows = (first + np.minimum(drawn, count - 1)).astype(np.int32)

    samples = np.arange(rows, dtype=np.int64) + rows * number
    if built.examples is not None:
        windows = np.stack([objectives.make_window(built, text) for text in windows])
        if config.data.sequences == "packed" and built.examples.pack is not None:
            return built.examples.pack(windows, np.arange(rows), rows)
    if packed is None:
        return built.make_batch(windows, samples, config.seed)
    previous = np.concatenate([np.zeros((rows, 1), np.int32), windows[:, :-1]], axis=1)
    pieces = Pieces(
        tokens=windows.ravel(),
        previous=previous.ravel(),
        lengths=np.full(rows, columns),
        rows=np.arange(rows),
        count=rows,
    )
    return packed.make_batch(pieces, samples, config.seed)
