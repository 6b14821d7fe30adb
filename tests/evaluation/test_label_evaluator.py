"""The figures of a classifier: of problems, on meshes, and in several processes."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from support import multiprocess, tiny, tiny_classifier, tiny_run
from support.marks import quick_and_slow

from jaxlm.config import ClassifierConfig, Config, EvaluationConfig
from jaxlm.data.example_array import ExampleArray, ListedParts
from jaxlm.evaluation.label_evaluator import LabelEvaluator
from jaxlm.evaluation.label_scores import LabelPredictions, figure_names, score_labels
from jaxlm.objectives import Vocabulary, build

LABELS = ("O", "B-PER", "I-PER")
PROBLEMS = {
    "single_label": ClassifierConfig(kind="sequence", labels=LABELS),
    "multi_label": ClassifierConfig(kind="sequence", labels=LABELS, problem="multi_label"),
    "regression": ClassifierConfig(kind="sequence", labels=LABELS, problem="regression"),
    "token": ClassifierConfig(kind="token", labels=LABELS),
}
MESHES: dict[str, dict[str, int]] = {
    "tensor and ZeRO 3": {"data": 2, "fsdp": 2, "tensor": 2, "zero": 3},
    "fsdp": {"fsdp": 8, "zero": 2},
}


def predictions(classifier: ClassifierConfig, seed: int = 0) -> LabelPredictions:
    """Return random predictions for 12 samples, of which the last two are not there."""
    random = np.random.default_rng(seed)
    positions = 6 if classifier.kind == "token" else 1
    weights = (random.random((12, positions)) < 0.8).astype(np.float32) * 2.5
    weights[:, 0], weights[-2:] = 0.5, 0
    if classifier.problem == "regression":
        values = random.normal(size=(2, 12, 1, 3)).astype(np.float32)
        return LabelPredictions(values[0], values[1], weights)
    if classifier.problem == "multi_label":
        holds = random.random((2, 12, 1, 3)) < 0.5
        return LabelPredictions(holds[0], holds[1].astype(np.float32), weights)
    labels = random.integers(0, 3, (2, 12, positions)).astype(np.int32)
    return LabelPredictions(labels[0], labels[1], weights)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_figures_leave_out_what_is_no_target_and_are_those_of_all_batches(problem):
    classifier = PROBLEMS[problem]
    whole = predictions(classifier)
    parts = [
        LabelPredictions(*(array[rows] for array in whole)) for rows in (slice(5), slice(5, 12))
    ]
    figures = score_labels(classifier, parts)
    assert set(figures) == {*figure_names(classifier), "targets"}
    assert figures == score_labels(classifier, [whole])
    assert figures["targets"] == np.count_nonzero(whole.weights)

    # What was predicted where there is no target changes nothing.
    predicted = np.where(
        whole.weights.reshape(whole.weights.shape + (1,) * (whole.predicted.ndim - 2)) > 0,
        whole.predicted,
        np.ones_like(whole.predicted),
    )
    assert figures == score_labels(classifier, [whole._replace(predicted=predicted)])


def test_entities_end_with_their_text():
    """The labelled tokens of a row are a sequence."""
    tags = np.array([[1, 2, 0, 0], [2, 2, 0, 0]], np.int32)
    weights = np.array([[1, 1, 0, 0], [1, 1, 0, 0]], np.float32)
    predicted = np.array([[1, 2, 1, 1], [2, 0, 1, 1]], np.int32)
    figures = score_labels(PROBLEMS["token"], [LabelPredictions(predicted, tags, weights)])
    # Entities 0-1 and 2-3; found are 0-1 and 2.
    assert figures["entity_f1"] == 0.5 and figures["accuracy"] == 0.75


# ---------------------------------------------------------------- on meshes


def build_evaluator(problem: str, **parallel: int) -> tuple[LabelEvaluator, Any]:
    """Return the evaluator of 21 texts on a mesh, and the parameters there."""
    config = replace(
        tiny.ENCODER,
        model=replace(tiny.ENCODER.model, head_transform=False, classifier=PROBLEMS[problem]),
        objective=replace(tiny.ENCODER.objective, kind="classify"),
        data=replace(
            tiny.ENCODER.data,
            sources=(replace(tiny.ENCODER.data.sources[0], format="labelled", path="texts.jsonl"),),
        ),
        evaluation=EvaluationConfig(batch_size=8),
    )
    devices = np.prod([size for axis, size in parallel.items() if axis != "zero"] or [1])
    parts = tiny.parts(int(devices), config, **parallel)
    state = parts.place(tiny.initial_state(config))

    vocabulary = Vocabulary(300, 299, special=np.arange(300) >= 299)
    objective = build(config.objective, config.data.sequence_length, vocabulary, config.model)
    array = ExampleArray(ListedParts(draw_examples(config)))
    entries = [{"source": "texts", "tokens": 100}]
    store = SimpleNamespace(validation=(array,), manifest={"splits": {"validation": entries}})
    evaluator = LabelEvaluator(
        parts.config,
        parts.model,
        parts.placement,
        cast(Any, store),
        objective,
        state.params,
        steps_in_flight=2,
    )
    return evaluator, state.params


def draw_examples(config: Config) -> list[list[np.ndarray]]:
    """Return the parts of 21 examples: two batches are full, the third one is not."""
    random, classifier = np.random.default_rng(0), config.model.classifier
    examples = []
    for length in random.integers(3, 25, 21):
        numbers = np.array([0, random.integers(3)])
        if classifier.kind == "token":
            numbers = random.integers(0, 4, length)
        elif classifier.problem == "multi_label":
            numbers = np.array([0, *np.flatnonzero(random.random(3) < 0.5)])
        elif classifier.problem == "regression":
            halves = random.normal(size=3).astype("<f4").view("<u2")
            numbers = np.array([0, *halves])
        tokens = random.integers(0, 299, length)
        examples.append([tokens.astype(np.int32), np.zeros(0, np.int32), numbers.astype(np.int32)])
    return examples


@pytest.mark.parametrize(
    ("problem", "mesh"),
    quick_and_slow(
        [("token", "tensor and ZeRO 3")],
        [(problem, mesh) for problem in PROBLEMS for mesh in MESHES],
    ),
)
def test_meshes_have_the_figures_of_one_device(problem, mesh):
    evaluator, params = build_evaluator(problem)
    figures = evaluator.evaluate(params)
    split_evaluator, split_params = build_evaluator(problem, **MESHES[mesh])
    split_figures = split_evaluator.evaluate(split_params)

    assert figures is not None and split_figures is not None
    assert set(figures) == {
        "eval/loss",
        "eval/targets",
        *(f"eval/{name}" for name in figure_names(PROBLEMS[problem])),
    }
    # Labels are the same; losses, and numbers, are sums in another order.
    exact = () if problem == "regression" else set(figures) - {"eval/loss"}
    for tag, value in figures.items():
        assert split_figures[tag] == (value if tag in exact else pytest.approx(value, rel=1e-5))
    if problem != "token":
        assert figures["eval/targets"] == 21
    assert evaluator.probe(params) == pytest.approx(split_evaluator.probe(split_params), rel=1e-5)
    assert evaluator.evaluate(params, stop=lambda: True) is None


def test_the_whole_split_is_scored_unless_the_config_sets_steps():
    evaluator, _ = build_evaluator("single_label")
    assert evaluator.windows.is_whole and evaluator.windows.samples == 21
    assert evaluator.describe({"eval/targets": 0}) == "without targets"
    scores = {"eval/loss": 0.5, "eval/accuracy": 0.25, "eval/matthews": -0.125, "eval/targets": 21}
    expected = "loss 0.5000, accuracy 25.00%, Matthews -0.1250 (of 21 texts)"
    assert evaluator.describe(scores) == expected and evaluator.is_ranked(scores)


@pytest.mark.slow
def test_two_processes_have_the_figures_of_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.py").write_text(tiny_classifier.RECIPE)
    tiny_classifier.write_texts(Path("texts.jsonl"), "token")
    tiny_classifier.write_texts(Path("held_out.jsonl"), "token", count=27, seed=1)
    edits = (*tiny_classifier.PROBLEMS["token"], "runtime.devices=2")
    for directory, launcher in (
        ("runs/one", [sys.executable, "-m", "jaxlm.train"]),
        ("runs/two", ["bash", str(multiprocess.ROOT / "launch" / "local.sh"), "2"]),
    ):
        per_process = ["runtime.devices=1"] if directory == "runs/two" else []
        done = multiprocess.run(
            *launcher, *multiprocess.command(*edits, *per_process, directory=directory)
        )
        assert done.returncode == 0, done.stderr
    one, two = (
        {
            tag: dict(values)
            for tag, values in tiny_run.rows(name).items()
            if tag.startswith("eval/")
        }
        for name in ("runs/one", "runs/two")
    )
    assert one.keys() == two.keys() and "eval/entity_f1" in one
    for tag in one:
        assert two[tag] == pytest.approx(one[tag], rel=1e-5)
