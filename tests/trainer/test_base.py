"""Runs that start from the model, the tokenizer and the weights of another run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support import tiny_run

from jaxlm import checkpoint, start
from jaxlm.config import (
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    SourceConfig,
    load,
)
from jaxlm.config.base import adopt_base

RECIPE = tiny_run.tuned_recipe(tiny_run.TEXT_DATA.format(length=24))


@pytest.fixture
def tuned(copied_run):
    """Write a recipe of a run that starts from a finished one (runs/tiny) of a decoder."""
    copied_run("decoder")
    text = Path("text.txt").read_text()
    Path("other.txt").write_text(text[::-1])
    Path("tuned.py").write_text(RECIPE)
    return tiny_run.rows()


def test_a_run_starts_from_its_base_and_resumes_without_it(tuned, capsys):
    """The first loss on the same text, and without dropout, is that of the base."""
    Path("other.txt").write_text(Path("text.txt").read_text())
    edits = ("model.dropout=0", "data.sequence_length=32")
    first_edits = (*edits, "training.steps=2")
    assert tiny_run.run(*first_edits, recipe="tuned.py", directory="runs/tuned") == 0
    assert "base: runs/tiny after step 12" in capsys.readouterr().out
    first = tiny_run.rows("runs/tuned")["train/loss"][0][1]
    untrained, trained = tuned["train/loss"][0][1], tuned["eval/loss"][-1][1]
    assert abs(first - trained) < 0.1 * (untrained - trained)

    saved = load("runs/tuned/config.json")
    assert (saved.base, saved.model.width, saved.model.dropout) == ("runs/tiny", 32, 0)
    assert saved.tokenizer.path == "runs/tiny/tokenizer.json"
    edits = (*edits, "training.steps=3", "optimizer.allow_restart=true")
    assert tiny_run.run(*edits, recipe="tuned.py", directory="runs/tuned") == 0
    assert [step for step, _ in tiny_run.rows("runs/tuned")["train/loss"]] == [1, 2, 3]


def test_a_recipe_has_the_model_of_its_base_and_its_own_dropout(tuned):
    base = load("runs/tiny/config.json")
    cfg = load("tuned.py")
    assert cfg.model == base.model and cfg.model.dropout == 0.1
    assert load("tuned.py", ["data.sequence_length=32"])
    with pytest.raises(ConfigError, match=r"2000 exceeds model\.context_length \(32\)"):
        load("tuned.py", ["data.sequence_length=2000"])
    assert load("tuned.py", ["model.dropout=0.0"]).model.dropout == 0  # though it is the default
    assert cfg.tokenizer.pad == cfg.tokenizer.end_of_text  # the tokenizer has no token for it


def test_the_decoder_starts_as_that_of_the_base_does(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": []}')
    tuned = Config(
        base=str(tmp_path),
        model=ModelConfig(family="encoder_decoder"),
        objective=ObjectiveConfig(kind="instruction"),
        data=DataConfig(sources=(SourceConfig(name="a", path="a", format="messages"),)),
    )
    model = ModelConfig(family="encoder_decoder")
    for kind, first_token in (("infilling", "end_of_text"), ("span", "pad")):
        base = Config(model=model, objective=ObjectiveConfig(kind=kind))
        assert adopt_base(tuned, base).objective.start == first_token


def test_what_does_not_fit_the_base_is_refused_in_one_line(tuned):
    for edit, message in (
        ("model.layers=3", r"^model.layers: 3, but the model of base \(runs/tiny\) has 2: leave"),
        ("tokenizer.mask=[M]", r"^tokenizer.mask: '\[M\]', but the tokenizer is that of base"),
        ("base=nowhere", "^base: there is no directory nowhere"),
        ("base=stores", "^base: stores is not a run directory: it has no config.json"),
    ):
        with pytest.raises(ConfigError, match=message):
            load("tuned.py", [edit])

    Path("hf").mkdir()
    Path("hf/config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"becomes a run by python -m jaxlm\.convert import hf"):
        load("tuned.py", ["base=hf"])


def test_a_base_with_other_parameters_is_refused(tuned, capsys):
    """Its config.json is not that of its checkpoints."""
    cfg = load("runs/tiny/config.json", ["model.norm_bias=false"])
    checkpoint.write_run_config(Path("runs/tiny"), cfg, None, {})
    assert tiny_run.run(recipe="tuned.py", directory="runs/tuned") == 2
    assert "holds another state" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "warned"), [("classify", True), ("causal", False)])
def test_tuning_of_random_weights_is_warned_of(kind, warned, monkeypatch, capsys):
    monkeypatch.setattr(start, "create_state", lambda *_: "fresh")
    config = SimpleNamespace(objective=SimpleNamespace(kind=kind), seed=0)
    run: Any = SimpleNamespace(config=config, model=None, optimizer=None, placement=None)
    fresh: Any = start.Start(start.Origin.FRESH, 0)
    assert start.build_state(run, fresh, cast(Any, None), Path()) == ("fresh", None)
    assert ("warning: base is not set" in capsys.readouterr().out) == warned
