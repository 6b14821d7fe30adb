"""The labels of texts as a table and as JSON data, from the scores of a model. Imports no jax."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.classification.inputs import TextInput
from jaxlm.columns import align_columns
from jaxlm.config import ClassifierConfig
from jaxlm.data.visible_text import escape_text

MOST_COLUMNS = 6  # of probabilities; a classifier of more labels has its best ones shown
BEST_LABELS = 3
TEXT_COLUMNS = 40  # characters of a text in the table


def label_probabilities(scores: np.ndarray, problem: str) -> np.ndarray:
    """Return the probabilities of scores [..., C], float64: they add up to 1, or each is alone."""
    scores = np.asarray(scores, np.float64)
    if problem == "multi_label":
        return np.exp(-np.logaddexp(0.0, -scores))
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def build_result(
    text: TextInput, scores: np.ndarray, *, is_cut: bool, classifier: ClassifierConfig
) -> dict[str, Any]:
    """Return the result of a text as JSON data.

    label and probabilities; labels and probabilities (multi_label); values (regression); or tokens,
    a list of word, label and probabilities, whose last two are null where the word was not read.
    """
    cut = {"cut": True} if is_cut else {}
    if classifier.kind != "token":
        return describe_scores(scores, classifier) | cut

    nothing = {"label": None, "probabilities": None}
    tokens = [
        {"word": word} | (nothing if np.isnan(own).any() else describe_scores(own, classifier))
        for word, own in zip(text.words, scores, strict=True)
    ]
    return {"tokens": tokens} | cut


def describe_scores(scores: np.ndarray, classifier: ClassifierConfig) -> dict[str, Any]:
    """Return the labels of scores [C], as JSON data."""
    labels = classifier.labels
    if classifier.problem == "regression":
        return {"values": dict(zip(labels, map(float, scores), strict=True))}

    probabilities = label_probabilities(scores, classifier.problem).tolist()
    by_label = dict(zip(labels, probabilities, strict=True))
    if classifier.problem == "multi_label":
        holding = [label for label, score in zip(labels, scores, strict=True) if score > 0]
        return {"labels": holding, "probabilities": by_label}
    return {"label": labels[int(np.argmax(scores))], "probabilities": by_label}


def format_results(
    inputs: Sequence[TextInput], results: Sequence[dict[str, Any]], classifier: ClassifierConfig
) -> str:
    """Return the results as a table: a line for each text, or for each word."""
    heads = list(classifier.labels) if len(classifier.labels) <= MOST_COLUMNS else ["most likely"]
    if classifier.problem == "regression":
        heads = list(classifier.labels)
    label = [] if classifier.problem == "regression" else ["label"]
    lines = [["word" if classifier.kind == "token" else "text", *label, *heads]]

    for text, result in zip(inputs, results, strict=True):
        if classifier.kind != "token":
            lines.append([shorten_text(text), *format_labels(result, heads)])
            continue
        lines += [
            [escape_text(token["word"]), *format_labels(token, heads)] for token in result["tokens"]
        ]
        lines.append([""] * len(lines[0]))  # between texts
    return align_columns([[escape_text(cell) for cell in lines[0]], *lines[1:]]).rstrip("\n")


def format_labels(result: dict[str, Any], heads: Sequence[str]) -> list[str]:
    """Return the cells of a text or a word beside its name."""
    if "values" in result:
        return [f"{result['values'][label]:.4f}" for label in heads]
    probabilities = result["probabilities"]
    if probabilities is None:
        return ["not read", *[""] * len(heads)]

    labels = [result["label"]] if "label" in result else result["labels"]
    name = ", ".join(map(escape_text, labels)) or "none"
    if heads != ["most likely"]:
        return [name, *(f"{probabilities[label]:.4f}" for label in heads)]
    best = sorted(probabilities, key=lambda label: -probabilities[label])[:BEST_LABELS]
    return [name, ", ".join(f"{escape_text(each)} {probabilities[each]:.4f}" for each in best)]


def shorten_text(text: TextInput) -> str:
    """Return the beginning of a text, and of its pair, for the table."""
    whole = text.text if text.pair is None else f"{text.text} | {text.pair}"
    shown = escape_text(whole[: TEXT_COLUMNS + 1]) if whole else ""
    return shown if len(shown) <= TEXT_COLUMNS else f"{shown[: TEXT_COLUMNS - 3]}..."


def describe_cuts(
    inputs: Sequence[TextInput], results: Sequence[dict[str, Any]], length: int
) -> str:
    """Return a note on texts of which only a part was read; "" where there are none."""
    places = [text.place for text, result in zip(inputs, results, strict=True) if "cut" in result]
    if not places:
        return ""
    others = f" and {len(places) - 1:,} more" if len(places) > 1 else ""
    verb = "are" if others else "is"
    return f"{places[0]}{others} {verb} longer than {length:,} tokens: only these are read"
