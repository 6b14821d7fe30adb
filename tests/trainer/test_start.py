"""Weights without an optimizer state: read from a checkpoint, and the start of a run."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest
from support import tiny, tiny_run
from support.random_state import random_state
from support.trees import assert_same

from jaxlm import checkpoint, config, models, runtime, trainer
from jaxlm.config import NoCheckpointError, UserError
from jaxlm.start import Origin, Start, find_start


def abstract(params):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), params)


@pytest.fixture(scope="module")
def state():
    """A state that is sharded over two devices."""
    return random_state(tiny.parts(2, zero=3))


def test_a_run_starts_fresh_from_an_import_or_from_its_newest_checkpoint():
    assert find_start(None) == Start(Origin.FRESH, 0)
    assert find_start(0) == Start(Origin.IMPORTED, 0)
    assert find_start(7) == Start(Origin.RESUMED, 7)


def test_parameters_are_read_alone(tmp_path, state):
    """They move from two devices to one."""
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(3, state)
        checkpoints.wait()
        assert_same(checkpoints.restore_params(3, abstract(state.params)), state.params)

        other = dict(abstract(state.params), extra=jax.ShapeDtypeStruct((2,), np.float32))
        difference = r"3 holds another state: params/extra: absent -> float32 \[2\]"
        with pytest.raises(UserError, match=difference):
            checkpoints.restore_params(3, other)
        with pytest.raises(NoCheckpointError, match=r"no checkpoint of step 4 \(there are: 3\)"):
            checkpoints.restore_params(4, abstract(state.params))


def test_weights_alone_are_step_0(tmp_path, state):
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save_params(state.params)
        checkpoints.wait()
        assert checkpoints.latest() == 0
        assert_same(checkpoints.restore_params(0, abstract(state.params)), state.params)


@pytest.fixture
def imported(copied_run):
    """Return the rows of a tiny run; runs/imported holds its weights, and no step."""
    copied_run("decoder")
    run_config = config.load("runs/tiny/config.json")
    shapes = jax.eval_shape(models.build(run_config.model).init, jax.random.key(0))
    with checkpoint.Checkpoints(Path("runs/tiny/checkpoints"), keep=2) as checkpoints:
        params = checkpoints.restore_params(12, abstract(shapes))
    with checkpoint.Checkpoints(Path("runs/imported/checkpoints"), keep=2) as checkpoints:
        checkpoints.save_params(params)

    run_config = dataclasses.replace(run_config, run_directory="runs/imported")
    checkpoint.write_run_config(Path("runs/imported"), run_config, None, runtime.versions())
    return tiny_run.rows()


def test_a_run_starts_from_imported_weights(imported, capsys):
    """Other text, optimizer, seed and dropout: the first loss is near the last one of before."""
    Path("other.txt").write_text(Path("text.txt").read_text()[::2])
    untrained, trained = imported["train/loss"][0][1], imported["eval/loss"][-1][1]
    optimizer = ("optimizer.kind=adafactor", "optimizer.schedule=constant")
    edits = (*optimizer, "optimizer.warmup_steps=1", "seed=5", "model.dropout=0")
    assert tiny_run.run(*edits, "training.steps=2", directory="runs/imported") == 0
    assert "runs/imported: starts from imported weights" in capsys.readouterr().out
    first = tiny_run.rows("runs/imported")["train/loss"][0][1]
    assert abs(first - trained) < 0.2 * (untrained - trained)

    assert tiny_run.run(*edits, "training.steps=3", directory="runs/imported") == 0
    assert [step for step, _ in tiny_run.rows("runs/imported")["train/loss"]] == [1, 2, 3]


def test_its_model_and_tokenizer_are_fixed(imported, capsys):
    assert tiny_run.run("model.norm_epsilon=1e-3", directory="runs/imported") == 2
    change = "model.norm_epsilon: 1e-05 -> 0.001"
    expected = f"runs/imported holds a run that differs in {change}"
    assert expected in capsys.readouterr().err
    assert tiny_run.run("tokenizer.end_of_text=</s>", directory="runs/imported") == 2
    assert "tokenizer.end_of_text" in capsys.readouterr().err


def test_a_sample_cannot_end_its_block_in_tensorboard(monkeypatch):
    text = "    indented\n```\n# no heading\n````"
    monkeypatch.setattr(trainer.decoding, "samples", lambda *_: [text])
    shown: list[str] = []
    monitor = SimpleNamespace(
        line=lambda text: None, text=lambda step, tag, text: shown.append(text)
    )
    run = SimpleNamespace(config=config.Config(), model=SimpleNamespace(rounding=None, axes={}))
    others: Any = SimpleNamespace(tokenizer=None, windows=None, params=None)
    trainer.show_samples(cast(Any, run), others, others, others, cast(Any, monitor))
    assert shown == [f"`````text\n{text}\n`````"]


def test_a_store_that_was_built_anew_with_another_tokenizer_is_refused(tmp_path):
    (tmp_path / "c.txt").write_text("text " * 100)
    source = config.SourceConfig(name="c", path=str(tmp_path / "c.txt"))
    cfg = config.Config(
        tokenizer=config.TokenizerConfig(kind="bytes"),
        data=config.DataConfig(
            sources=(source,),
            store=str(tmp_path / "stores"),
            validation=config.ValidationConfig(method="tail"),
        ),
    )
    store = trainer.prepare_store(cfg, None)
    checkpoint.write_run_config(tmp_path, cfg, store.hash, {})
    trainer.check_store(tmp_path, cfg, store)  # an import may lack a tokenizer

    trainer.write_tokenizer(tmp_path, cfg, store, Start(Origin.FRESH, 0))
    trainer.check_store(tmp_path, cfg, store)
    path = tmp_path / "tokenizer.json"
    other = json.loads(path.read_text())
    ids = other["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    path.write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"tokenizer\.json: is not the tokenizer of .* built anew"):
        trainer.check_store(tmp_path, cfg, store)
