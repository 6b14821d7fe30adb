"""A vocabulary and texts for the tests of objectives."""

from typing import Any

import numpy as np

from jaxlm import config, objectives
from jaxlm.objectives import Vocabulary

END, BEGIN, PAD, MASK, FIRST_SENTINEL, FIRST_ORDINARY, SIZE = 0, 1, 2, 3, 4, 104, 1000

VOCABULARY = Vocabulary(
    size=SIZE,
    end_of_text=END,
    special=np.arange(SIZE) < FIRST_ORDINARY,
    begin_of_text=None,
    pad=PAD,
    mask=MASK,
    sentinels=np.arange(FIRST_SENTINEL, FIRST_ORDINARY, dtype=np.int32),
    first=(np.arange(SIZE) % 2).astype(np.int8),
    last=(np.arange(SIZE) // 2 % 2).astype(np.int8),
    ends_sentence=np.arange(SIZE) % 10 == 9,
)
FRAMED = VOCABULARY._replace(begin_of_text=BEGIN)


def build(kind, length, vocabulary=VOCABULARY, **settings):
    return objectives.build(config.ObjectiveConfig(kind=kind, **settings), length, vocabulary)


def windows(objective, rows, ends=0.0, seed=0):
    """int32 [rows, window] of different ordinary tokens in each row, of which the share `ends` is replaced by end_of_text."""
    rng = np.random.default_rng(seed)
    drawn = rng.permuted(
        np.tile(np.arange(FIRST_ORDINARY, SIZE, dtype=np.int32), (rows, 1)), axis=1
    )[:, : objective.window]
    return np.where(rng.random(drawn.shape) < ends, np.int32(END), drawn)


def make(objective, text, first_sample=0, seed=0) -> Any:
    """The batch of samples with consecutive numbers."""
    return objective.make(text, first_sample + np.arange(len(text)), seed)
