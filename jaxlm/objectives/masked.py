"""Masked language modelling: some tokens are hidden, and predicted from both sides.

BERT (arXiv 1810.04805, section 3.1), with new masks at every visit of a text as in RoBERTa (arXiv 1907.11692, section 4.1).
Whole-word masking follows the whole-word models of BERT's repository: words are taken in random order, one that no
longer fits the budget is passed over, and each token of a word is replaced on its own.
"""

from typing import Any

import numpy as np

from jaxlm import config, counter_rng
from jaxlm.objectives import layout, random_ops
from jaxlm.objectives.objective import Objective, Vocabulary
from jaxlm.types import Batch


def build(
    settings: config.ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary
) -> Objective:
    """Windows of L tokens, or L - 2 between begin_of_text and end_of_text. M is the budget of a window without special tokens.

    Batches have tokens [B, L] and predict, targets, weights [B, M]. Predicted positions ascend; a row with fewer than M ends
    with position 0, target 0, weight 0. `ConfigError` at `data.sequence_length` if no text fits.
    """
    window = layout.framed_window(sequence_length, vocabulary)
    most = int(budgets(window, settings.noise))
    offset = int(vocabulary.begin_of_text is not None)

    def make(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        keys = random_ops.order(seed, samples, counter_rng.MASK_ORDER, window)
        ordinary = ~vocabulary.special[windows]
        counts = budgets(ordinary.sum(axis=1), settings.noise)
        if settings.whole_words:
            chosen = whole_words(
                keys, ordinary, counts, *word_bounds(windows, ordinary, vocabulary)
            )[:, :most]
        else:
            chosen = random_ops.subset(np.where(ordinary, keys, random_ops.LAST), counts, most)
        used = chosen < window
        chosen = np.where(used, chosen, 0)
        targets = np.where(used, np.take_along_axis(windows, chosen, axis=1), 0)
        bits = counter_rng.random_bits(seed, samples[:, None], counter_rng.MASK_TOKEN, chosen)
        hidden = replaced(targets, bits, settings, vocabulary)
        rows = np.broadcast_to(np.arange(len(windows))[:, None], chosen.shape)
        text = windows.copy()
        text[rows[used], chosen[used]] = hidden[used]
        return Batch(
            tokens=layout.framed(text, vocabulary),
            predict=np.where(used, chosen + offset, 0).astype(np.int32),
            targets=targets,
            weights=used.astype(np.float32),
        )

    return Objective(window, window, sequence_length, 0, most, make)


def budgets(eligible: Any, noise: float) -> Any:
    """int64 like `eligible`: how many of so many tokens are chosen, the rounded share but at least one."""
    return np.minimum(np.maximum(np.rint(noise * eligible).astype(np.int64), 1), eligible)


def whole_words(
    keys: np.ndarray, ordinary: np.ndarray, counts: np.ndarray, first: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """int64 [B, W]: at most `counts` [B] ordinary positions of each row, ascending, then W's.

    Words with the bounds `first` and `end` [B, W] are taken in the order of `keys` [B, W], if the rest of the budget holds them.
    """
    # Positions in random order of their words, the tokens of a word together and ascending.
    places = random_ops.positions(np.sort(random_ops.order_of_groups(keys, first), axis=1))
    first, end, undecided = (np.take_along_axis(x, places, axis=1) for x in (first, end, ordinary))
    taken = np.zeros_like(undecided)
    left = counts[:, None]
    # Each turn decides all words up to the first that does not fit. What is left shrinks below the size of that word,
    # so a few turns are enough for the whole batch.
    while (undecided := undecided & (end - first <= left)).any():
        total = np.cumsum(undecided, axis=1) + end - 1 - places  # tokens up to the end of the word
        fits = undecided & (total <= left)
        taken |= fits
        undecided &= ~fits
        left = counts[:, None] - taken.sum(axis=1, keepdims=True)
    return np.sort(np.where(taken, places, keys.shape[1]), axis=1)


def word_bounds(
    windows: np.ndarray, ordinary: np.ndarray, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [B, W], twice: the first position of the word at each position, and the position behind its last."""
    begins = np.ones_like(ordinary)
    joins = vocabulary.first[windows[:, 1:]] == vocabulary.last[windows[:, :-1]]
    begins[:, 1:] = ~(joins & ordinary[:, 1:] & ordinary[:, :-1])
    width = begins.shape[1]
    ends = np.where(np.roll(begins, -1, axis=1), np.arange(1, width + 1), width)
    return random_ops.group_starts(begins), np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]


def replaced(
    targets: np.ndarray, bits: np.ndarray, settings: config.ObjectiveConfig, vocabulary: Vocabulary
) -> np.ndarray:
    """int32 [B, M]: what stands in the place of each target: the mask, any ordinary token, or itself."""
    assert vocabulary.mask is not None
    ordinary = np.flatnonzero(~vocabulary.special).astype(np.int32)
    kind = random_ops.high(bits)
    masked, changed = (
        random_ops.threshold(settings.mask_share),
        random_ops.threshold(settings.mask_share + settings.random_share),
    )
    other = np.where(kind < changed, ordinary[random_ops.below(bits, len(ordinary))], targets)
    return np.where(kind < masked, vocabulary.mask, other)
