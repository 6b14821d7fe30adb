"""Fill in the middle: move the middle of a document to its end, for a decoder that infills.

Bavarian et al. (arXiv 2207.14255). A document of prefix, middle and suffix becomes one of

    PSM    <prefix> prefix <suffix> suffix <middle> middle
    SPM    <prefix> <suffix> suffix <middle> prefix middle      (the paper's second variant)

and its end_of_text follows the middle. A document is what lies between two ends of text in a
window, so nothing moves into another document (section 4.4, context-level transformation).
"""

import numpy as np

from jaxlm import counter_rng
from jaxlm.config import ObjectiveConfig
from jaxlm.objectives import random_ops
from jaxlm.objectives.causal import shift_targets
from jaxlm.objectives.objective import Objective, Vocabulary
from jaxlm.types import Batch

ADDED = 3  # tokens that a document gets


def build(config: ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary) -> Objective:
    """Build the objective for windows of L + 1 tokens, L apart.

    Batches have tokens, targets, weights [B, L]. What the new tokens push out of a window is cut
    at its end. Every token is a target, those of the prefix and the suffix too (section 3).
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

    The two cuts of a document are uniform over its W + 1 places and independent, so any of the
    three parts may be empty. They fall between tokens.
    """
    width = windows.shape[1]
    columns = np.arange(width)
    is_end = windows == vocabulary.end_of_text
    is_start = np.pad(is_end[:, :-1], ((0, 0), (1, 0)), constant_values=True)

    # Each position knows its place in its document, and the length of that without its end.
    starts = random_ops.group_starts(is_start)
    ends = np.where(is_end, columns, width)
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    lengths, place = ends - starts, columns - starts

    # Choose the order and the cuts of each document.
    first, second = (
        counter_rng.random_bits(
            seed, samples[:, None], counter_rng.FILL_IN_THE_MIDDLE, 2 * starts + number
        )
        for number in (0, 1)
    )
    chance = random_ops.high_bits(first)
    is_moved = chance < random_ops.probability_threshold(config.fim_rate)
    is_moved &= lengths > 0
    is_spm = chance < random_ops.probability_threshold(config.fim_rate * config.spm_rate)
    cuts = [random_ops.integers_below(bits, lengths + 1) for bits in (first, second)]
    middle, suffix = np.minimum(*cuts), np.maximum(*cuts)  # where they begin

    # In SPM the prefix stands right before the middle instead of before the suffix.
    suffix_length = lengths - suffix
    ahead = np.where(is_spm, 0, middle)
    moved = place + ADDED + suffix_length  # tokens of the middle
    moved = np.where(~is_spm & (place < middle), place + 1, moved)
    moved = np.where(place >= suffix, place - suffix + 2 + ahead, moved)
    moved = np.where(is_end, place + ADDED, moved)

    # A document begins after the tokens that those before it got. What lies beyond the window goes
    # to the extra column.
    earlier = np.cumsum(is_start & is_moved, axis=1) - is_moved
    begins = starts + ADDED * earlier
    targets = np.minimum(begins + np.where(is_moved, moved, place), width)
    text = np.empty((len(windows), width + 1), np.int32)
    np.put_along_axis(text, targets, windows, axis=1)

    rows, documents = np.nonzero(is_start & is_moved)
    for token, offset in (
        (vocabulary.fim_prefix, np.zeros_like(ahead)),
        (vocabulary.fim_suffix, ahead + 1),
        (vocabulary.fim_middle, ahead + suffix_length + 2),
    ):
        assert token is not None
        text[rows, np.minimum(begins + offset, width)[rows, documents]] = token
    return np.ascontiguousarray(text[:, :width])
