"""Classify texts with a model that has a classification head: the scores of their labels."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm import objectives
from jaxlm.classification.inputs import TextInput
from jaxlm.config import ClassifierConfig, ObjectiveConfig, UserError
from jaxlm.data.documents import Document
from jaxlm.data.examples import encode_examples
from jaxlm.decoding.engine import check_finite, text_bucket
from jaxlm.load_model import LoadedModel
from jaxlm.objectives import Objective
from jaxlm.sharding import replicated_sharding
from jaxlm.types import Batch


class LabelScores(NamedTuple):
    """The scores of a text, and how it was read."""

    # float32 [C]; of words [W, C], nan where a word was cut off, or has no token
    scores: np.ndarray
    is_cut: bool  # only a part of the text was read


class TextClassifier:
    """A model that scores texts in batches, each framed and cut as in training."""

    def __init__(self, loaded: LoadedModel, *, batch_size: int, length: int | None = None):
        """Prepare for batches of `batch_size` texts of at most `length` tokens.

        By default a run reads as many as its samples had, another model as many as its positions.
        Raises UserError for a model without a classification head, and for a length that it can't
        read.
        """
        self.loaded, self.batch_size = loaded, batch_size
        self.config = require_classifier(loaded)
        self.length = choose_length(loaded, length)
        self.objective = self._build(self.length)
        sharding = replicated_sharding(loaded.params)
        self._apply = jax.jit(loaded.model.apply, out_shardings=sharding)

    def __call__(self, inputs: Sequence[TextInput]) -> list[LabelScores]:
        """Return the scores of each text. DivergedError where they are not finite."""
        examples, words = encode_inputs(inputs, self.config, self.loaded)
        layout = self.objective.examples
        assert layout is not None, "an objective of examples"
        lengths = np.array([[len(part) for part in parts] for parts in examples], np.int64)
        sizes, is_cut = layout.measure(lengths)

        # Texts of similar lengths share a batch, which is as long as the longest of them.
        scores: dict[int, np.ndarray] = {}
        order = np.argsort(-sizes, kind="stable").tolist()
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            batch = self._make_batch(
                [examples[number] for number in numbers], int(sizes[numbers[0]])
            )
            rows = np.asarray(self._apply(self.loaded.params, batch))
            check_finite(np.isfinite(rows[: len(numbers)]).all())
            for row, number in enumerate(numbers):
                scores[number] = rows[row]
                if self.config.kind == "token":
                    is_target = np.asarray(batch.weights)[row] > 0
                    count = len(inputs[number].words)
                    scores[number] = place_words(rows[row][is_target], words[number], count)
        return [LabelScores(scores[row], bool(cut)) for row, cut in enumerate(is_cut)]

    def _build(self, length: int) -> Objective:
        """Return the objective that lays out samples of `length` tokens."""
        config, vocabulary = layout_objective(self.loaded), self.loaded.tokenizer.vocabulary
        return objectives.build(config, length, vocabulary, self.loaded.model.config)

    def _make_batch(self, examples: Sequence[Sequence[np.ndarray]], size: int) -> Batch:
        """Return the batch of examples of at most `size` tokens; it has `batch_size` rows."""
        length = min(self.length, text_bucket(self.loaded.model.config, int(size)))
        objective = self._build(length)
        assert objective.examples is not None, "an objective of examples"
        windows = np.zeros((self.batch_size, objective.window), np.int32)
        for row, window in enumerate(windows):
            objective.examples.fill(window, examples[min(row, len(examples) - 1)])
        return objective.make_batch(windows, np.arange(self.batch_size), 0)


def require_classifier(loaded: LoadedModel) -> ClassifierConfig:
    """Return the config of a model's classification head. Raises UserError if it has none."""
    classifier = loaded.model.config.classifier
    if classifier.kind == "none":
        raise UserError(
            f"{loaded.path}: has no classification head: it predicts tokens "
            "(jaxlm.generate writes texts, fills masks and makes vectors)"
        )
    return classifier


def choose_length(loaded: LoadedModel, length: int | None) -> int:
    """Return the most tokens of a text that are read, by default or as asked for."""
    model = loaded.model.config
    if length is None:
        return model.context_length if loaded.config is None else loaded.config.data.sequence_length
    if model.positions == "learned" and length > model.context_length:
        raise UserError(
            f"--length {length}: the model's positions end at {model.context_length} "
            "(model.context_length)"
        )
    return length


def layout_objective(loaded: LoadedModel) -> ObjectiveConfig:
    """Return the objective by which texts are laid out, cut where they are too long."""
    if loaded.config is not None:
        return dataclasses.replace(loaded.config.objective, class_weights=(), too_long="cut")
    starts_with_pad = loaded.special.decoder_start_id == loaded.tokenizer.vocabulary.pad
    decoder_start = None
    if loaded.model.config.family == "encoder_decoder":
        decoder_start = "pad" if starts_with_pad else "end_of_text"
    return ObjectiveConfig(kind="classify", decoder_start=decoder_start)


def encode_inputs(
    inputs: Sequence[TextInput], classifier: ClassifierConfig, loaded: LoadedModel
) -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
    """Return the parts of each example, and the number of the word that each target belongs to."""
    documents = [
        Document(each.place, each.text, (each.pair or "",), facts=describe_input(each, classifier))
        for each in inputs
    ]
    examples, words = encode_examples(documents, loaded.tokenizer), []
    for parts in examples:
        if classifier.kind == "token":  # numbered by their labels, of which each has another
            numbers = parts[-1]
            words.append(numbers[numbers > 0] - 1)
            parts[-1] = np.minimum(numbers, 1)
    return examples, words


def describe_input(text: TextInput, classifier: ClassifierConfig) -> str:
    """Return the facts of an example without known labels, as JSON."""
    if classifier.kind == "token":
        return json.dumps(
            {
                "words": [len(word) for word in text.words],
                "labels": list(range(len(text.words))),
            }
        )
    facts: dict[str, Any] = {"pair": text.pair is not None}
    if classifier.problem == "regression":
        facts["targets"] = [0.0] * len(classifier.labels)
    else:
        facts["labels"] = [] if classifier.problem == "multi_label" else [0]
    return json.dumps(facts)


def place_words(scores: np.ndarray, words: np.ndarray, count: int) -> np.ndarray:
    """Return the scores of `count` words, [count, C]: nan where a word has none.

    `scores` are those of the first tokens of `words`, which may go on beyond them.
    """
    placed = np.full((count, scores.shape[-1]), np.nan, np.float32)
    placed[words[: len(scores)]] = scores
    return placed
