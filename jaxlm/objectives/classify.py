"""Classification: the labels of a text, of a pair of texts, or of the tokens of a text.

A text stands between the tokens that its tokenizer puts there. A tokenizer that puts none gives the
begin_of_text, where there is one, and behind each text of an encoder or an encoder-decoder the
end_of_text.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxlm.config import ConfigError, ModelConfig, ObjectiveConfig
from jaxlm.objectives import layout
from jaxlm.objectives.objective import (
    SECOND_TEXT,
    TEXT,
    ExampleLayout,
    Frame,
    Objective,
    Vocabulary,
)
from jaxlm.types import Batch

# (window of zeros int32 [n], numbers of the labels int32, places of the text's tokens): fills the
# columns of a window that the targets are read from
FillTargets = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


def build(
    config: ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary, model: ModelConfig
) -> Objective:
    """Build the objective for the head `model.classifier`.

    Batches have tokens [B, L] and lengths [B]; token_types [B, L] where the model has any. Of
    encoder-decoders these are source and source_lengths, and the decoder reads the same tokens,
    shifted by one. targets and weights are [B, 1] for labels of texts, int32 and float32;
    multi_label and regression have float32 targets [B, 1, labels]. For labels of tokens both are
    [B, L], with weights at the first token of each word that has one.

    Raises `ConfigError` at `objective.class_weights` unless there is one for each label, at
    `data.sequence_length` where there is no room for a text.
    """
    classifier = model.classifier
    count = len(classifier.labels)
    class_weights = check_class_weights(config, model)
    frames = choose_frames(vocabulary, model)
    for frame in frames:
        if sequence_length <= frame.added:
            reason = f"{sequence_length} leaves no room for text beside {frame.added} tokens"
            raise ConfigError("data.sequence_length", reason)

    of_tokens = classifier.kind == "token"
    columns = sequence_length if of_tokens else label_columns(classifier.problem, count)
    has_types = model.token_types > 1

    def measure(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        text, second, _ = lengths.T
        is_pair = (second > 0) & (not of_tokens)
        added = np.where(is_pair, frames[1].added, frames[0].added)
        sizes = text + second + added
        is_cut = sizes > sequence_length
        sizes = np.minimum(sizes, sequence_length)
        if config.too_long == "drop":
            sizes[is_cut] = 0
        return sizes, is_cut

    def fill(window: np.ndarray, parts: Sequence[np.ndarray]) -> None:
        text, second, numbers = parts
        has_pair = not of_tokens and bool(numbers[0])
        frame = frames[has_pair]
        texts = cut_pair(text, second, sequence_length - frame.added)
        ids, types, places = apply_frame(frame, texts)

        window[0] = len(ids)
        window[1 : 1 + len(ids)] = ids
        window[1 + sequence_length :][: len(types)] = types
        targets = window[1 + 2 * sequence_length :]
        if of_tokens:
            targets[places] = numbers[: len(places)]
        elif classifier.problem == "multi_label":
            targets[numbers[1:]] = 1
        else:
            targets[:] = numbers[1:]

    def parts_of(text: np.ndarray) -> list[np.ndarray]:
        numbers = np.ones_like(text) if of_tokens else np.zeros(1 + columns, np.int32)
        return [text, text[:0], numbers[:1] if classifier.problem == "multi_label" else numbers]

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        del samples, seed
        lengths = windows[:, 0]
        tokens, types, numbers = np.split(
            windows[:, 1:], [sequence_length, 2 * sequence_length], axis=1
        )
        is_text = np.arange(sequence_length) < lengths[:, None]
        tokens = np.where(is_text, tokens, layout.padding_token(vocabulary)).astype(np.int32)
        targets, weights = read_targets(numbers, classifier.problem, of_tokens, class_weights)
        batch = Batch(tokens=tokens, lengths=lengths.copy(), targets=targets, weights=weights)
        if has_types:
            batch = batch._replace(token_types=np.ascontiguousarray(types))
        if model.family != "encoder_decoder":
            return batch
        shifted = layout.shift_right(tokens, config, vocabulary)
        return batch._replace(tokens=shifted, source=tokens, source_lengths=batch.lengths)

    return Objective(
        window=1 + 2 * sequence_length + columns,
        stride=1,
        length=sequence_length,
        source_length=sequence_length if model.family == "encoder_decoder" else 0,
        predictions=sequence_length if of_tokens else 1,
        make_batch=make_batch,
        random=False,
        examples=ExampleLayout(measure, fill, parts_of),
    )


def label_columns(problem: str, labels: int) -> int:
    """Return how many numbers the labels of a text take in a window."""
    return {"single_label": 1, "multi_label": labels, "regression": 2 * labels}[problem]


def check_class_weights(config: ObjectiveConfig, model: ModelConfig) -> np.ndarray:
    """Return the weight of each label, float32 [labels]. Raises ConfigError."""
    labels, weights = model.classifier.labels, config.class_weights
    if not weights:
        return np.ones(len(labels), np.float32)
    if model.classifier.problem != "single_label":
        reason = f"are only used with problem='single_label', got {model.classifier.problem!r}"
        raise ConfigError("objective.class_weights", reason)
    if len(weights) != len(labels):
        reason = f"{len(weights)} weights for {len(labels)} labels (model.classifier.labels)"
        raise ConfigError("objective.class_weights", reason)
    return np.array(weights, np.float32)


def choose_frames(vocabulary: Vocabulary, model: ModelConfig) -> tuple[Frame, Frame]:
    """Return the tokens around a text, and around a pair of texts."""
    if vocabulary.text_frame is not None and vocabulary.pair_frame is not None:
        return vocabulary.text_frame, vocabulary.pair_frame
    begin = [] if vocabulary.begin_of_text is None else [vocabulary.begin_of_text]
    end = [] if model.family == "decoder" else [vocabulary.end_of_text]
    between = [vocabulary.end_of_text]
    single, pair = [*begin, TEXT, *end], [*begin, TEXT, *between, SECOND_TEXT, *end]
    return Frame((*single,), (0,) * len(single)), Frame((*pair,), (0,) * len(pair))


def cut_pair(first: np.ndarray, second: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two texts without their ends, so that both have at most `room` tokens.

    The longer one is cut until both are equal, then both, as by "longest first" of the library
    `tokenizers`.
    """
    if len(first) + len(second) <= room:
        return first, second
    shorter = min(len(first), len(second))
    longer = max(shorter, room - shorter)
    if shorter > room or shorter + longer > room:
        shorter = room // 2
        longer = shorter + room % 2
    if len(first) <= len(second):
        return first[:shorter], second[:longer]
    return first[:longer], second[:shorter]


def apply_frame(
    frame: Frame, texts: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids and types of framed texts, and the places of the first text's tokens."""
    ids, types, places = [], [], np.zeros(0, np.int64)
    count = 0
    for number, kind in zip(frame.ids, frame.types, strict=True):
        part = np.array([number]) if number >= 0 else texts[number == SECOND_TEXT]
        if number == TEXT:
            places = count + np.arange(len(part))
        ids.append(part)
        types.append(np.full(len(part), kind))
        count += len(part)
    return np.concatenate(ids), np.concatenate(types), places


def read_targets(
    numbers: np.ndarray, problem: str, of_tokens: bool, class_weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return targets and weights of the columns that `fill` wrote."""
    ones = np.ones((len(numbers), 1), np.float32)
    if of_tokens:
        targets = np.maximum(numbers - 1, 0).astype(np.int32)
        return targets, np.where(numbers > 0, class_weights[targets], 0).astype(np.float32)
    if problem == "regression":
        halves = np.ascontiguousarray(numbers.astype("<u2"))
        return halves.view("<f4").astype(np.float32)[:, None, :], ones
    if problem == "multi_label":
        return numbers.astype(np.float32)[:, None, :], ones
    targets = np.ascontiguousarray(numbers)
    return targets, class_weights[targets]
