"""Batches of random text, cut by a config's own objective, for runs without a tokenizer."""

import numpy as np

from jaxlm import config, flops, objectives
from jaxlm.types import Batch


def vocabulary(run_config: config.Config) -> objectives.Vocabulary:
    """Return a vocabulary of the model's size whose first ids are the special tokens."""
    size, sentinels = run_config.model.vocabulary_size, run_config.tokenizer.sentinels
    first_text = first_text_id(run_config)
    return objectives.Vocabulary(
        size=size,
        end_of_text=0,
        special=np.arange(size) < first_text,
        begin_of_text=1,
        pad=2,
        mask=3,
        sentinels=np.arange(first_text - sentinels, first_text, dtype=np.int32),
        first_class=np.zeros(size, np.int8),
        last_class=np.zeros(size, np.int8),
        ends_sentence=np.zeros(size, bool),
    )


def first_text_id(run_config: config.Config) -> int:
    """Return the number of special tokens, which have the first ids."""
    return 4 + run_config.tokenizer.sentinels


def objective(run_config: config.Config) -> objectives.Objective:
    """Return the config's objective over that vocabulary."""
    length = run_config.data.sequence_length
    return objectives.build(run_config.objective, length, vocabulary(run_config))


def step_flops(run_config: config.Config) -> int:
    """Return the FLOPs of the matrix products of one training step."""
    built = objective(run_config)
    sizes = built.length, built.source_length, built.predictions
    return run_config.training.batch_size * flops.training_flops(run_config.model, *sizes)


def batch(run_config: config.Config, number: int) -> Batch:
    """Return batch `number` of independent tokens, in which the n-th has a share of 1 / n.

    A model learns these frequencies within a few dozen steps, so a loss curve over them falls.
    """
    built = objective(run_config)
    rows = run_config.training.batch_size
    first = first_text_id(run_config)
    count = run_config.model.vocabulary_size - first

    random = np.random.default_rng(number)
    cumulative = np.cumsum(1 / np.arange(1, count + 1))
    drawn = np.searchsorted(cumulative, random.random((rows, built.window)) * cumulative[-1])
    windows = (first + np.minimum(drawn, count - 1)).astype(np.int32)
    return built.make_batch(
        windows, np.arange(rows, dtype=np.int64) + rows * number, run_config.seed
    )
