"""Metrics of predicted labels and numbers, as scikit-learn, scipy and seqeval define them.

A ratio whose denominator is 0 is 0, as with scikit-learn's zero_division=0.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# A label of a token with its place in an entity: beginning, inside, end, single. "O": no entity.
PREFIXED = re.compile(r"([BIES])(?:-(.*))?", re.DOTALL)
OUTSIDE = "O"


class Counts(NamedTuple):
    """The counts of predictions by label: int64 arrays of one length."""

    hits: np.ndarray  # predicted and true
    predicted: np.ndarray
    true: np.ndarray

    def f1(self) -> np.ndarray:
        """Return F1 of each label, float64."""
        return divide(2 * self.hits, self.predicted + self.true)

    def micro_f1(self) -> float:
        """Return F1 of the counts of all labels together."""
        return float(divide(2 * self.hits.sum(), self.predicted.sum() + self.true.sum()))


def divide(numerator: np.ndarray | int, denominator: np.ndarray | int) -> np.ndarray:
    """Return numerator / denominator in float64, and 0 where the denominator is 0."""
    denominator = np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=denominator != 0)


# ---------------------------------------------------------------- one label of several


def accuracy(targets: np.ndarray, predicted: np.ndarray) -> float:
    """Return the share of samples whose predicted labels are all right.

    Both are [N] labels, or [N, labels] with whether each label holds; 0 without samples.
    """
    right = targets == predicted
    right = right if right.ndim == 1 else right.all(axis=1)
    return float(divide(right.sum(), len(right)))


def confusion_matrix(targets: np.ndarray, predicted: np.ndarray, labels: int) -> np.ndarray:
    """Return int64 [labels, labels]: how often each label (row) was predicted as each (column)."""
    cells = targets.astype(np.int64) * labels + predicted
    return np.bincount(cells, minlength=labels * labels).reshape(labels, labels)


def single_label_counts(confusion: np.ndarray) -> Counts:
    """Return the counts of each label that was predicted or is true, from a confusion matrix.

    Labels that are neither are left out, as scikit-learn does for its macro average.
    """
    counts = Counts(np.diagonal(confusion), confusion.sum(axis=0), confusion.sum(axis=1))
    seen = (counts.predicted + counts.true) > 0
    return Counts(*(values[seen] for values in counts))


def macro_f1(counts: Counts) -> float:
    """Return the mean of the labels' F1; 0 without labels."""
    return float(divide(counts.f1().sum(), len(counts.hits)))


def matthews(confusion: np.ndarray) -> float:
    """Return the correlation of true and predicted labels (Gorodkin 2004), -1 to 1.

    0 where all are predicted, or are, the same label, as scikit-learn's matthews_corrcoef.
    """
    # Python's integers: products of counts pass 2**63 with some millions of samples.
    samples, hits = int(confusion.sum()), int(np.trace(confusion))
    predicted = [int(count) for count in confusion.sum(axis=0)]
    true = [int(count) for count in confusion.sum(axis=1)]

    together = hits * samples - sum(p * t for p, t in zip(predicted, true, strict=True))
    spread_predicted = samples**2 - sum(count**2 for count in predicted)
    spread_true = samples**2 - sum(count**2 for count in true)
    if spread_predicted == 0 or spread_true == 0:
        return 0.0
    return together / (spread_predicted**0.5 * spread_true**0.5)


# ---------------------------------------------------------------- any of several labels


def multi_label_counts(targets: np.ndarray, predicted: np.ndarray) -> Counts:
    """Return the counts of each label; both are [N, labels] with whether each label holds."""
    targets, predicted = targets.astype(bool), predicted.astype(bool)
    return Counts((targets & predicted).sum(axis=0), predicted.sum(axis=0), targets.sum(axis=0))


# ---------------------------------------------------------------- numbers


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of values [N] from 1 on, float64; equal ones share the mean of theirs."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    return (last - (sizes - 1) / 2)[group]


def pearson(targets: np.ndarray, predicted: np.ndarray) -> float:
    """Return the linear correlation of two [N] arrays; 0 where one of them is constant.

    scipy returns nan there, by which no checkpoint could be ranked.
    """
    if len(targets) < 2 or np.ptp(targets) == 0 or np.ptp(predicted) == 0:
        return 0.0

    x, y = (np.asarray(values, np.float64) for values in (targets, predicted))
    x, y = x - x.mean(), y - y.mean()
    # Scaled before they are squared, so that neither small nor large values leave float64.
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    correlation = x @ y / np.sqrt((x @ x) * (y @ y))
    return float(np.clip(correlation, -1.0, 1.0))


def spearman(targets: np.ndarray, predicted: np.ndarray) -> float:
    """Return the correlation of the ranks of two [N] arrays; 0 where one of them is constant."""
    return pearson(average_ranks(targets), average_ranks(predicted))


def mean_squared_error(targets: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean of the squared differences of two arrays of one shape."""
    differences = np.asarray(targets, np.float64) - predicted
    return float(divide(np.square(differences).sum(), differences.size))


# ---------------------------------------------------------------- entities


class EntityLabels(NamedTuple):
    """The labels of tokens, by label, as places in entities."""

    inside: np.ndarray  # bool: of an entity
    begins: np.ndarray  # bool: B and S, which begin an entity whatever stands before
    ends: np.ndarray  # bool: E and S
    types: np.ndarray  # int64: number of the entity's type


def entity_labels(labels: Sequence[str]) -> EntityLabels | None:
    """Return the places that labels such as B-PER and O name; None where they name none.

    IOB1, IOB2, IOE and BIOES can be read. One label without a prefix, other than O, says that the
    labels are no such places.
    """
    matches = [PREFIXED.fullmatch(label) for label in labels]
    unknown = any(
        match is None and label != OUTSIDE for match, label in zip(matches, labels, strict=True)
    )
    if unknown or not any(matches):
        return None

    prefixes = [match[1] if match else OUTSIDE for match in matches]
    names = [(match[2] or "") if match else None for match in matches]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return EntityLabels(
        inside=np.array([prefix != OUTSIDE for prefix in prefixes]),
        begins=np.array([prefix in "BS" for prefix in prefixes]),
        ends=np.array([prefix in "ES" for prefix in prefixes]),
        types=np.array([numbers[name] for name in names], np.int64),
    )


def find_entities(tags: np.ndarray, lengths: np.ndarray, labels: EntityLabels) -> np.ndarray:
    """Return int64 [entities, 3]: type, first and last position of each.

    `tags` [N] are the labels of the tokens of all sequences, one after the other, and `lengths`
    theirs. The rules are those of seqeval's default mode: an entity begins at B or S, after E or S,
    after a token outside of one, and where the type changes. So a sequence that breaks the rules of
    its scheme has entities as well (seqeval 1.2.2, metrics/sequence_labeling.py, get_entities).
    """
    if not len(tags):
        return np.zeros((0, 3), np.int64)

    inside, types = labels.inside[tags], labels.types[tags]
    first = np.zeros(len(tags), bool)
    starts = np.cumsum(lengths) - lengths
    first[starts[lengths > 0]] = True

    # joined[i]: token i continues the entity of token i - 1.
    joined = np.zeros(len(tags), bool)
    joined[1:] = inside[1:] & inside[:-1] & (types[1:] == types[:-1])
    joined[1:] &= ~labels.begins[tags[1:]] & ~labels.ends[tags[:-1]]
    joined &= ~first

    begin = np.flatnonzero(inside & ~joined)
    end = np.flatnonzero(inside & ~np.append(joined[1:], False))
    return np.stack([types[begin], begin, end], axis=1)


def entity_f1(
    targets: np.ndarray, predicted: np.ndarray, lengths: np.ndarray, labels: EntityLabels
) -> float:
    """Return F1 of entities: one is right if its type, first and last token are.

    `targets` and `predicted` are [N] labels of tokens, `lengths` those of the sequences that they
    belong to. The average is micro, as seqeval.metrics.f1_score has it.
    """
    true, found = (find_entities(tags, lengths, labels) for tags in (targets, predicted))
    hits = len(set(map(tuple, true.tolist())) & set(map(tuple, found.tolist())))
    return float(divide(2 * hits, len(true) + len(found)))
