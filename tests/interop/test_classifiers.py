"""Directories of classifiers: every bit there and back, labels, and what is refused in one line."""

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support import tokenizer_files
from support.hf_directories import (
    assert_same_model,
    change_config,
    change_tensors,
    random_weights,
)
from support.interop_models import GPT2, ROBERTA, T5
from support.marks import quick_and_slow

from jaxlm import interop, models
from jaxlm.config import ClassifierConfig, ConfigError, ModelConfig, UserError
from jaxlm.conversion.import_model import import_model
from jaxlm.interop.architectures import OTHER_CLASSES
from jaxlm.load_model import load_model
from jaxlm.run_checks import check_trainable
from jaxlm.types import Batch

LABELS = ("spam", "ham", 'naïve, or "not"')


def classifier(model: ModelConfig, kind: Any = "sequence", **fields: Any) -> ModelConfig:
    """Return the model with a head for three labels."""
    return replace(model, classifier=ClassifierConfig(kind=kind, labels=LABELS, **fields))


def export(model: ModelConfig, folder: Path) -> dict[str, Any]:
    """Write a model of random weights, and return its config.json."""
    interop.save(folder, model, random_weights(model))
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """Return the directory of a classifier of texts, which no test changes."""
    folder = tmp_path_factory.mktemp("classifier") / "exported"
    export(classifier(ROBERTA), folder)
    return folder


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    """Return a copy of that directory."""
    return shutil.copytree(exported, tmp_path / "copy")


@pytest.mark.parametrize(
    ("name", "kind"),
    quick_and_slow([("t5", "token")], product(["gpt2", "roberta", "t5"], ["sequence", "token"])),
)
def test_there_and_back(name, kind, tmp_path):
    model = classifier({"gpt2": GPT2, "roberta": ROBERTA, "t5": T5}[name], kind)
    params = random_weights(model)
    interop.save(tmp_path, model, params)
    read, again = interop.load(tmp_path)
    assert read.classifier.labels == LABELS
    assert replace(read.label_head, dropout=None, transform_dropout=False) == replace(
        model.label_head, dropout=None, transform_dropout=False
    )
    interop.save(tmp_path / "second", read, again)
    assert_same_model((read, again), interop.load(tmp_path / "second"))


@pytest.mark.parametrize(
    "problem",
    [
        "regression",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("single_label", "multi_label")),
    ],
)
def test_what_config_json_says(problem, tmp_path):
    values = export(classifier(ROBERTA, problem=problem, dropout=0.3), tmp_path)
    assert values["architectures"] == ["RobertaForSequenceClassification"]
    assert values["id2label"] == {"0": LABELS[0], "1": LABELS[1], "2": LABELS[2]}
    assert values["label2id"] == {LABELS[0]: 0, LABELS[1]: 1, LABELS[2]: 2}
    suffix = "" if problem == "regression" else "_classification"
    assert values["problem_type"] == problem + suffix
    assert values["classifier_dropout"] == 0.3
    assert interop.read_config(tmp_path)[1].classifier.problem == problem


@pytest.mark.slow
def test_directories_that_say_little(tmp_path):
    """As transformers: two labels, named by their numbers; one alone is a number."""
    changes = {"id2label": None, "label2id": None, "problem_type": None}
    model = replace(ROBERTA, classifier=ClassifierConfig(kind="sequence", labels=("a", "b")))
    export(model, tmp_path / "two")
    read = interop.load(change_config(tmp_path / "two", changes))[0].classifier
    assert (read.labels, read.problem) == (("LABEL_0", "LABEL_1"), "single_label")

    number = ClassifierConfig(kind="sequence", labels=("score",), problem="regression")
    export(replace(ROBERTA, classifier=number), tmp_path / "one")
    read = interop.load(change_config(tmp_path / "one", changes | {"num_labels": 1}))[0].classifier
    assert (read.labels, read.problem) == (("LABEL_0",), "regression")


REFUSED = [  # changes of config.json, the key at fault, a part of the reason
    ({"id2label": {"0": "a", "2": "b", "3": "c"}}, "id2label", "has 3 labels, but no 1"),
    ({"id2label": {"0": "a", "1": "", "2": "c"}}, "id2label.1", "must be the name of a label"),
    ({"id2label": {"0": "a", "1": 7, "2": "c"}}, "id2label.1", "must be the name of a label"),
    ({"id2label": {}}, "id2label", "has no label"),
    ({"id2label": ["a", "b", "c"]}, "id2label", "must be an object"),
    ({"num_labels": 5}, "num_labels", "5 contradicts id2label (3)"),
    ({"id2label": None, "num_labels": 0}, "num_labels", "must be between 1 and"),
    ({"label2id": {LABELS[0]: 1, LABELS[1]: 0, LABELS[2]: 2}}, "label2id", "contradicts id2label"),
    ({"label2id": {}}, "label2id", 'null for "spam" contradicts id2label'),
    (
        {"id2label": {"0": "a", "1": "a", "2": "c"}, "label2id": None},
        "model.classifier.labels",
        "a label stands there twice",
    ),
    ({"problem_type": "ranking"}, "problem_type", '"ranking" is not supported'),
    ({"classifier_dropout": 1.5}, "model.classifier.dropout", "must be below 1"),
    ({"classifier_dropout": "x"}, "classifier_dropout", "must be a number"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[1]}-{case[2][:20]}")
def test_configs_that_are_refused(case, copy):
    changes, key, reason = case
    with pytest.raises(UserError) as caught:
        interop.load(change_config(copy, changes))
    message = str(caught.value)
    assert str(copy / "config.json") in message and f"{key}: " in message
    assert reason in message and len(message.splitlines()) == 1


def drop(name: str) -> Any:
    """Return a change of tensors that leaves one out."""
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


TENSORS = [
    (drop("classifier.out_proj.weight"), "classifier.out_proj.weight: there is no such tensor"),
    (drop("classifier.dense.bias"), "classifier.dense.bias: there is no such tensor"),
    (
        lambda t: t.update({"classifier.out_proj.weight": np.ones((2, 48), np.float32)}),
        "has shape [2, 48], expected [3, 48]",
    ),
    (
        lambda t: t.update({"lm_head.bias": np.ones(300, np.float32)}),
        "is not a tensor of a roberta model",
    ),
]


@pytest.mark.parametrize("case", TENSORS, ids=lambda case: case[1][:40])
def test_tensors_that_are_refused(case, copy):
    change, reason = case
    with pytest.raises(UserError) as caught:
        interop.load(change_tensors(copy, change))
    assert reason in str(caught.value) and len(str(caught.value).splitlines()) == 1


INEXPRESSIBLE = [
    (classifier(ROBERTA, pooling="mean"), "classifier.pooling = 'first' (here 'mean')"),
    (classifier(GPT2, bias=True), "classifier.bias = False (here True)"),
    (classifier(GPT2, transform="tanh"), "classifier.transform = 'none' (here 'tanh')"),
]


@pytest.mark.parametrize("case", INEXPRESSIBLE, ids=lambda case: case[1])
def test_heads_that_transformers_has_not(case):
    model, reason = case
    with pytest.raises(UserError, match="no supported architecture of transformers") as caught:
        interop.match_architecture(model)
    assert reason in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_bart_has_no_class_for_tokens():
    bart = replace(
        T5,
        norm="layernorm",
        norm_epsilon=1e-5,
        positions="learned",
        position_offset=2,
        norm_placement="post",
        embedding_norm=True,
        attention_scale=None,
        attention_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        gated=False,
        head_width=None,
        tied_head=True,
    )
    assert interop.match_architecture(classifier(bart))[0].model_type == "bart"
    with pytest.raises(UserError, match=r"kind 'token' are written as those of t5, not bart$"):
        interop.match_architecture(classifier(bart, "token"))


@pytest.mark.slow
def test_a_head_without_a_bias_has_zeros_in_transformers(tmp_path):
    model = classifier(ROBERTA, bias=False)
    params = random_weights(model)
    interop.save(tmp_path, model, params)
    assert json.loads((tmp_path / "config.json").read_text())["jaxlm"] == {"classifier_bias": False}
    read, again = interop.load(tmp_path)
    assert read.label_head.bias is False and "bias" not in again["classifier"]
    batch = Batch(tokens=np.arange(6)[None])
    scores = [models.build(m).apply(p, batch) for m, p in ((model, params), (read, again))]
    np.testing.assert_array_equal(*scores)


@pytest.mark.slow
def test_mup_is_folded_into_the_head(tmp_path):
    model = replace(classifier(ROBERTA), parametrization="mup", mup_base_width=16)
    params = random_weights(model)
    interop.save(tmp_path, model, params)
    read, again = interop.load(tmp_path)
    batch = Batch(tokens=np.arange(6)[None], lengths=np.array([5], np.int32))
    ours = models.build(model).apply(params, batch)
    assert np.abs(ours).max() > 0.1
    np.testing.assert_allclose(models.build(read).apply(again, batch), ours, rtol=0, atol=1e-6)


def test_every_class_has_names_of_its_own():
    names = [name for each in OTHER_CLASSES for name in each.classes]
    assert len(set(names)) == len(names) >= 24
    shapes = jax.eval_shape(models.build(classifier(GPT2)).init, jax.random.key(0))
    assert "head" not in shapes and set(shapes["classifier"]) == {"kernel"}


def test_an_import_is_a_run_that_classifies(tmp_path):
    """Its head and labels are those of the directory."""
    folder = tokenizer_files.write(tmp_path / "hf", "gpt2")
    export(replace(classifier(GPT2, "token"), vocabulary_size=512), folder)
    imported = import_model(folder, tmp_path / "run", ())
    assert imported.config.objective.kind == "classify"
    assert imported.config.model.classifier.labels == LABELS
    loaded = load_model(tmp_path / "run")
    assert_same_model(interop.load(folder), (loaded.model.config, loaded.params))


@pytest.mark.slow
def test_a_discriminator_without_a_generator_is_the_base_of_a_classifier(tmp_path):
    """It is imported, and refused for training as it is."""
    electra = replace(
        ROBERTA, position_offset=0, token_types=2, generator_share=0.0, embedding_width=24
    )
    folder = tokenizer_files.write(tmp_path / "hf", "bert")
    export(electra, folder)
    imported = import_model(folder, tmp_path / "run", ())
    assert any("the base of a classifier" in note for note in imported.notes)
    with pytest.raises(ConfigError, match="the model has no generator"):
        check_trainable(imported.config)

    tuned = replace(imported.config.model, classifier=classifier(ROBERTA).classifier)
    assert tuned.label_head.transform == "gelu"
    shapes = jax.eval_shape(models.build(tuned).init, jax.random.key(0))
    assert set(shapes["discriminator"]) >= {"pooler", "classifier", "projection"}
    assert interop.match_architecture(tuned)[0].classes == ("ElectraForSequenceClassification",)
