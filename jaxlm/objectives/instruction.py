"""Instruction tuning: the assistant's turns of a conversation (Ouyang et al., arXiv 2203.02155).

A decoder learns all turns from what comes before them. An encoder-decoder writes the last turn from
all that comes before it, as FLAN-T5 does (Chung et al., arXiv 2210.11416).

An example has four parts: the ids before the last turn, of that turn and after it, and the runs of
the tokens before it that don't count and that do, in turn.
"""

from collections.abc import Sequence

import numpy as np

from jaxlm.config import ModelConfig, ObjectiveConfig
from jaxlm.objectives import layout
from jaxlm.objectives.objective import ExampleLayout, Objective, Vocabulary
from jaxlm.types import Batch


def build(
    config: ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary, model: ModelConfig
) -> Objective:
    """Build the objective for a decoder, or an encoder-decoder.

    Of a decoder, batches have tokens, targets and weights [B, L]; where examples share rows,
    segments and positions too. Of an encoder-decoder they have source [B, L], source_lengths [B],
    and tokens, targets and weights [B, L]; each text ends with its end_of_text.
    """
    if model.family == "encoder_decoder":
        return build_pairs(config, sequence_length, vocabulary)
    return build_turns(config, sequence_length, vocabulary)


# Decoders


def build_turns(config: ObjectiveConfig, length: int, vocabulary: Vocabulary) -> Objective:
    """Build the objective of a decoder.

    Of an example that is too long the start of the prompt is cut, but for its begin_of_text and one
    more token, and then the end of the last turn. A window has the number of tokens, L + 1 tokens,
    and which of them count.
    """

    def measure(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before, turn, after, _ = lengths.T
        tokens = before + turn + after
        is_cut = tokens - 1 > length
        sizes = np.minimum(tokens - 1, length)
        has_targets = (turn > 1) | ((turn > 0) & (before > 0))
        return drop_sizes(config, sizes, is_cut, has_targets), is_cut

    def fill(window: np.ndarray, parts: Sequence[np.ndarray]) -> None:
        before, turn, after, runs = parts
        tokens = np.concatenate([before, turn, after])
        counts = np.concatenate([expand_runs(runs), np.ones_like(turn), np.zeros_like(after)])
        over = len(tokens) - (length + 1)
        if over > 0:
            kept = slice(min(over, max(len(before) - 1, 0)), None)
            begin = tokens[0]
            tokens, counts = tokens[kept][: length + 1], counts[kept][: length + 1]
            if kept.start and begin == vocabulary.begin_of_text:
                tokens[0], counts[0] = begin, 0

        window[0] = len(tokens)
        window[1 : 1 + len(tokens)] = tokens
        window[2 + length :][: len(counts)] = counts

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        del samples, seed
        tokens, targets, weights = read_windows(windows)
        is_text = np.arange(length) < windows[:, :1] - 1
        padding = layout.padding_token(vocabulary)
        return Batch(
            tokens=np.where(is_text, tokens, padding).astype(np.int32),
            targets=np.where(is_text, targets, padding).astype(np.int32),
            weights=np.where(is_text, weights, 0).astype(np.float32),
        )

    def read_windows(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tokens, counts = windows[:, 1 : 2 + length], windows[:, 2 + length :]
        return tokens[:, :-1], tokens[:, 1:], counts[:, 1:]

    def pack(windows: np.ndarray, rows: np.ndarray, count: int) -> Batch:
        sizes = windows[:, 0].astype(np.int64) - 1
        placement = layout.Placement(rows, sizes, (count, length))
        is_text = np.arange(length) < sizes[:, None]
        tokens, targets, weights = (columns[is_text] for columns in read_windows(windows))
        padding = layout.padding_token(vocabulary)
        return Batch(
            tokens=placement.fill(tokens, padding),
            segments=placement.segments,
            positions=placement.positions,
            targets=placement.fill(targets, padding),
            weights=placement.fill(weights).astype(np.float32),
        )

    def parts_of(text: np.ndarray) -> list[np.ndarray]:
        return [text[:1], text[1:], text[:0], np.ones(1, np.int32)]

    return Objective(
        window=1 + 2 * (length + 1),
        stride=1,
        length=length,
        source_length=0,
        predictions=length,
        make_batch=make_batch,
        random=False,
        examples=ExampleLayout(measure, fill, parts_of, pack),
    )


def expand_runs(runs: np.ndarray) -> np.ndarray:
    """Return 0 and 1 for each token of runs that don't count and that do, in turn; int32."""
    return np.repeat(np.arange(len(runs), dtype=np.int32) % 2, runs)


def drop_sizes(
    config: ObjectiveConfig, sizes: np.ndarray, is_cut: np.ndarray, has_targets: np.ndarray
) -> np.ndarray:
    """Return the sizes of examples, 0 for those that are left out."""
    is_kept = has_targets & (~is_cut if config.too_long == "drop" else True)
    return np.where(is_kept, sizes, 0)


# Encoder-decoders


def build_pairs(config: ObjectiveConfig, length: int, vocabulary: Vocabulary) -> Objective:
    """Build the objective of an encoder-decoder.

    Of a prompt that is too long the start is cut, of a turn the end. A window has source and target
    of L tokens, each after its length.
    """
    end = np.array([vocabulary.end_of_text], np.int32)

    def measure(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before, turn, _, _ = lengths.T
        is_cut = np.maximum(before, turn) + 1 > length
        sizes = np.minimum(np.maximum(before, turn) + 1, length)
        return drop_sizes(config, sizes, is_cut, turn > 0), is_cut

    def fill(window: np.ndarray, parts: Sequence[np.ndarray]) -> None:
        before, turn, _, _ = parts
        source, target = add_end(before), add_end(turn)
        source = source[-length:]
        if len(target) > length:
            target = np.concatenate([target[: length - 1], end])
        for place, text in ((0, source), (1 + length, target)):
            window[place] = len(text)
            window[place + 1 :][: len(text)] = text

    def add_end(text: np.ndarray) -> np.ndarray:
        ends = len(text) > 0 and text[-1] == vocabulary.end_of_text
        return text if ends else np.concatenate([text, end])

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        del samples, seed
        source, source_lengths = read_text(windows[:, : 1 + length])
        targets, lengths = read_text(windows[:, 1 + length :])
        is_text = np.arange(length) < lengths[:, None]
        return Batch(
            tokens=layout.shift_right(targets, config, vocabulary),
            source=source,
            source_lengths=source_lengths,
            targets=targets,
            weights=is_text.astype(np.float32),
        )

    def read_text(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lengths, text = columns[:, 0].copy(), columns[:, 1:]
        is_text = np.arange(length) < lengths[:, None]
        return np.where(is_text, text, layout.padding_token(vocabulary)).astype(np.int32), lengths

    def parts_of(text: np.ndarray) -> list[np.ndarray]:
        return [text, text, text[:0], np.array([len(text)], np.int32)]

    return Objective(
        window=2 * (length + 1),
        stride=1,
        length=length,
        source_length=length,
        predictions=length,
        make_batch=make_batch,
        random=False,
        examples=ExampleLayout(measure, fill, parts_of),
    )
