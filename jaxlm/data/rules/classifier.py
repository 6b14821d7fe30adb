"""Score the quality of a text by a classifier that the user trains on good and bad documents.

It is a logistic regression over the words of a text and their pairs, as in GPT-3 (Brown et al.
2020, arXiv 2005.14165, appendix A). Words and pairs are hashed to the numbers of the weights
(Weinberger et al. 2009, arXiv 0902.2206). The weights are trained by AdaGrad (Duchi et al. 2011).
The same documents give the same bits.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
from safetensors.numpy import save

from jaxlm.config import UserError
from jaxlm.data.rules.words import hash_ngrams, hash_words
from jaxlm.files import output_writer

FORMAT = "jaxlm quality classifier 1"
FEATURES = 1 << 18  # weights
LONGEST_TEXT = 1 << 18  # characters that are read of a text
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 10, 64, 0.2, 1e-5
HELD_OUT = 10  # one document in so many is not trained on
DOCUMENTS_AT_LEAST = 20  # of each class
WORD = re.compile(r"\w+|[^\w\s]")


class Features(NamedTuple):
    """The words and pairs of a text: the numbers of their weights, and values of length 1."""

    numbers: np.ndarray  # int64 [n], different ones
    values: np.ndarray  # float32 [n]


class Classifier(NamedTuple):
    """A trained classifier."""

    weights: np.ndarray  # float32 [FEATURES]
    bias: float
    report: dict[str, float]  # documents of each class, held-out documents and accuracy on these

    def score(self, text: str) -> float:
        """Return the probability, in [0, 1], that a text belongs to the good documents."""
        features = find_features(text)
        logit = float(self.weights[features.numbers] @ features.values) + self.bias
        return float(sigmoid(np.array(logit)))

    def save(self, path: Path) -> None:
        """Write the classifier as a safetensors file with its report as metadata.

        Raises OSError.
        """
        tensors = {"weights": self.weights, "bias": np.array([self.bias], np.float32)}
        # One key alone: the library writes several in an order that changes.
        content = save(tensors, {FORMAT: json.dumps(self.report)})
        with output_writer(path) as file:
            file.write(content)


def load_classifier(path: Path) -> Classifier:
    """Return the classifier of a file. Raises UserError where it is none."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:  # type: ignore[attr-defined]
            metadata = file.metadata() or {}
            if FORMAT not in metadata or set(file.keys()) != {"weights", "bias"}:
                raise UserError(f"{path}: is no quality classifier of jaxlm")
            weights, bias = file.get_tensor("weights"), file.get_tensor("bias")
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(f"{path}: {reason}") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: is no safetensors file") from error

    if weights.shape != (FEATURES,) or bias.shape != (1,) or weights.dtype != np.float32:
        raise UserError(f"{path}: has weights of another shape than {FEATURES:,} float32")
    if not np.isfinite(weights).all() or not np.isfinite(bias).all():
        raise UserError(f"{path}: has weights that are not finite")
    return Classifier(weights, float(bias[0]), json.loads(metadata[FORMAT]))


def train_classifier(good: Iterable[str], bad: Iterable[str]) -> Classifier:
    """Return a classifier of good and bad texts, with its accuracy on every tenth of either.

    Both classes count the same, whatever their sizes. Raises UserError for too few texts.
    """
    features: list[Features] = []
    sizes = []
    for texts in (good, bad):
        before = len(features)
        features += map(find_features, texts)
        sizes.append(len(features) - before)
    if min(sizes) < DOCUMENTS_AT_LEAST:
        raise UserError(
            f"a classifier needs at least {DOCUMENTS_AT_LEAST} good and bad documents, "
            f"got {sizes[0]:,} good and {sizes[1]:,} bad"
        )

    is_good = np.repeat([True, False], sizes)
    is_held_out = np.concatenate([np.arange(size) % HELD_OUT == HELD_OUT - 1 for size in sizes])
    class_weights = np.where(is_good, len(features) / sizes[0], len(features) / sizes[1]) / 2
    trained = np.flatnonzero(~is_held_out)
    weights, bias = fit(features, is_good, class_weights, trained)

    logits = [float(weights[part.numbers] @ part.values) + bias for part in features]
    is_right = (np.array(logits) >= 0) == is_good
    report = {
        "good": sizes[0],
        "bad": sizes[1],
        "held_out": int(is_held_out.sum()),
        "accuracy_good": float(is_right[is_held_out & is_good].mean()),
        "accuracy_bad": float(is_right[is_held_out & ~is_good].mean()),
    }
    report["accuracy"] = (report["accuracy_good"] + report["accuracy_bad"]) / 2
    return Classifier(weights, bias, report)


def find_features(text: str) -> Features:
    """Return the words and pairs of a text, in lower case; log(1 + count) of each, of length 1."""
    words = hash_words(WORD.findall(text[:LONGEST_TEXT].lower()))
    hashes = np.concatenate([hash_ngrams(words, 1), hash_ngrams(words, 2)])
    numbers, counts = np.unique((hashes % np.uint64(FEATURES)).astype(np.int64), return_counts=True)
    values = np.log1p(counts).astype(np.float32)
    return Features(numbers, values / max(float(np.linalg.norm(values)), 1e-9))


def fit(
    features: list[Features], is_good: np.ndarray, class_weights: np.ndarray, trained: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return weights, float32 [FEATURES], and bias that tell the trained documents apart."""
    weights, squares = np.zeros(FEATURES), np.full(FEATURES, 1e-8)
    bias, bias_square = 0.0, 1e-8
    for batch in batches(trained):
        numbers = np.concatenate([features[document].numbers for document in batch])
        values = np.concatenate([features[document].values for document in batch])
        rows = np.repeat(np.arange(len(batch)), [len(features[d].numbers) for d in batch])

        logits = np.bincount(rows, weights[numbers] * values, len(batch)) + bias
        errors = (sigmoid(logits) - is_good[batch]) * class_weights[batch] / len(batch)
        used, places = np.unique(numbers, return_inverse=True)
        gradient = np.bincount(places, errors[rows] * values) + WEIGHT_DECAY * weights[used]

        squares[used] += gradient**2
        weights[used] -= LEARNING_RATE * gradient / np.sqrt(squares[used])
        bias_square += errors.sum() ** 2
        bias -= LEARNING_RATE * errors.sum() / np.sqrt(bias_square)
    return weights.astype(np.float32), float(np.float32(bias))


def batches(trained: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the numbers of the documents of each step, in a new fixed order in each epoch."""
    random = np.random.Generator(np.random.PCG64(20_260_102))
    for _ in range(EPOCHS):
        order = random.permutation(trained)
        for start in range(0, len(order), BATCH):
            yield order[start : start + BATCH]


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the logistic function, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * logits))
