"""Fill in the middle: move the middle of a document to its end, for a decoder that infills.

Bavarian et al. (arXiv 2207.14255). A document of prefix, middle and suffix becomes one of

    PSM    <prefix> prefix <suffix> suffix <middle> middle
    SPM    <prefix> <suffix> suffix <middle> prefix middle      (the paper's second variant)

and end_of_text follows the middle, so that a model can end what it fills in. A document is what
lies between two ends of text in a window, so nothing moves into another document (section 4.4,
context-level transformation).
"""

from typing import NamedTuple

import numpy as np

from jaxlm import counter_rng
from jaxlm.config import ObjectiveConfig
from jaxlm.objectives import random_ops
from jaxlm.objectives.causal import shift_targets
from jaxlm.objectives.objective import Objective, Vocabulary
from jaxlm.types import Batch

ADDED = 3  # tokens that a document gets


class Documents(NamedTuple):
    """Documents in windows, one after another; [n] each."""

    rows: np.ndarray  # int64: the window of each
    starts: np.ndarray  # int64: columns
    sizes: np.ndarray  # int64: tokens, with the end_of_text
    has_end: np.ndarray  # bool: False where the window ends before the document


def build(config: ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary) -> Objective:
    """Build the objective for windows of L + 1 tokens, L apart.

    Batches have tokens, targets, weights [B, L]. What the new tokens push out of a window is the
    end of its last document. Every token is a target, those of prefix and suffix too (section 3).
    """

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        text = rearrange_documents(windows, samples, seed, config, vocabulary)
        tokens, targets = shift_targets(text)
        return Batch(tokens=tokens, targets=targets, weights=np.ones(targets.shape, np.float32))

    return Objective(
        window=sequence_length + 1,
        stride=sequence_length,
        length=sequence_length,
        source_length=0,
        predictions=sequence_length,
        make_batch=make_batch,
    )


def rearrange_documents(
    windows: np.ndarray,
    samples: np.ndarray,
    seed: int,
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
) -> np.ndarray:
    """Return windows [B, W] in which some documents are PSM or SPM; int32 [B, W].

    The two cuts of a document of n tokens are uniform over its n + 1 places and independent, so any
    of the three parts may be empty. They fall between tokens.
    """
    count, width = windows.shape
    rows, starts, sizes, has_end = find_documents(windows, vocabulary.end_of_text)

    # Choose the order and the cuts of each document.
    first, second = (
        counter_rng.random_bits(
            seed, samples[rows], counter_rng.FILL_IN_THE_MIDDLE, 2 * starts + number
        )
        for number in (0, 1)
    )
    chance = random_ops.high_bits(first)
    is_chosen = chance < random_ops.probability_threshold(config.fim_rate)
    is_spm = chance < random_ops.probability_threshold(config.fim_rate * config.spm_rate)

    # A document begins after the tokens that those before it in its window got. The last one, if it
    # has no end, gives up what these tokens, its own and an end push out of the window: then it is
    # complete, and the model learns where a middle ends.
    is_moved = is_chosen & (sizes > has_end)
    earlier = np.cumsum(is_moved) - is_moved
    earlier -= earlier[starts == 0][rows]
    spare = np.where(has_end, 1, ADDED * (earlier + 1) + 1)
    lengths = np.maximum(sizes - spare, 0)
    is_moved &= lengths > 0
    is_closed = is_moved & ~has_end

    # How far each part moves: prefix, middle, suffix, and the end or what the text gives up. In SPM
    # the prefix stands right before the middle, and there are no tokens of it before the suffix.
    cuts = [random_ops.integers_below(bits, lengths + 1) for bits in (first, second)]
    middle, suffix = np.minimum(*cuts), np.maximum(*cuts)  # where they begin
    suffix_length = lengths - suffix
    ahead = np.where(is_spm, 0, middle)
    moves = (
        np.where(is_spm, ADDED + suffix_length, 1),
        ADDED + suffix_length,
        2 + ahead - suffix,
        np.full_like(starts, ADDED),
    )
    shifts = ADDED * earlier[:, None] + np.where(is_moved[:, None], np.stack(moves, axis=1), 0)
    part_lengths = np.stack([middle, suffix - middle, suffix_length, sizes - lengths], axis=1)

    # Write all tokens to their columns, and those beyond the window to the extra column.
    columns = np.tile(np.arange(width), count) + np.repeat(shifts.ravel(), part_lengths.ravel())
    text = np.empty((count, width + 1), np.int32)
    np.put_along_axis(text, np.minimum(columns, width).reshape(count, width), windows, axis=1)
    text[rows[is_closed], width - 1] = vocabulary.end_of_text

    begins = (starts + ADDED * earlier)[is_moved]
    ahead, suffix_length = ahead[is_moved], suffix_length[is_moved]
    for token, place in (
        (vocabulary.fim_prefix, begins),
        (vocabulary.fim_suffix, begins + ahead + 1),
        (vocabulary.fim_middle, begins + ahead + suffix_length + 2),
    ):
        assert token is not None
        text[rows[is_moved], np.minimum(place, width)] = token
    return np.ascontiguousarray(text[:, :width])


def find_documents(windows: np.ndarray, end_of_text: int) -> Documents:
    """Return the documents of windows [B, W]. What lies between two ends of text is one."""
    is_end = windows == end_of_text
    is_start = np.pad(is_end[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    cells = np.flatnonzero(is_start)
    rows, starts = np.divmod(cells, windows.shape[1])

    sizes = np.diff(cells, append=windows.size)
    return Documents(rows, starts, sizes, is_end.ravel()[cells + sizes - 1])
