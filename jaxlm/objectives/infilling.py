"""Text infilling: spans of the text are hidden behind one mask each and its sentences shuffled; the decoder writes the original.

BART (arXiv 1910.13461, section 3). Span lengths are Poisson, and an empty span is a mask where nothing is missing.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxlm import config, counter_rng
from jaxlm.config import ConfigError
from jaxlm.objectives import layout, random_ops
from jaxlm.objectives.objective import Objective, Vocabulary
from jaxlm.types import Batch


class Spans(NamedTuple):
    """Spans of each row in ascending order, [B, K] each, counted in ordinary tokens: special tokens are not numbered."""

    starts: np.ndarray  # int64
    lengths: np.ndarray  # int64
    used: np.ndarray  # bool


def build(
    settings: config.ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary
) -> Objective:
    """Windows of L tokens, or L - 2 between begin_of_text and end_of_text on both sides; S = T = L.

    Batches have source [B, S], padded, source_lengths [B], and tokens, targets, weights [B, T]. `ConfigError` at
    `data.sequence_length` if the share of noise is less than a token, at `objective.mean_span` if it is below 1.
    """
    window = layout.framed_window(sequence_length, vocabulary)
    most = round(settings.noise * window)
    if most < 1:
        raise ConfigError(
            "data.sequence_length",
            f"{sequence_length} is too short: a share of {settings.noise} of it is no token",
        )
    if settings.mean_span < 1:
        raise ConfigError(
            "objective.mean_span",
            f"must be at least 1, got {settings.mean_span}: more masks than hidden tokens",
        )
    thresholds = poisson_thresholds(settings.mean_span)
    # Lengths that are drawn per row. Their sum has mean 2 most + 16: it is below `most` once in 8 million rows at the worst (most = 6).
    spans = math.ceil((2 * most + 16) / settings.mean_span)

    def make(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        text = (
            shuffled(windows, samples, seed, vocabulary) if settings.shuffle_sentences else windows
        )
        ordinary = ~vocabulary.special[text]
        bits = counter_rng.random_bits(
            seed, samples[:, None], counter_rng.INFILLING_LENGTH, np.arange(spans)
        )
        wanted = np.searchsorted(thresholds, random_ops.high(bits), side="right")
        keys = random_ops.order(seed, samples, counter_rng.INFILLING_PLACE, window + spans)
        places = placed(wanted, keys, ordinary.sum(axis=1), settings.noise)
        source, lengths = layout.framed_padded(
            *infilled(text, ordinary, places, vocabulary), vocabulary
        )
        targets = layout.framed(windows, vocabulary)
        return Batch(
            tokens=layout.shifted(targets, settings, vocabulary),
            source=source,
            source_lengths=lengths.astype(np.int32),
            targets=targets,
            weights=np.ones(targets.shape, np.float32),
        )

    return Objective(window, window, sequence_length, sequence_length, sequence_length, make)


def poisson_thresholds(mean: float) -> np.ndarray:
    """uint64 [n]: 32 random bits at or above the k-th of them stand for a number greater than k. Less likely ones are left out."""
    numbers = range(math.ceil(mean + 12 * math.sqrt(mean) + 12))
    cdf = np.cumsum(
        [math.exp(number * math.log(mean) - mean - math.lgamma(number + 1)) for number in numbers]
    )
    return np.minimum(np.rint(cdf * 2.0**32), 2.0**32).astype(np.uint64)


def shuffled(
    windows: np.ndarray, samples: np.ndarray, seed: int, vocabulary: Vocabulary
) -> np.ndarray:
    """int32 [B, W]: the sentences of each document in random order. The end_of_text of a document stays where it is."""
    closes = windows == vocabulary.end_of_text
    begins = closes.copy()
    begins[:, 0] = True
    begins[:, 1:] |= (closes | vocabulary.ends_sentence[windows])[:, :-1]
    keys = random_ops.order(seed, samples, counter_rng.SENTENCE_ORDER, windows.shape[1])
    keys = random_ops.order_of_groups(keys, random_ops.group_starts(begins))
    places = random_ops.positions(
        np.sort(np.where(closes, keys | ~random_ops.LOW, keys), axis=1)
    )  # an end comes last
    document = np.cumsum(closes, axis=1) - closes
    by_document = np.argsort(np.take_along_axis(document, places, axis=1), axis=1, kind="stable")
    return np.take_along_axis(windows, np.take_along_axis(places, by_document, axis=1), axis=1)


def placed(wanted: np.ndarray, keys: np.ndarray, ordinary: np.ndarray, noise: float) -> Spans:
    """Spans of the `wanted` lengths [B, K] until the share `noise` of the `ordinary` tokens [B] is covered; the last is trimmed.

    The text is a row of slots, one for each token that stays and one for each span. Which of them are spans is uniformly random
    by the order of `keys` [B, W + K].
    """
    budget = np.rint(noise * ordinary).astype(np.int64)[:, None]
    ends = np.minimum(np.cumsum(wanted, axis=1), budget)
    lengths = np.diff(ends, axis=1, prepend=0)
    before = ends - lengths
    used = before < budget
    count = used.sum(axis=1)
    slots = ordinary - ends[:, -1] + count
    keys = np.where(np.arange(keys.shape[1]) < slots[:, None], keys, random_ops.LAST)
    staying = random_ops.subset(keys, count, wanted.shape[1]) - np.arange(
        wanted.shape[1]
    )  # tokens before a span that stay
    return Spans(staying + before, lengths, used)


def infilled(
    text: np.ndarray, ordinary: np.ndarray, spans: Spans, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Text int32 [B, W], bool [B, W] of its ordinary tokens -> the source, int32 [B, W] with padding, and its lengths, int64 [B].

    Special tokens stay where they are. A span that meets one goes on behind it under another mask, so that no mask stands
    for text of two documents. The last empty spans are left out if the source would get longer than the text.
    """
    assert vocabulary.mask is not None and vocabulary.pad is not None
    width = text.shape[1]
    empty = spans.lengths == 0
    begins = tally(spans.starts, spans.used & ~empty, width + 1)
    ends = tally(spans.starts + spans.lengths, spans.used & ~empty, width + 1)
    # Column n is about ordinary token n - 1, and column 0 about what stands before the first.
    number = np.cumsum(ordinary, axis=1)
    inside = ordinary & at(np.cumsum(begins - ends, axis=1) > 0, number)
    resumed = inside & np.pad(~ordinary[:, :-1], ((0, 0), (1, 0)))
    masks = resumed | (inside & at(begins > 0, number))
    stays = ~inside | masks
    inserted = np.cumsum(tally(spans.starts, spans.used & empty, width + 1), axis=1)
    inserted = np.minimum(inserted, width - stays.sum(axis=1, keepdims=True))
    lengths = stays.sum(axis=1) + inserted[:, -1]
    place = np.cumsum(stays, axis=1) - 1 + at(inserted, number)
    # What nothing is written to is an empty span's mask. The column behind the last takes what does not stay.
    source = np.full((len(text), width + 1), vocabulary.mask, np.int32)
    np.put_along_axis(
        source, np.where(stays, place, width), np.where(masks, vocabulary.mask, text), axis=1
    )
    return np.where(np.arange(width) < lengths[:, None], source[:, :width], vocabulary.pad), lengths


def tally(columns: np.ndarray, counted: np.ndarray, width: int) -> np.ndarray:
    """int64 [B, 1 + width]: a zero, then how often each of the columns 0, ..., width - 1 occurs in int64 [B, K], where `counted`."""
    cells = (np.arange(len(columns))[:, None] * (width + 1) + columns + 1)[counted]
    return np.bincount(cells, minlength=len(columns) * (width + 1)).reshape(len(columns), width + 1)


def at(table: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """table[b, columns[b, i]], [B, n]."""
    return np.take_along_axis(table, columns, axis=1)
