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
from jaxlm.objectives.objective import Objective, Vocabulary
from jaxlm.types import Batch

LONGEST_WINDOW = 100  # times the tokens of its source


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
    tokens, targets, weights [B, T]. Raises `ConfigError` if the spans don't fit into the text or
    there are more of them than sentinels.
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

    return Objective(
        window=sizes.window,
        stride=sizes.window,
        length=sizes.target,
        source_length=sizes.source,
        predictions=sizes.target,
        make_batch=make_batch,
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
