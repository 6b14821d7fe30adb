"""Build objectives, texts and batches over a small vocabulary."""

from typing import Any

import numpy as np

from jaxlm import config, objectives
from jaxlm.objectives import Vocabulary

END, BEGIN, PAD, MASK, FIRST_SENTINEL, FIRST_ORDINARY, SIZE = 0, 1, 2, 3, 4, 104, 1000
# Behind the ordinary tokens, which are those from FIRST_ORDINARY up to SIZE.
FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX, DENOISER_R, DENOISER_S, DENOISER_X = range(SIZE, SIZE + 6)
IDS = np.arange(SIZE + 6)

VOCABULARY = Vocabulary(
    size=len(IDS),
    end_of_text=END,
    special=(IDS < FIRST_ORDINARY) | (IDS >= SIZE),
    begin_of_text=None,
    pad=PAD,
    mask=MASK,
    sentinels=np.arange(FIRST_SENTINEL, FIRST_ORDINARY, dtype=np.int32),
    fim_prefix=FIM_PREFIX,
    fim_middle=FIM_MIDDLE,
    fim_suffix=FIM_SUFFIX,
    denoiser_r=DENOISER_R,
    denoiser_s=DENOISER_S,
    denoiser_x=DENOISER_X,
    first_class=(IDS % 2).astype(np.int8),
    last_class=(IDS // 2 % 2).astype(np.int8),
    ends_sentence=IDS % 10 == 9,
)
FRAMED = VOCABULARY._replace(begin_of_text=BEGIN)


def build_objective(kind, length, vocabulary=VOCABULARY, **fields):
    """Build an objective; `fields` are those of its config."""
    return objectives.build(config.ObjectiveConfig(kind=kind, **fields), length, vocabulary)


def random_windows(objective, rows, ends=0.0, seed=0):
    """Return different ordinary tokens in each row; int32 [rows, window].

    The share `ends` of them is replaced by end_of_text.
    """
    rng = np.random.default_rng(seed)
    ordinary = np.tile(np.arange(FIRST_ORDINARY, SIZE, dtype=np.int32), (rows, 1))
    drawn = rng.permuted(ordinary, axis=1)[:, : objective.window]
    return np.where(rng.random(drawn.shape) < ends, np.int32(END), drawn)


def make_batch(objective, text, first_sample=0, seed=0) -> Any:
    """Return the batch of samples with consecutive numbers."""
    return objective.make_batch(text, first_sample + np.arange(len(text)), seed)
