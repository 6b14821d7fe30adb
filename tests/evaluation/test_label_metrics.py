import warnings

import numpy as np
import pytest

from jaxlm.evaluation import label_metrics

SEEDS = range(20)


def draw_labels(seed: int, labels: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return true and predicted labels that agree half of the time; some labels never occur."""
    random = np.random.default_rng(seed)
    used = random.choice(labels, random.integers(1, labels + 1), replace=False)
    targets = random.choice(used, samples)
    return targets, np.where(random.random(samples) < 0.5, targets, random.choice(used, samples))


# (targets, predicted) whose ratios have a 0 somewhere.
SINGLE_EDGES = [
    (np.zeros(4, int), np.zeros(4, int)),
    (np.zeros(4, int), np.ones(4, int)),
    (np.array([0, 1, 2, 3]), np.array([0, 0, 0, 0])),
    (np.array([0, 0, 0, 0]), np.array([0, 1, 2, 3])),
    (np.array([3]), np.array([3])),
]


@pytest.mark.parametrize(
    ("targets", "predicted"), [draw_labels(seed, 5, 30) for seed in SEEDS] + SINGLE_EDGES
)
def test_single_labels_have_the_metrics_of_scikit_learn(targets, predicted):
    metrics = pytest.importorskip("sklearn.metrics")
    confusion = label_metrics.confusion_matrix(targets, predicted, 5)
    counts = label_metrics.single_label_counts(confusion)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels that never occur
        expected = [
            metrics.accuracy_score(targets, predicted),
            metrics.f1_score(targets, predicted, average="macro", zero_division=0),
            metrics.f1_score(targets, predicted, average="micro", zero_division=0),
            metrics.matthews_corrcoef(targets, predicted),
        ]
    got = [
        label_metrics.accuracy(targets, predicted),
        label_metrics.macro_f1(counts),
        counts.micro_f1(),
        label_metrics.matthews(confusion),
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", SEEDS[:5])
def test_any_of_several_labels_have_the_metrics_of_scikit_learn(share, seed):
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(seed)
    targets = random.random((12, 4)) < 0.4
    predicted = np.where(random.random((12, 4)) < 0.6, targets, random.random((12, 4)) < share)
    if seed == 0:
        targets[:] = False
    counts = label_metrics.multi_label_counts(targets, predicted)

    got = [
        label_metrics.accuracy(targets, predicted),
        label_metrics.macro_f1(counts),
        counts.micro_f1(),
    ]
    expected = [
        metrics.accuracy_score(targets, predicted),
        metrics.f1_score(targets, predicted, average="macro", zero_division=0),
        metrics.f1_score(targets, predicted, average="micro", zero_division=0),
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_numbers_have_the_correlations_of_scipy(seed):
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(seed)
    scale = 10.0 ** random.integers(-200, 200)
    # Few different values: ties, which share the mean of their ranks.
    targets = random.integers(0, 2 + seed, 25) * 0.5
    predicted = (targets + random.normal(size=25).round(1)) * scale
    targets[0] += 100.0

    got = [label_metrics.pearson(targets, predicted), label_metrics.spearman(targets, predicted)]
    expected = [stats.pearsonr(targets, predicted)[0], stats.spearmanr(targets, predicted)[0]]
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_a_correlation_with_a_constant_is_0():
    rising, constant = np.arange(4.0), np.full(4, 0.1)
    assert label_metrics.spearman(rising, constant) == 0.0
    assert label_metrics.pearson(constant, rising) == 0.0
    assert label_metrics.pearson(rising[:1], rising[:1]) == 0.0
    assert label_metrics.spearman(rising, -rising) == pytest.approx(-1.0)


def test_no_samples_give_zeros():
    none = np.zeros(0, int)
    confusion = label_metrics.confusion_matrix(none, none, 3)
    counts = label_metrics.single_label_counts(confusion)
    assert label_metrics.accuracy(none, none) == 0.0
    assert label_metrics.macro_f1(counts) == counts.micro_f1() == 0.0
    assert label_metrics.matthews(confusion) == 0.0
    assert label_metrics.mean_squared_error(np.zeros((0, 2)), np.zeros((0, 2))) == 0.0


def test_counts_of_billions_leave_no_integer():
    confusion = np.array([[3_000_000_000, 1_000_000_000], [1_000_000_000, 3_000_000_000]])
    assert label_metrics.matthews(confusion) == pytest.approx(0.5)


# ---------------------------------------------------------------- entities

BIOES = ("O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC")
BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B", "I")

# By hand, from the definition: tags -> (type, first, last) of each entity.
ENTITIES = [
    ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
    ("I-PER I-PER O I-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),  # IOB1: I begins one
    ("I-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),  # IOB1: B parts neighbours
    ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)]),  # another type, another entity
    ("B-PER E-PER S-LOC S-LOC", [("PER", 0, 1), ("LOC", 2, 2), ("LOC", 3, 3)]),
    ("E-PER I-PER E-PER", [("PER", 0, 0), ("PER", 1, 2)]),
    ("S-PER I-PER O E-LOC", [("PER", 0, 0), ("PER", 1, 1), ("LOC", 3, 3)]),
    ("O O O", []),
]


def read_entities(tags: list[str], labels: tuple[str, ...], lengths: list[int]) -> list[tuple]:
    places = label_metrics.entity_labels(labels)
    assert places is not None
    numbers = np.array([labels.index(tag) for tag in tags], int)
    types = {int(places.types[i]): label[2:] for i, label in enumerate(labels) if label != "O"}
    found = label_metrics.find_entities(numbers, np.array(lengths), places).tolist()
    return [(types[kind], first, last) for kind, first, last in found]


@pytest.mark.parametrize(("tags", "entities"), ENTITIES)
def test_entities_are_read_from_tags(tags, entities):
    words = tags.split()
    assert read_entities(words, BIOES, [len(words)]) == entities


def test_no_entity_passes_the_end_of_a_sequence():
    tags = ["B-PER", "I-PER", "I-PER", "I-PER"]
    assert read_entities(tags, BIOES, [2, 0, 2]) == [("PER", 0, 1), ("PER", 2, 3)]


@pytest.mark.parametrize(
    ("labels", "readable"),
    [
        (BIOES, True),
        (("O", "B", "I"), True),
        (("B-a-b", "O"), True),
        (("NOUN", "VERB"), False),
        (("O", "Other"), False),
        (("O",), False),
        (("B-PER", "IPER"), False),
        (("Business", "Sport"), False),
    ],
)
def test_labels_are_places_in_entities_by_their_prefixes(labels, readable):
    assert (label_metrics.entity_labels(labels) is not None) == readable


@pytest.mark.parametrize("labels", [BIOES, BIO])
@pytest.mark.parametrize("seed", SEEDS)
def test_entity_f1_is_that_of_seqeval(labels, seed):
    seqeval = pytest.importorskip("seqeval.metrics")
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 12, 6)
    targets = random.integers(0, len(labels), lengths.sum())
    guesses = random.integers(0, len(labels), lengths.sum())
    predicted = np.where(random.random(len(targets)) < 0.8, targets, guesses)
    if seed == 0:
        targets[:] = 0
    if seed == 1:
        predicted[:] = targets[:] = 0

    places = label_metrics.entity_labels(labels)
    assert places is not None
    got = label_metrics.entity_f1(targets, predicted, lengths, places)

    names = np.array(labels)
    ends = np.cumsum(lengths)[:-1]
    rows = [[list(row) for row in np.split(names[tags], ends)] for tags in (targets, predicted)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no entities
        expected = seqeval.f1_score(*rows)
    assert got == pytest.approx(expected, abs=1e-15)
