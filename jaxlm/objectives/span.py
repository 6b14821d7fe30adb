"""Span corruption: replace spans of the text by sentinels; the decoder writes the spans.

T5 (arXiv 1910.10683, section 3.1.4). The text ends with a span, so a single span is always its end.
Special tokens are text here: an end of text in the window may lie in a span.
"""

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from jaxlm import counter_rng
from jaxlm.config import ConfigError, ObjectiveConfig
from jaxlm.objectives import layout, random_ops
from jaxlm.objectives.objective import Objective, PackedRows, Pieces, Vocabulary
from jaxlm.types import Batch

LONGEST_WINDOW = 100  # times the tokens of its source
TEXT_BITS = 24  # of a sort key: the number of a text in a batch; the others are random


class SpanSizes(NamedTuple):
    """Tokens of one sample."""

    window: int  # of raw text
    noise: int  # of them, in spans
    spans: int

    @property
    def source(self) -> int:
        """Tokens for the encoder: the text outside spans, a sentinel per span and end_of_text."""
        return self.window - self.noise + self.spans + 1

    @property
    def target(self) -> int:
        """Tokens for the decoder: the spans, a sentinel before each and end_of_text."""
        return self.noise + self.spans + 1


def build(config: ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary) -> Objective:
    """Build the objective for the window whose corrupted text fills the encoder's S tokens.

    With T5's config it has 568 tokens for S = 512, and T = 114. Batches have source [B, S] and
    tokens, targets, weights [B, T]. In packed rows each document is corrupted on its own, with a
    share of both rows that fits it: segment i of the target restores segment i of the source.
    Raises `ConfigError` if the spans don't fit into the text or there are more of them than
    sentinels.
    """
    sizes = fit_sizes(sequence_length, config)
    if sizes.spans > sizes.window - sizes.noise:
        raise ConfigError(
            "objective.mean_span",
            f"{sizes.spans} spans with {sizes.noise} of {sizes.window} tokens "
            "leave no text between some of them",
        )
    if sizes.spans > len(vocabulary.sentinels):
        raise ConfigError(
            "tokenizer.sentinels",
            f"a sample has {sizes.spans} spans, "
            f"but there are {len(vocabulary.sentinels)} sentinels",
        )

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        source, target = corrupt_spans(windows, samples, seed, sizes, vocabulary.sentinels)
        targets = layout.append_end(target, vocabulary)
        return Batch(
            tokens=layout.shift_right(targets, config, vocabulary),
            source=layout.append_end(source, vocabulary),
            targets=targets,
            weights=np.ones(targets.shape, np.float32),
        )

    def make_packed_batch(pieces: Pieces, samples: np.ndarray, seed: int) -> Batch:
        return corrupt_pieces(pieces, samples, seed, sizes, config, vocabulary)

    return Objective(
        window=sizes.window,
        stride=sizes.window,
        length=sizes.target,
        source_length=sizes.source,
        predictions=sizes.target,
        make_batch=make_batch,
        packed=PackedRows(
            capacity=sizes.source,
            part=sizes.window,
            sizes=row_shares(sizes, config),
            make_batch=make_packed_batch,
        ),
    )


def fit_sizes(sequence_length: int, config: ObjectiveConfig) -> SpanSizes:
    """Return the sizes of the longest window whose source has `sequence_length` tokens.

    Raises `ConfigError` at `data.sequence_length` if there is none, and at `objective.noise_share`
    if it is out of all proportion.
    """
    shortest = 2  # a token that stays and one that goes
    if sequence_length < window_sizes(shortest, config).source:
        raise ConfigError(
            "data.sequence_length",
            f"{sequence_length} is too short for one span, a token of text and the end",
        )

    # One token more of text lengthens the source by one (of text, or by a sentinel for a new span)
    # or leaves it as it is. So every length from that of the shortest window on is met exactly.
    # The last window of the range is too long: its text outside spans alone exceeds the source.
    too_long = int((sequence_length + 1) / (1 - config.noise)) + shortest + 1
    windows = range(shortest, too_long)
    count = bisect_right(
        windows, sequence_length, key=lambda window: window_sizes(window, config).source
    )
    sizes = window_sizes(windows[count - 1], config)
    if sizes.window > LONGEST_WINDOW * sequence_length:
        raise ConfigError(
            "objective.noise_share",
            f"{config.noise}: a source of {sequence_length} tokens would stand for "
            f"{sizes.window:,} tokens of text; lower it",
        )
    return sizes


def window_sizes(window: int, config: ObjectiveConfig) -> SpanSizes:
    """Return noise and spans of a window, rounded as in T5's `random_spans_noise_mask`."""
    noise = min(max(round(window * config.noise), 1), window - 1)
    return SpanSizes(window, noise, spans=max(round(noise / config.mean_span), 1))


def corrupt_spans(
    windows: np.ndarray, samples: np.ndarray, seed: int, sizes: SpanSizes, sentinels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return source int32 [B, S - 1] and target int32 [B, T - 1] of windows int32 [B, W].

    Both are without their ends. They are the same text with every other piece replaced by its
    sentinel: in the source the spans, in the target the text between them.
    """
    text = random_ops.random_composition(
        seed,
        samples,
        counter_rng.SPAN_TEXT,
        total=sizes.window - sizes.noise,
        parts=sizes.spans,
    )
    noise = random_ops.random_composition(
        seed, samples, counter_rng.SPAN_NOISE, total=sizes.noise, parts=sizes.spans
    )

    # Number the pieces of each window: 2 i is the text before span i, 2 i + 1 is span i.
    lengths = np.stack([text, noise], axis=2).ravel()
    numbers = np.tile(np.arange(2 * sizes.spans), len(windows))
    piece = np.repeat(numbers, lengths).reshape(windows.shape)

    # A piece that is replaced leaves its sentinel at its first position.
    is_start = np.diff(piece, axis=1, prepend=-1) != 0
    in_span = piece % 2 == 1
    sentinel = sentinels[piece // 2]
    source = np.where(in_span, sentinel, windows)[is_start | ~in_span]
    target = np.where(in_span, windows, sentinel)[is_start | in_span]
    return source.reshape(len(windows), -1), target.reshape(len(windows), -1)


# Packed rows


class DocumentSizes(NamedTuple):
    """Tokens of several documents without their end_of_text, int64 [P] each."""

    text: np.ndarray
    noise: np.ndarray  # of them, in spans
    spans: np.ndarray

    @property
    def source(self) -> np.ndarray:
        """Tokens for the encoder, as in `SpanSizes`."""
        return self.text - self.noise + self.spans + 1

    @property
    def target(self) -> np.ndarray:
        """Tokens for the decoder, as in `SpanSizes`."""
        return self.noise + self.spans + 1


def document_sizes(text: np.ndarray, config: ObjectiveConfig) -> DocumentSizes:
    """Return noise and spans of documents of `text` tokens (int64 [P], at least 2).

    They are those of `window_sizes`, but that between spans there is text in documents of any size.
    """
    noise = np.clip(np.rint(text * config.noise).astype(np.int64), 1, text - 1)
    spans = np.maximum(np.rint(noise / config.mean_span).astype(np.int64), 1)
    return DocumentSizes(text, noise, spans=np.minimum(spans, text - noise))


def row_shares(sizes: SpanSizes, config: ObjectiveConfig) -> np.ndarray:
    """Return how much of a row documents of 0, 1, ... tokens take, in tokens of the source; int64.

    It is the larger of the shares of both rows, so that pieces that fit the source fit the target.
    A document of fewer than two tokens and its end has no span.
    """
    documents = document_sizes(np.arange(2, sizes.window + 1), config)
    of_target = -(-documents.target * sizes.source // sizes.target)
    shares = np.maximum(documents.source, of_target)
    return np.concatenate([np.zeros(3, np.int64), shares])


def corrupt_pieces(
    pieces: Pieces,
    samples: np.ndarray,
    seed: int,
    sizes: SpanSizes,
    config: ObjectiveConfig,
    vocabulary: Vocabulary,
) -> Batch:
    """Return the batch of packed rows: source [B, S]; tokens, targets, weights [B, T]."""
    # The end_of_text of a document is no text here: it ends both the source and the target.
    has_end = layout.ends_document(pieces, vocabulary)
    is_text = np.ones(len(pieces.tokens), bool)
    is_text[np.cumsum(pieces.lengths)[has_end] - 1] = False
    text, documents = pieces.tokens[is_text], document_sizes(pieces.lengths - has_end, config)

    # Number the parts of each document as `corrupt_spans` does those of a window.
    numbers = samples[pieces.rows], layout.segment_numbers(pieces.rows)
    kept = documents.text - documents.noise
    lengths = np.stack(
        [
            cut_texts(kept, documents.spans, numbers, seed, counter_rng.SPAN_TEXT),
            cut_texts(documents.noise, documents.spans, numbers, seed, counter_rng.SPAN_NOISE),
        ],
        axis=1,
    ).ravel()
    part = np.repeat(layout.ragged_range(2 * documents.spans), lengths)
    is_start = layout.ragged_range(lengths) == 0
    in_span, sentinel = part % 2 == 1, vocabulary.sentinels[part // 2]

    source = np.where(in_span, sentinel, text)[is_start | ~in_span]
    source = layout.append_ends(source, documents.source, vocabulary)
    targets = np.where(in_span, text, sentinel)[is_start | in_span]
    targets = layout.append_ends(targets, documents.target, vocabulary)
    tokens = layout.shift_pieces(targets, documents.target, config, vocabulary)

    encoder = layout.Placement(pieces.rows, documents.source, (pieces.count, sizes.source))
    decoder = layout.Placement(pieces.rows, documents.target, (pieces.count, sizes.target))
    padding = layout.padding_token(vocabulary)
    return Batch(
        tokens=decoder.fill(tokens, padding),
        segments=decoder.segments,
        positions=decoder.positions,
        source=encoder.fill(source, padding),
        source_segments=encoder.segments,
        source_positions=encoder.positions,
        targets=decoder.fill(targets, padding),
        weights=(decoder.segments > 0).astype(np.float32),
    )


def cut_texts(
    totals: np.ndarray,
    parts: np.ndarray,
    numbers: tuple[np.ndarray, np.ndarray],
    seed: int,
    stream: int,
) -> np.ndarray:
    """Return the lengths of `parts` pieces of each text of `totals` tokens, one text after another.

    All divisions into pieces of at least one token are equally likely; int64 [sum of `parts`]. The
    random bits follow `numbers`: the sample of each text, and its number in its row.
    """
    text = np.repeat(np.arange(len(totals)), totals)
    place = layout.ragged_range(totals)
    sample, number = (of_text[text] for of_text in numbers)
    bits = counter_rng.random_bits(seed, sample, stream, number << 32 | place)

    # Sort the tokens of each text by random keys. The first token starts a piece, and so do those
    # with the smallest keys.
    keys = np.where(place == 0, 0, bits >> np.uint64(TEXT_BITS))
    keys |= text.astype(np.uint64) << np.uint64(64 - TEXT_BITS)
    order = np.argsort(keys, kind="stable")
    is_start = np.zeros(len(text), bool)
    is_start[order[place < parts[text]]] = True
    return np.diff(np.flatnonzero(is_start), append=len(text))
