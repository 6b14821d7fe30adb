"""Weights without an optimizer's state: reading them out of a checkpoint, and a run that begins with some."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from support import tiny, tiny_run

from jaxlm import checkpoint, config, runtime
from jaxlm.config import NoCheckpointError, UserError


def abstract(params):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), params)


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def state():
    return tiny.parts(2, zero=3).start()


def test_parameters_are_read_alone(tmp_path, state):
    """Of a whole state, sharded over two devices, onto one."""
    with checkpoint.Checkpoints(tmp_path, keep=2) as saved:
        saved.save(3, state)
        saved.wait()
        assert_equal(saved.restore_params(3, abstract(state.params)), state.params)
        other = dict(abstract(state.params), extra=jax.ShapeDtypeStruct((2,), np.float32))
        with pytest.raises(
            UserError, match=r"3 holds another state: params/extra: absent -> float32 \[2\]"
        ):
            saved.restore_params(3, other)
        with pytest.raises(NoCheckpointError, match=r"no checkpoint of step 4 \(there are: 3\)"):
            saved.restore_params(4, abstract(state.params))


def test_weights_alone_are_step_0(tmp_path, state):
    with checkpoint.Checkpoints(tmp_path, keep=2) as saved:
        saved.save_params(state.params)
        saved.wait()
        assert saved.latest() == 0
        assert_equal(saved.restore_params(0, abstract(state.params)), state.params)


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """runs/begun holds the weights of a trained tiny run, and no step."""
    monkeypatch.chdir(tmp_path)
    tiny_run.write_recipe(tmp_path)
    assert tiny_run.run() == 0
    settings = config.load("runs/tiny/config.json")
    shapes = tiny.models.build(settings.model).init(jax.random.key(0))
    with checkpoint.Checkpoints(Path("runs/tiny/checkpoints"), keep=2) as saved:
        params = saved.restore_params(12, abstract(shapes))
    with checkpoint.Checkpoints(Path("runs/begun/checkpoints"), keep=2) as saved:
        saved.save_params(params)
    checkpoint.write_run_config(
        Path("runs/begun"),
        dataclasses.replace(settings, run_directory="runs/begun"),
        None,
        runtime.versions(),
    )
    return tiny_run.rows()


def test_a_run_begins_with_the_weights_that_it_has(begun, capsys):
    """Other text, another optimizer, seed and dropout; its first loss is about the last of the run that the weights are from."""
    Path("other.txt").write_text(Path("text.txt").read_text()[::2])
    before, after = begun["eval/loss"][-1][1], begun["train/loss"][0][1]
    edits = ("optimizer.kind=adafactor", "seed=5", "model.dropout=0", "training.steps=4")
    assert tiny_run.run(*edits, directory="runs/begun") == 0
    assert "runs/begun: begins with the weights that it has" in capsys.readouterr().out
    first = tiny_run.rows("runs/begun")["train/loss"][0][1]
    assert abs(first - before) < 0.2 * (after - before)
    assert tiny_run.run(*edits, "training.steps=6", directory="runs/begun") == 0
    assert [step for step, _ in tiny_run.rows("runs/begun")["train/loss"]] == [1, 2, 3, 4, 5, 6]


def test_its_model_and_tokenizer_are_fixed(begun, capsys):
    assert tiny_run.run("model.norm_epsilon=1e-3", directory="runs/begun") == 2
    assert (
        "runs/begun holds a run that differs in model.norm_epsilon: 1e-05 -> 0.001"
        in capsys.readouterr().err
    )
    assert tiny_run.run("tokenizer.end_of_text=</s>", directory="runs/begun") == 2
    assert "tokenizer.end_of_text" in capsys.readouterr().err
