"""Masked language modelling: hide some tokens and predict them from both sides.

BERT (arXiv 1810.04805, section 3.1), with new masks at every visit of a text as in RoBERTa (arXiv
1907.11692, section 4.1). Whole-word masking follows the whole-word models of BERT's repository:
words are taken in random order, a word that no longer fits the budget is skipped, and each token of
a word is replaced on its own.
"""

from typing import Any

import numpy as np

from jaxlm import counter_rng
from jaxlm.config import ObjectiveConfig
from jaxlm.objectives import layout, random_ops
from jaxlm.objectives.objective import Objective, PackedRows, Pieces, Vocabulary
from jaxlm.types import Batch


def build(config: ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary) -> Objective:
    """Build the objective for windows of L tokens, or L - 2 between begin_of_text and end_of_text.

    Batches have tokens [B, L] and predict, targets, weights [B, M]; M is the budget of a window
    without special tokens. Predicted positions ascend. A row with fewer than M ends with position
    0, target 0, weight 0. In packed rows each document stands between begin and end, where there is
    a begin_of_text. Raises `ConfigError` at `data.sequence_length` if no text fits.
    """
    window = layout.framed_window(sequence_length, vocabulary)
    most = int(target_budget(window, config.noise))
    offset = int(vocabulary.begin_of_text is not None)

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        is_text = ~vocabulary.special[windows]
        batch = hide_tokens(windows, is_text, samples, seed, most, config, vocabulary)
        assert batch.predict is not None
        predict = np.where(np.asarray(batch.weights) > 0, batch.predict + np.int32(offset), 0)
        return batch._replace(tokens=layout.add_frame(batch.tokens, vocabulary), predict=predict)

    def make_packed_batch(pieces: Pieces, samples: np.ndarray, seed: int) -> Batch:
        framed, lengths = layout.frame_pieces(pieces, vocabulary)
        place = layout.Placement(pieces.rows, lengths, (pieces.count, sequence_length))
        rows = place.fill(framed, layout.padding_token(vocabulary))
        is_text = (place.segments > 0) & ~vocabulary.special[rows]
        batch = hide_tokens(rows, is_text, samples, seed, most, config, vocabulary)
        return batch._replace(segments=place.segments, positions=place.positions)

    return Objective(
        window=window,
        stride=window,
        length=sequence_length,
        source_length=0,
        predictions=most,
        make_batch=make_batch,
        packed=PackedRows(
            capacity=sequence_length,
            part=window,
            sizes=layout.framed_sizes(sequence_length, vocabulary),
            make_batch=make_packed_batch,
        ),
    )


def hide_tokens(
    rows: np.ndarray,
    is_text: np.ndarray,
    samples: np.ndarray,
    seed: int,
    most: int,
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
) -> Batch:
    """Hide a share of the text of each row; at most `most` tokens.

    `rows` are int32 [B, W]; only where `is_text` (bool [B, W]) tokens are hidden and counted. The
    batch has tokens [B, W] and predict, targets, weights [B, `most`].
    """
    # Choose the positions that are predicted.
    width = rows.shape[1]
    keys = random_ops.order_keys(seed, samples, counter_rng.MASK_ORDER, width)
    budgets = np.minimum(target_budget(is_text.sum(axis=1), config.noise), most)
    if config.whole_words:
        starts, ends = word_bounds(rows, is_text, vocabulary)
        chosen = choose_words(keys, is_text, budgets, starts, ends)[:, :most]
    else:
        text_keys = np.where(is_text, keys, random_ops.LAST)
        chosen = random_ops.choose_subset(text_keys, budgets, most)

    # Rows with fewer targets than M are filled up with position 0.
    is_target = chosen < width
    chosen = np.where(is_target, chosen, 0)
    targets = np.where(is_target, np.take_along_axis(rows, chosen, axis=1), 0)

    # Hide the tokens at these positions.
    bits = counter_rng.random_bits(seed, samples[:, None], counter_rng.MASK_TOKEN, chosen)
    replacements = replace_targets(targets, bits, config, vocabulary)
    numbers = np.broadcast_to(np.arange(len(rows))[:, None], chosen.shape)
    text = rows.copy()
    text[numbers[is_target], chosen[is_target]] = replacements[is_target]

    return Batch(
        tokens=text,
        predict=chosen.astype(np.int32),
        targets=targets,
        weights=is_target.astype(np.float32),
    )


def target_budget(tokens: Any, noise: float) -> Any:
    """Return how many of `tokens` become targets: the rounded share, but at least one; int64."""
    return np.minimum(np.maximum(np.rint(noise * tokens).astype(np.int64), 1), tokens)


def choose_words(
    keys: np.ndarray, is_text: np.ndarray, budgets: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """Return at most `budgets` [B] positions of each row, by whole words, ascending; int64 [B, W].

    Words start at `starts` and end before `ends` [B, W]. They are taken in the order of `keys`
    [B, W] if the rest of the budget holds them. Rows end with W's.
    """
    # Positions in random order of their words, the tokens of a word together and ascending.
    order = np.sort(random_ops.group_keys(keys, starts), axis=1)
    places = random_ops.key_positions(order)
    starts, ends, undecided = (
        np.take_along_axis(x, places, axis=1) for x in (starts, ends, is_text)
    )

    # Each turn decides all words up to the first that does not fit. The rest of the budget is then
    # smaller than that word, so a few turns are enough for the whole batch.
    taken = np.zeros_like(undecided)
    left = budgets[:, None]
    while (undecided := undecided & (ends - starts <= left)).any():
        tokens_to_word_end = np.cumsum(undecided, axis=1) + ends - 1 - places
        fits = undecided & (tokens_to_word_end <= left)
        taken |= fits
        undecided &= ~fits
        left = budgets[:, None] - taken.sum(axis=1, keepdims=True)

    return np.sort(np.where(taken, places, keys.shape[1]), axis=1)


def word_bounds(
    windows: np.ndarray, is_text: np.ndarray, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first position of each position's word and the position after its last.

    Both are int64 [B, W].
    """
    joins = vocabulary.first_class[windows[:, 1:]] == vocabulary.last_class[windows[:, :-1]]
    is_start = np.ones_like(is_text)
    is_start[:, 1:] = ~(joins & is_text[:, 1:] & is_text[:, :-1])

    width = is_start.shape[1]
    ends = np.where(np.roll(is_start, -1, axis=1), np.arange(1, width + 1), width)
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    return random_ops.group_starts(is_start), ends


def replace_targets(
    targets: np.ndarray, bits: np.ndarray, config: ObjectiveConfig, vocabulary: Vocabulary
) -> np.ndarray:
    """Return what replaces each target: the mask, any ordinary token, or itself; int32 [B, M]."""
    assert vocabulary.mask is not None
    ordinary = np.flatnonzero(~vocabulary.special).astype(np.int32)
    random_tokens = ordinary[random_ops.integers_below(bits, len(ordinary))]

    chance = random_ops.high_bits(bits)
    masked = random_ops.probability_threshold(config.mask_share)
    changed = random_ops.probability_threshold(config.mask_share + config.random_share)
    unmasked = np.where(chance < changed, random_tokens, targets)
    return np.where(chance < masked, vocabulary.mask, unmasked)
