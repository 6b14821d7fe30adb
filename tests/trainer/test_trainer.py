"""The command end to end on a small text: it trains, stops, resumes to the bit, moves to other meshes, and says what it does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from support import tiny, tiny_run
from support.tiny_run import rows, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxlm import config, state, train
from jaxlm.checkpoint import Checkpoints


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    tiny_run.write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved_arrays(directory: str, step: int) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, read without the trainer."""
    tree = ocp.StandardCheckpointer().restore(
        (Path(directory) / "checkpoints" / str(step) / "state").absolute()
    )
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def same_bits(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a
    )


def test_a_run_from_text_to_samples(folder, capsys):
    assert run("evaluation.samples=1", "evaluation.sample_tokens=8") == 0
    out = capsys.readouterr().out
    assert (
        "step 12/12 100%" in out and "bits per byte (gzip -9" in out and "--- sample 1 ---" in out
    )
    found = rows()
    assert [step for step, _ in found["train/loss"]] == list(range(1, 13))
    assert found["train/tokens"][-1] == (12, 12 * 8 * 32)
    assert [step for step, _ in found["eval/loss"]] == [6, 12]
    losses = dict(found["train/loss"])
    # An untrained model is at ln 257 = 5.55; a text of 17 letters is far below that after 12 steps at this rate.
    assert abs(losses[1] - np.log(257)) < 0.3 and losses[12] < 3.5
    # Bits per byte by its definition: nats of every target (all tokens but the first) over the bytes of the held-out tail.
    text = (folder / "text.txt").read_bytes()
    tail = len(text) - int(len(text) * 0.9)
    step, loss = found["eval/loss"][-1]
    assert found["eval/bits_per_byte"][-1] == (
        step,
        pytest.approx(loss * tail / np.log(2) / tail, rel=1e-3),
    )
    events = EventAccumulator("runs/tiny/tensorboard", size_guidance={"scalars": 0}).Reload()
    assert {e.step: e.value for e in events.Scalars("train/loss")} == pytest.approx(losses)
    assert {"config/text_summary", "sample/1/text_summary"} <= {
        tag + "/text_summary" for tag in events.Tags()["tensors"]
    }
    assert json.loads(Path("runs/tiny/config.json").read_text())["model"]["layers"] == 2
    assert Checkpoints(folder / "runs/tiny/checkpoints", keep=2).latest() == 12


SLOW_STOPS = {
    ("decoder", 1),
    ("encoder", 11),
    ("encoder_decoder", 7),
}  # the others are left to campaigns, for their time
STOPS = [
    pytest.param(family, stop, marks=[] if (family, stop) == ("decoder", 7) else marks)
    for family in tiny_run.FAMILIES
    for stop in (7, 1, 11)
    for marks in [
        [pytest.mark.slow, *([] if (family, stop) in SLOW_STOPS else [pytest.mark.campaign])]
    ]
]


@pytest.mark.parametrize(("family", "stop"), STOPS)
def test_stopping_anywhere_and_resuming_is_the_unbroken_run(folder, capsys, family, stop):
    edits = tiny_run.FAMILIES[family]
    assert run(*edits, directory="runs/whole") == 0
    assert stopped_after(stop, *edits, directory="runs/stopped") == train.STOPPED
    said = capsys.readouterr().out
    assert (
        f"after step {stop} of 12; saved" in said
        and "python -m jaxlm.train --config tiny.py" in said
    )
    assert run(*edits, directory="runs/stopped") == 0
    assert same_bits(saved_arrays("runs/stopped", 12), saved_arrays("runs/whole", 12))
    assert rows("runs/stopped") == rows("runs/whole")


def stopped_after(step: int | None, *edits: str, directory: str) -> int:
    """Runs until `step` is done, then sends this process SIGTERM, as a cluster would."""
    ticks = train.Throughput.tick

    def tick(clock, done, metrics):
        ticks(clock, done, metrics)
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    train.Throughput.tick = tick
    try:
        return run(*edits, directory=directory)
    finally:
        train.Throughput.tick = ticks


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny_run.FAMILIES)
def test_resuming_on_other_meshes(folder, capsys, family):
    """8 -> 4 -> 1 devices and other ZeRO stages: the same tokens, bit-equal state, losses that agree."""
    edits = tiny_run.FAMILIES[family]
    assert run(*edits, directory="runs/whole") == 0
    whole = dict(rows("runs/whole")["train/loss"])
    for stop, devices, zero in ((4, 8, 3), (8, 4, 2), (None, 1, 0)):
        code = stopped_after(
            stop,
            *edits,
            f"runtime.devices={devices}",
            f"parallel.zero={zero}",
            directory="runs/moved",
        )
        assert code == (0 if stop is None else train.STOPPED)
    found = dict(rows("runs/moved")["train/loss"])
    assert found.keys() == whole.keys()
    # float32 sums in another order, amplified by Adam over 12 steps; another token stream would be off by 1e-1.
    assert max(abs(found[step] - whole[step]) for step in whole) < 1e-4


@pytest.mark.parametrize(
    "family", ["decoder", pytest.param("encoder", marks=pytest.mark.slow), "encoder_decoder"]
)
def test_a_restored_state_is_bit_equal_on_another_mesh(folder, family):
    settings = tiny.FAMILIES[family]
    parts, checkpoints = (
        tiny.parts(8, settings, zero=3, tensor=2),
        Checkpoints(folder / "checkpoints", keep=1),
    )
    current, _ = parts.step()(parts.start(), parts.put(tiny.batch(0, settings)))
    before = jax.device_get(current)
    checkpoints.save(1, current, {})
    checkpoints.wait()
    for devices, parallel in ((4, dict(zero=2)), (2, dict(zero=1)), (1, {})):
        other = tiny.parts(devices, settings, **parallel)
        restored = checkpoints.restore(
            1, state.abstract_state(other.model, other.optimizer, other.placement)
        )
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b), restored, before)
        assert jax.tree.leaves(restored.params)[0].sharding.mesh.size == devices
    checkpoints.close()


@pytest.mark.parametrize(
    ("family", "edits", "said"),
    [
        ("encoder", (), " of 5 right)"),
        (
            "encoder_decoder",
            ("objective.kind=infilling", "model.positions=learned", "tokenizer.begin_of_text=<s>"),
            "written: ",
        ),
        ("decoder", ("objective.kind=prefix", "evaluation.sample_tokens=4"), "of the "),
    ],
)
def test_every_objective_trains_and_shows_what_it_learned(folder, capsys, family, edits, said):
    assert run(*tiny_run.FAMILIES[family], *edits, "evaluation.samples=1", "model.dropout=0") == 0
    out = capsys.readouterr().out
    assert said in out and "--- sample 1 ---" in out
    found = rows()
    losses = [value for _, value in found["train/loss"]]
    entropy = found["eval/unigram_entropy"][-1][1]
    # The letters of 8 words and the space: under 3 nats. Random ones of the vocabulary are above 5.
    assert losses[0] > 5 and losses[-1] < 4 and 1.5 < entropy < 3.1
    assert ("eval/masked_accuracy" in found) == (family == "encoder")


def test_the_same_config_gives_the_same_bits(folder):
    for directory in ("runs/a", "runs/b"):
        assert (
            run("training.steps=4", "runtime.devices=2", "parallel.zero=2", directory=directory)
            == 0
        )
    assert same_bits(saved_arrays("runs/a", 4), saved_arrays("runs/b", 4))
    assert rows("runs/a") == rows("runs/b")


def test_a_finished_run_can_be_extended_but_not_changed(folder, capsys):
    assert run("training.steps=4") == 0
    assert run("training.steps=4") == 0
    assert "4 of 4 steps are done" in capsys.readouterr().out
    assert run("training.steps=6", "model.layers=3") == 2
    assert "model.layers: 2 -> 3" in capsys.readouterr().err
    assert run("training.steps=6", "optimizer.kind=adafactor") == 2
    assert "optimizer.kind: adamw -> adafactor" in capsys.readouterr().err
    (folder / "text.txt").write_text("another text " * 2000)
    assert run("training.steps=6") == 2
    assert "prepared data: " in capsys.readouterr().err


def test_a_batch_size_changed_at_resume_goes_on_with_the_next_sample(folder, capsys):
    assert run("training.steps=4", "training.batch_size=4") == 0
    # On 8 devices, which the first batch size does not divide over: evaluation must not trip over it either.
    assert run("training.steps=6", "training.batch_size=16", "runtime.devices=8") == 0
    assert json.loads(Path("runs/tiny/config.json").read_text())["training"]["batch_schedule"] == [
        [4, 16]
    ]
    assert dict(rows()["train/tokens"])[6] == (4 * 4 + 2 * 16) * 32


def test_the_best_checkpoint_stays(folder):
    # A rate at which the loss is best early on and gets worse: the best is not among the newest.
    assert (
        run(
            "training.steps=12",
            "evaluation.every_steps=1",
            "optimizer.learning_rate=1.0",
            "optimizer.warmup_steps=8",
            "checkpoint.keep=1",
        )
        == 0
    )
    losses = dict(rows()["eval/loss"])
    best = min(losses, key=losses.get)
    kept = Checkpoints(Path("runs/tiny/checkpoints").absolute(), keep=1)
    assert best < 12 and kept.steps() == [best, 12] and kept.best() == best


def test_a_loss_that_is_not_finite_ends_the_run_with_4(folder, capsys):
    assert (
        run(
            "optimizer.learning_rate=1e30",
            "optimizer.gradient_clip=none",
            "optimizer.warmup_steps=0",
        )
        == 4
    )
    assert "the loss is" in capsys.readouterr().err


def test_ctrl_c_in_a_process_of_its_own_saves_and_exits_75(folder):
    """The real command line, interrupted as a user would."""
    command = [
        sys.executable,
        "-m",
        "jaxlm.train",
        "--config",
        "tiny.py",
        "training.steps=100000",
        "runtime.platform=cpu",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics, deadline = Path("runs/tiny/metrics.jsonl"), time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "stopped by SIGINT" in out and "Traceback" not in err
    assert config.load("runs/tiny/config.json").training.steps == 100_000
