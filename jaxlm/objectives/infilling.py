"""Text infilling: hide spans behind one mask each and shuffle sentences; the decoder restores all.

BART (arXiv 1910.13461, section 3). Span lengths are Poisson; an empty span is a mask where nothing
is missing.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxlm import counter_rng
from jaxlm.config import ConfigError, ObjectiveConfig
from jaxlm.objectives import layout, random_ops
from jaxlm.objectives.objective import Objective, PackedRows, Pieces, Vocabulary
from jaxlm.types import Batch


class Spans(NamedTuple):
    """Spans of each row in ascending order, [B, K] each.

    They count ordinary tokens: special tokens are not numbered.
    """

    starts: np.ndarray  # int64
    lengths: np.ndarray  # int64
    used: np.ndarray  # bool


def build(config: ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary) -> Objective:
    """Build the objective for windows of L tokens, or L - 2 between begin_of_text and end_of_text.

    Batches have source [B, L], padded, source_lengths [B], and tokens, targets, weights [B, L].
    Raises `ConfigError` at `data.sequence_length` if the share of noise is less than a token, at
    `objective.mean_span` if it is below 1.
    """
    window = layout.framed_window(sequence_length, vocabulary)
    most_noise = round(config.noise * window)
    if most_noise < 1:
        raise ConfigError(
            "data.sequence_length",
            f"{sequence_length} is too short: a share of {config.noise} of it is no token",
        )
    if config.mean_span < 1:
        raise ConfigError(
            "objective.mean_span",
            f"must be at least 1, got {config.mean_span}: more masks than hidden tokens",
        )

    # The lengths drawn per row have a sum of mean 2 most_noise + 16. It is below `most_noise` once
    # in 8 million rows at the worst (most_noise = 6).
    thresholds = poisson_thresholds(config.mean_span, most=most_noise)
    spans = math.ceil((2 * most_noise + 16) / config.mean_span)

    def hide(
        text: np.ndarray, segments: np.ndarray, samples: np.ndarray, seed: int, *, packed: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of texts, int32 [B, W], and its segments, for those of the texts."""
        width = text.shape[1]
        if config.shuffle_sentences:
            text = shuffle_sentences(text, samples, seed, vocabulary)

        # Draw the spans and hide them.
        is_text = ~vocabulary.special[text] & (segments > 0)
        bits = counter_rng.random_bits(
            seed, samples[:, None], counter_rng.INFILLING_LENGTH, np.arange(spans)
        )
        drawn = np.searchsorted(thresholds, random_ops.high_bits(bits), side="right")
        keys = random_ops.order_keys(seed, samples, counter_rng.INFILLING_PLACE, width + spans)
        counts = is_text.sum(axis=1)
        placed = place_spans(drawn, keys, counts, config.noise)
        if packed:
            # An empty span after the last token would stand behind the end of its document.
            last = np.maximum(counts - 1, 0)[:, None]
            placed = placed._replace(starts=np.minimum(placed.starts, last))
        return hide_spans(text, is_text, segments, placed, vocabulary)

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        source, segments = hide(windows, np.ones_like(windows), samples, seed, packed=False)
        lengths = np.count_nonzero(segments, axis=1)
        source, lengths = layout.add_frame_padded(source, lengths, vocabulary)
        targets = layout.add_frame(windows, vocabulary)
        return Batch(
            tokens=layout.shift_right(targets, config, vocabulary),
            source=source,
            source_lengths=lengths.astype(np.int32),
            targets=targets,
            weights=np.ones(targets.shape, np.float32),
        )

    def make_packed_batch(pieces: Pieces, samples: np.ndarray, seed: int) -> Batch:
        framed, lengths = layout.frame_pieces(pieces, vocabulary)
        place = layout.Placement(pieces.rows, lengths, (pieces.count, sequence_length))
        padding = layout.padding_token(vocabulary)
        targets = place.fill(framed, padding)
        source, segments = hide(targets, place.segments, samples, seed, packed=True)

        is_start = np.diff(segments, axis=1, prepend=0) != 0
        starts = random_ops.group_starts(is_start)
        columns = np.arange(sequence_length, dtype=np.int32)
        return Batch(
            tokens=place.fill(layout.shift_pieces(framed, lengths, config, vocabulary), padding),
            segments=place.segments,
            positions=place.positions,
            source=source,
            source_segments=segments,
            source_positions=np.where(segments > 0, columns - starts, 0).astype(np.int32),
            targets=targets,
            weights=(place.segments > 0).astype(np.float32),
        )

    return Objective(
        window=window,
        stride=window,
        length=sequence_length,
        source_length=sequence_length,
        predictions=sequence_length,
        make_batch=make_batch,
        packed=PackedRows(
            capacity=sequence_length,
            part=window,
            sizes=layout.framed_sizes(sequence_length, vocabulary),
            make_batch=make_packed_batch,
        ),
    )


def poisson_thresholds(mean: float, most: int) -> np.ndarray:
    """Return the cumulative Poisson probabilities, times 2**32; uint64 [n].

    32 random bits at or above the k-th threshold stand for a number greater than k. Numbers beyond
    n are too unlikely for 32 bits, or stand for `most` too: longer spans are trimmed to that.
    """
    numbers = range(min(math.ceil(mean + 12 * math.sqrt(mean) + 12), most))
    cdf = np.cumsum(
        [math.exp(number * math.log(mean) - mean - math.lgamma(number + 1)) for number in numbers]
    )
    return np.minimum(np.rint(cdf * 2.0**32), 2.0**32).astype(np.uint64)


def shuffle_sentences(
    windows: np.ndarray, samples: np.ndarray, seed: int, vocabulary: Vocabulary
) -> np.ndarray:
    """Return windows with the sentences of each document in random order; int32 [B, W].

    The end_of_text of a document stays where it is, and so does a begin_of_text.
    """
    is_end = windows == vocabulary.end_of_text
    if vocabulary.begin_of_text is not None:
        is_end |= windows == vocabulary.begin_of_text
    is_start = is_end.copy()
    is_start[:, 0] = True
    is_start[:, 1:] |= (is_end | vocabulary.ends_sentence[windows])[:, :-1]

    # Order all sentences of the window. The largest keys go to the ends of documents, so that each
    # comes last in its document.
    keys = random_ops.order_keys(seed, samples, counter_rng.SENTENCE_ORDER, windows.shape[1])
    keys = random_ops.group_keys(keys, random_ops.group_starts(is_start))
    keys = np.where(is_end, keys | ~random_ops.LOW, keys)
    places = random_ops.key_positions(np.sort(keys, axis=1))

    # A stable sort brings the documents back into their order; NumPy's is fastest for 16 bits.
    numbers = np.min_scalar_type(windows.shape[1])
    document = (np.cumsum(is_end, axis=1) - is_end).astype(numbers)
    by_document = np.argsort(random_ops.take_columns(document, places), axis=1, kind="stable")
    return random_ops.take_columns(windows, random_ops.take_columns(places, by_document))


def place_spans(
    drawn: np.ndarray, keys: np.ndarray, text_counts: np.ndarray, noise: float
) -> Spans:
    """Place spans of the `drawn` lengths [B, K] until they cover the share `noise` of the text.

    `text_counts` [B] are the ordinary tokens of the rows. The last span is trimmed. The text is a
    row of slots, one for each token that stays and one for each span. The order of `keys`
    [B, W + K] decides which slots are spans, uniformly.
    """
    budget = np.rint(noise * text_counts).astype(np.int64)[:, None]
    ends = np.minimum(np.cumsum(drawn, axis=1), budget)
    lengths = np.diff(ends, axis=1, prepend=0)
    hidden_before = ends - lengths
    used = hidden_before < budget

    count = used.sum(axis=1)
    slots = text_counts - ends[:, -1] + count
    keys = np.where(np.arange(keys.shape[1]) < slots[:, None], keys, random_ops.LAST)
    span_slots = random_ops.choose_subset(keys, count, drawn.shape[1])
    staying_before = span_slots - np.arange(drawn.shape[1])
    return Spans(starts=staying_before + hidden_before, lengths=lengths, used=used)


def hide_spans(
    text: np.ndarray,
    is_text: np.ndarray,
    segments: np.ndarray,
    spans: Spans,
    vocabulary: Vocabulary,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the padded source of text int32 [B, W] and its segments, both int32 [B, W].

    `segments` int32 [B, W] are those of the text: ascending, 0 in the padding at the end. Special
    tokens (`is_text` [B, W] is False) stay where they are. A span that meets one continues after it
    under another mask, so that no mask stands for text of two documents. The last empty spans are
    left out if the source would get longer than a row.
    """
    assert vocabulary.mask is not None and vocabulary.pad is not None
    width = text.shape[1]
    empty = spans.lengths == 0
    starts = count_columns(spans.starts, spans.used & ~empty, width + 1)
    ends = count_columns(spans.starts + spans.lengths, spans.used & ~empty, width + 1)

    # Column n of the counts is about ordinary token n - 1, and column 0 about the place before the
    # first. The first token of a span, or of its part after a special token, becomes its mask.
    number = np.cumsum(is_text, axis=1)
    inside = is_text & random_ops.take_columns(np.cumsum(starts - ends, axis=1) > 0, number)
    resumed = inside & np.pad(~is_text[:, :-1], ((0, 0), (1, 0)))
    masks = resumed | (inside & random_ops.take_columns(starts > 0, number))
    stays = (~inside | masks) & (segments > 0)

    # The masks of empty spans are inserted, as far as there is room.
    inserted = np.cumsum(count_columns(spans.starts, spans.used & empty, width + 1), axis=1)
    inserted = np.minimum(inserted, width - stays.sum(axis=1, keepdims=True))
    lengths = stays.sum(axis=1) + inserted[:, -1]

    # Write the tokens that stay, and the others to the extra column. A place that nothing is
    # written to is the mask of an empty span, which stands before a token of its segment.
    place = np.where(
        stays, np.cumsum(stays, axis=1) - 1 + random_ops.take_columns(inserted, number), width
    )
    source = np.full((len(text), width + 1), vocabulary.mask, np.int32)
    np.put_along_axis(source, place, np.where(masks, vocabulary.mask, text), axis=1)
    last = segments.max(axis=1, keepdims=True)
    source_segments = np.broadcast_to(last, (len(text), width + 1)).copy()
    np.put_along_axis(source_segments, place, segments, axis=1)
    source_segments = np.minimum.accumulate(source_segments[:, width - 1 :: -1], axis=1)[:, ::-1]

    is_source = np.arange(width) < lengths[:, None]
    source = np.where(is_source, source[:, :width], vocabulary.pad)
    return source, np.where(is_source, source_segments, 0)


def count_columns(columns: np.ndarray, counted: np.ndarray, width: int) -> np.ndarray:
    """Count how often each column 0, ..., `width` - 1 occurs in each row; int64 [B, 1 + width].

    `columns` is int64 [B, K]; only the entries that are `counted` (bool [B, K]) matter. The counts
    stand after a zero.
    """
    cells = (np.arange(len(columns))[:, None] * (width + 1) + columns + 1)[counted]
    return np.bincount(cells, minlength=len(columns) * (width + 1)).reshape(len(columns), width + 1)
