"""Span corruption: spans of the text are cut out, a sentinel stands for each, and the decoder writes them.

T5 (arXiv 1910.10683, section 3.1.4). The text ends with a span, so a single span is always its end. Special tokens are text here: an
end of text that the window holds may lie in a span.
"""

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from jaxlm import config, counter_rng
from jaxlm.config import ConfigError
from jaxlm.objectives import layout, random_ops
from jaxlm.objectives.objective import Objective, Vocabulary
from jaxlm.types import Batch


class Sizes(NamedTuple):
    """Tokens of one sample."""

    window: int  # of raw text
    noise: int  # of them, in spans
    spans: int

    @property
    def source(self) -> int:
        """What the encoder reads: the rest of the text, a sentinel per span and end_of_text."""
        return self.window - self.noise + self.spans + 1

    @property
    def target(self) -> int:
        """What the decoder writes: a sentinel before each span and end_of_text."""
        return self.noise + self.spans + 1


def build(
    settings: config.ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary
) -> Objective:
    """Windows of as many tokens as corrupted fill the encoder's S: 568 for S = 512, and T = 114 with T5's settings.

    Batches have source [B, S] and tokens, targets, weights [B, T]. `ConfigError` if spans don't fit into the text or there are
    more of them than sentinels.
    """
    sizes = fitting(sequence_length, settings)
    if sizes.spans > sizes.window - sizes.noise:
        reason = f"{sizes.spans} spans with {sizes.noise} of {sizes.window} tokens leave no text between some of them"
        raise ConfigError("objective.mean_span", reason)
    if sizes.spans > len(vocabulary.sentinels):
        raise ConfigError(
            "tokenizer.sentinels",
            f"a sample has {sizes.spans} spans, but there are {len(vocabulary.sentinels)} sentinels",
        )

    def make(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        source, target = corrupted(windows, samples, seed, sizes, vocabulary.sentinels)
        targets = layout.ended(target, vocabulary)
        return Batch(
            tokens=layout.shifted(targets, settings, vocabulary),
            source=layout.ended(source, vocabulary),
            targets=targets,
            weights=np.ones(targets.shape, np.float32),
        )

    return Objective(sizes.window, sizes.window, sizes.target, sizes.source, sizes.target, make)


def fitting(sequence_length: int, settings: config.ObjectiveConfig) -> Sizes:
    """The longest window whose corrupted text has `sequence_length` tokens; `ConfigError` at `data.sequence_length` if none has.

    One token more of text lengthens the source by one (of text, or by a sentinel for a new span) or leaves it as it is.
    So every length from that of the shortest window on is met exactly.
    """
    shortest = 2  # a token that stays and one that goes
    if sequence_length < sizes_of(shortest, settings).source:
        raise ConfigError(
            "data.sequence_length",
            f"{sequence_length} is too short for one span, a token of text and the end",
        )
    too_long = (
        int((sequence_length + 1) / (1 - settings.noise)) + shortest + 1
    )  # its text alone is longer
    windows = range(shortest, too_long)
    behind = bisect_right(
        windows, sequence_length, key=lambda window: sizes_of(window, settings).source
    )
    return sizes_of(windows[behind - 1], settings)


def sizes_of(window: int, settings: config.ObjectiveConfig) -> Sizes:
    """Noise and spans of so many tokens of text, rounded as in T5's `random_spans_noise_mask`."""
    noise = min(max(round(window * settings.noise), 1), window - 1)
    return Sizes(window, noise, max(round(noise / settings.mean_span), 1))


def corrupted(
    windows: np.ndarray, samples: np.ndarray, seed: int, sizes: Sizes, sentinels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """int32 [B, window] -> source and target without their ends, int32 [B, S - 1] and [B, T - 1].

    Source and target are the same text with every other piece replaced by its sentinel: in one the spans, in the other the rest.
    """
    kept = random_ops.composition(
        seed, samples, counter_rng.SPAN_TEXT, sizes.window - sizes.noise, sizes.spans
    )
    cut = random_ops.composition(seed, samples, counter_rng.SPAN_NOISE, sizes.noise, sizes.spans)
    lengths = np.stack([kept, cut], axis=2).ravel()
    pieces = np.tile(np.arange(2 * sizes.spans), len(windows))
    piece = np.repeat(pieces, lengths).reshape(
        windows.shape
    )  # 2 i: text before span i, 2 i + 1: span i
    starts, in_span = np.diff(piece, axis=1, prepend=-1) != 0, piece % 2 == 1
    stand_in = sentinels[piece // 2]
    source = np.where(in_span, stand_in, windows)[starts | ~in_span]
    target = np.where(in_span, windows, stand_in)[starts | in_span]
    return source.reshape(len(windows), -1), target.reshape(len(windows), -1)
