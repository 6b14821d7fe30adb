"""The command end to end on a small text: it trains, stops, resumes to the bit, changes meshes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from support import tiny, tiny_run
from support.random_state import abstract_state_of, random_state
from support.tiny_run import rows, run
from support.trees import assert_same
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxlm import config, prepare, runtime, train, trainer
from jaxlm.checkpoint import Checkpoints
from jaxlm.evaluation import scoring
from jaxlm.evaluation.evaluator import StoppableBatches
from jaxlm.throughput import Throughput


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    tiny_run.write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved_arrays(directory: str, step: int) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint, read without the trainer."""
    path = Path(directory) / "checkpoints" / str(step) / "state"
    tree = ocp.StandardCheckpointer().restore(path.absolute())
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def same_bits(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a
    )


def test_a_run_from_text_to_samples(finished_run):
    folder = finished_run("decoder")
    out = (folder / "output.txt").read_text()
    parts = ("step 12/12 100%", "bits per byte (gzip -9", "--- sample 1 ---", "model card: ")
    assert all(part in out for part in parts)

    values = rows(folder / "runs/tiny")
    assert [step for step, _ in values["train/loss"]] == list(range(1, 13))
    assert values["train/tokens"][-1] == (12, 12 * 8 * 32)
    assert [step for step, _ in values["eval/loss"]] == [6, 12]
    losses = dict(values["train/loss"])
    # An untrained model is at ln 257 = 5.55; a text of 17 letters is far below that after 12 steps.
    assert abs(losses[1] - np.log(257)) < 0.3 and losses[12] < 3.5

    events = EventAccumulator(str(folder / "runs/tiny/tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert {e.step: e.value for e in events.Scalars("train/loss")} == pytest.approx(losses)
    assert {"config/text_summary", "sample/1/text_summary"} <= {
        tag + "/text_summary" for tag in events.Tags()["tensors"]
    }
    run_config = json.loads((folder / "runs/tiny/config.json").read_text())
    assert run_config["model"]["layers"] == 2
    assert saved_steps(folder / "runs/tiny") == [8, 12]


def test_an_encoder_shows_the_masks_that_it_fills(finished_run):
    out = (finished_run("encoder") / "output.txt").read_text()
    assert " of 5 right)" in out and "--- sample 1 ---" in out
    check_learning(rows(finished_run("encoder") / "runs/tiny"), masked=True)


def test_an_encoder_decoder_shows_the_gaps_that_it_fills(finished_run):
    out = (finished_run("encoder_decoder") / "output.txt").read_text()
    assert "written: " in out and "filled: " in out
    check_learning(rows(finished_run("encoder_decoder") / "runs/tiny"), masked=False)


def check_learning(values: dict[str, list], masked: bool) -> None:
    """The letters of 8 words and the space: under 3 nats. Random ones of the vocabulary: over 5."""
    losses = [value for _, value in values["train/loss"]]
    entropy = values["eval/unigram_entropy"][-1][1]
    assert losses[0] > 5 and losses[-1] < 4 and 1.5 < entropy < 3.1
    assert ("eval/masked_accuracy" in values) == masked


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
def test_stopping_anywhere_and_resuming_is_the_unbroken_run(copied_run, capsys, family, stop):
    copied_run(family)  # runs/tiny, which nothing interrupted
    edits = tiny_run.FAMILIES[family]
    assert stopped_after(stop, *edits, directory="runs/stopped") == runtime.STOPPED
    out = capsys.readouterr().out
    assert f"stopped by SIGTERM after step {stop} of 12; saved" in out
    assert "resume with\n  python -m jaxlm.train --config tiny.py" in out
    assert run(*edits, directory="runs/stopped") == 0
    assert f"runs/stopped: resumes after step {stop}" in capsys.readouterr().out
    assert same_bits(saved_arrays("runs/stopped", 12), saved_arrays("runs/tiny", 12))
    assert rows("runs/stopped") == rows("runs/tiny")


def stopped_after(step: int | None, *edits: str, directory: str) -> int:
    """Run until `step` is done, then send this process SIGTERM, as a cluster would."""
    wait = Throughput.wait

    def wait_and_stop(throughput, done, metrics):
        wait(throughput, done, metrics)
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Throughput, "wait", wait_and_stop)
        return run(*edits, directory=directory)


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny_run.RUNS)
def test_resuming_on_other_meshes(copied_run, capsys, family):
    """8 -> 4 -> 1 devices and other ZeRO stages: the same tokens, bit-equal state, equal losses."""
    copied_run(family)
    edits = tiny_run.RUNS[family]
    whole = dict(rows()["train/loss"])
    for stop, devices, zero in ((4, 8, 3), (8, 4, 2), (None, 1, 0)):
        code = stopped_after(
            stop,
            *edits,
            f"runtime.devices={devices}",
            f"parallel.zero={zero}",
            directory="runs/moved",
        )
        assert code == (0 if stop is None else runtime.STOPPED)
    found = dict(rows("runs/moved")["train/loss"])
    assert found.keys() == whole.keys()
    # float32 sums in another order, amplified by Adam over 12 steps; another token stream would be
    # off by 1e-1.
    assert max(abs(found[step] - whole[step]) for step in whole) < 1e-4


@pytest.mark.parametrize(
    "family",
    [
        "decoder",
        *(pytest.param(f, marks=pytest.mark.slow) for f in tiny_run.FAMILIES if f != "decoder"),
    ],
)
def test_a_restored_state_is_bit_equal_on_another_mesh(tmp_path, family):
    config = tiny.FAMILIES[family]
    before = random_state(tiny.parts(8, config, zero=3, tensor=2))
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(1, before, {})
        checkpoints.wait()
        for devices, parallel in ((4, dict(zero=2)), (2, dict(zero=1)), (1, {})):
            abstract = abstract_state_of(tiny.parts(devices, config, **parallel))
            restored = checkpoints.restore(1, abstract)
            assert_same(restored, before)
            assert jax.tree.leaves(restored.params)[0].sharding.mesh.size == devices


@pytest.mark.parametrize(
    ("family", "edits", "text"),
    [
        pytest.param(
            "encoder_decoder",
            ("objective.kind=infilling", "model.positions=learned", "tokenizer.begin_of_text=<s>"),
            "written: ",
            marks=pytest.mark.slow,
        ),
        ("decoder", ("objective.kind=prefix", "evaluation.sample_tokens=4"), "of the "),
    ],
)
def test_other_objectives_train_and_show_what_they_learned(folder, capsys, family, edits, text):
    assert run(*tiny_run.FAMILIES[family], *edits, "evaluation.samples=1", "model.dropout=0") == 0
    out = capsys.readouterr().out
    assert text in out and "--- sample 1 ---" in out
    check_learning(rows(), masked=False)


def test_the_same_config_gives_the_same_bits(folder, monkeypatch, caplog):
    """And the step is compiled while the data is prepared, once."""
    prepare_store, compiling = trainer.prepare_store, []

    def prepare_and_look(*arguments):
        compiling.append([thread.name for thread in threading.enumerate()])
        return prepare_store(*arguments)

    monkeypatch.setattr(trainer, "prepare_store", prepare_and_look)
    jax.config.update("jax_log_compiles", True)
    edits = ("training.steps=3", "runtime.devices=2", "parallel.zero=2", "evaluation.steps=1")
    try:
        for directory in ("runs/a", "runs/b"):
            assert run(*edits, directory=directory) == 0
    finally:
        jax.config.update("jax_log_compiles", False)
    assert all("compile the step" in names for names in compiling)
    assert caplog.text.count("Finished XLA compilation of jit(step)") == len(compiling) == 2
    assert same_bits(saved_arrays("runs/a", 3), saved_arrays("runs/b", 3))
    assert rows("runs/a") == rows("runs/b")


@pytest.mark.slow
def test_a_run_that_begins_before_its_store_is_that_of_the_finished_one(folder, capsys):
    edits = ("training.steps=6", "data.shuffle_block=2000", "checkpoint.every_steps=6")
    assert run(*edits, directory="runs/early") == 0
    assert runtime.command(prepare.main, ["--config", "tiny.py", *edits]) == 0
    assert run(*edits, directory="runs/late") == 0
    out = capsys.readouterr().out
    assert out.count("tokenised during the run") == 1
    assert same_bits(saved_arrays("runs/early", 6), saved_arrays("runs/late", 6))
    assert rows("runs/early") == rows("runs/late")


def test_a_finished_run_can_be_extended_but_not_changed(copied_run, capsys):
    folder = copied_run("decoder")
    assert run() == 0
    assert "12 of 12 steps are done" in capsys.readouterr().out
    Path("runs/tiny/checkpoints/99").mkdir()  # what an interrupted copy may leave
    assert run() == 0
    assert "12 of 12 steps are done" in capsys.readouterr().out
    assert run("training.steps=14", "model.layers=3") == 2
    assert "model.layers: 2 -> 3" in capsys.readouterr().err
    assert run("training.steps=14", "optimizer.kind=adafactor") == 2
    assert "optimizer.kind: adamw -> adafactor" in capsys.readouterr().err
    (folder / "text.txt").write_text("another text " * 2000)
    assert run("training.steps=14") == 2
    assert "prepared data: " in capsys.readouterr().err

    shutil.rmtree("runs/tiny/checkpoints/12/state")
    assert run() == 3  # even where nothing is left to do
    error = capsys.readouterr().err
    assert error.endswith("state is missing; move this folder away to continue from step 8\n")


def test_a_moved_run_goes_on_in_its_folder_from_anywhere(copied_run, capsys, monkeypatch):
    folder = copied_run("decoder")
    Path("runs/tiny").rename("runs/moved")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    edits = ("training.steps=13", "evaluation.steps=1")
    assert runtime.command(train.main, ["--config", "../runs/moved/config.json", *edits]) == 0
    out = capsys.readouterr().out
    assert "the run was saved as runs/tiny; its folder is now ../runs/moved" in out
    assert "../runs/moved: resumes after step 12" in out
    assert f"data.sources.0.path: text.txt -> {folder}/text.txt" in out
    assert "evaluation: 8 of 61 windows of the validation split, drawn evenly" in out
    assert list(Path().iterdir()) == [] and [p.name for p in Path("../runs").iterdir()] == ["moved"]


def test_a_misspelt_path_leaves_nothing_behind(folder):
    before = sorted(folder.rglob("*"))
    assert run("data.sources.0.path=nofile.txt", directory="runs/typo") == 2
    left = {path.name for path in folder.rglob("*")} - {path.name for path in before}
    assert left <= {"stores", ".fingerprints.lock"}


def test_a_tokenizer_that_cannot_be_written_is_one_line(folder, capsys):
    (folder / "runs/tiny/tokenizer.json").mkdir(parents=True)
    assert run() == 2
    error = capsys.readouterr().err
    assert error == "error: run_directory: can't write runs/tiny/tokenizer.json: Is a directory\n"


def test_a_batch_size_changed_at_resume_goes_on_with_the_next_sample(copied_run):
    """On 3 devices, which the first batch size does not divide over: nor may the evaluation."""
    copied_run("decoder")
    edits = ("training.batch_size=12", "runtime.devices=3", "evaluation.steps=1")
    assert run("training.steps=13", *edits) == 0
    run_config = json.loads(Path("runs/tiny/config.json").read_text())
    assert run_config["training"]["batch_schedule"] == [[12, 12]]
    assert dict(rows()["train/tokens"])[13] == (12 * 8 + 12) * 32


def test_a_resumed_run_knows_the_best_loss_so_far(copied_run):
    """At a rate that spoils the model no step but the last is saved: none is better than before."""
    copied_run("decoder")
    edits = (
        "optimizer.learning_rate=100",
        "optimizer.warmup_steps=0",
        "optimizer.schedule=constant",
    )
    often = ("evaluation.every_steps=1", "evaluation.steps=2", "checkpoint.every_steps=0")
    assert run("training.steps=14", *edits, *often, "evaluation.samples=0") == 0
    losses = dict(rows()["eval/loss"])
    assert losses[13] > losses[12]
    saved = [int(path.name) for path in Path("runs/tiny/checkpoints").iterdir()]
    assert sorted(saved) == [12, 14]


def test_the_best_checkpoint_stays(folder):
    # A rate at which the loss is best early on and gets worse: the best is not among the newest.
    edits = ("optimizer.learning_rate=1.0", "optimizer.warmup_steps=8", "checkpoint.keep=1")
    assert run("training.steps=12", "evaluation.every_steps=1", *edits) == 0
    losses = dict(rows()["eval/loss"])
    best = min(losses, key=lambda step: losses[step])
    with Checkpoints(Path("runs/tiny/checkpoints"), keep=1) as kept:
        assert best < 12 and kept.steps() == [best, 12] and kept.best() == best


def test_a_poisoned_state_is_not_saved_and_those_before_it_go_on(copied_run, capsys):
    """A rate at which the first update leaves parameters whose squares overflow."""
    copied_run("decoder")
    edits = ("training.steps=14", "optimizer.warmup_steps=0", "optimizer.schedule=constant")
    often = ("checkpoint.every_steps=1", "evaluation.samples=0")
    assert run(*edits, *often, "optimizer.learning_rate=1e30") == 4
    error = capsys.readouterr().err
    assert "norm of the parameters is inf after step 13; checkpoints before it are kept" in error
    assert saved_steps() == [8, 12]
    assert run(*edits, *often, "optimizer.learning_rate=1e-3") == 0
    assert saved_steps() == [13, 14]


def saved_steps(directory: str | Path = "runs/tiny") -> list[int]:
    return sorted(int(path.name) for path in Path(directory, "checkpoints").iterdir())


def test_an_evaluation_that_is_no_number_takes_its_checkpoint_back(copied_run, capsys, monkeypatch):
    """Step 16 is saved before it is evaluated; its evaluation alone finds that it is poisoned."""
    copied_run("decoder")
    evaluate = scoring.evaluate

    def evaluate_to_nan(step, params, windows, batches, *rest):
        score = evaluate(step, params, windows, batches or 1, *rest)
        return score if batches else score._replace(loss=float("nan"))

    monkeypatch.setattr(scoring, "evaluate", evaluate_to_nan)
    edits = ("evaluation.every_steps=16", "checkpoint.every_steps=1", "checkpoint.keep=1")
    assert run("training.steps=20", "optimizer.allow_restart=true", *edits) == 4
    assert "the validation loss is nan after step 16" in capsys.readouterr().err
    assert saved_steps() == [12, 15]  # the best so far, and the newest sound one


@pytest.mark.parametrize("step", [6, pytest.param(12, marks=pytest.mark.slow)])
def test_a_signal_stops_an_evaluation_which_the_resumed_run_does(
    copied_run, capsys, monkeypatch, step
):
    """Also in the last one. The state is saved, and the rows are those of an unbroken run."""
    copied_run("decoder")
    read_batch = StoppableBatches.__getitem__

    def signal_and_read(batches, index):
        path = Path("runs/stopped/metrics.jsonl")
        if index == 1 and f'{{"step": {step},' in path.read_text():
            os.kill(os.getpid(), signal.SIGTERM)
        return read_batch(batches, index)

    with monkeypatch.context() as patch:
        patch.setattr(StoppableBatches, "__getitem__", signal_and_read)
        assert run(directory="runs/stopped") == runtime.STOPPED
    assert f"stopped by SIGTERM after step {step} of 12; saved" in capsys.readouterr().out
    assert saved_steps("runs/stopped")[-1] == step

    assert run(directory="runs/stopped") == 0
    assert rows("runs/stopped") == rows("runs/tiny")
    assert saved_steps("runs/stopped") == saved_steps("runs/tiny")
    assert run(directory="runs/stopped") == 0
    assert "12 of 12 steps are done" in capsys.readouterr().out


def test_a_run_without_targets_says_so_and_ranks_nothing(folder, capsys):
    """Whole words that never fit into the share that is hidden."""
    (folder / "text.txt").write_text("ACGT" * 5000)
    edits = ("objective.whole_words=true", "data.sequence_length=16", "training.steps=2")
    assert run(*tiny_run.FAMILIES["encoder"], *edits) == 0
    out = capsys.readouterr().out
    reason = "no whole word fits the share that is hidden (objective.noise_share=0.15)"
    assert f"warning: validation without targets: {reason}" in out
    assert f"step 2: validation without targets: {reason}" in out
    assert rows()["eval/targets"] == [(2, 0)] and "eval/loss" not in rows()
    with Checkpoints(Path("runs/tiny/checkpoints"), keep=2) as kept:
        assert kept.latest() == 2 and kept.best() is None


def test_the_change_of_the_rate_at_a_resume_is_told(copied_run, capsys):
    copied_run("decoder")
    assert run("training.steps=12", "optimizer.learning_rate=1e-3") == 0
    assert "learning rate: 1.34e-03 at step 12 -> 1.00e-04 at step 13" in capsys.readouterr().out


@pytest.mark.slow
def test_a_rate_that_has_decayed_rises_again_only_if_that_is_wanted(copied_run, capsys):
    copied_run("decoder")
    assert run("training.steps=24") == 2
    rise = "from 1.34e-03 at step 12 to 6.89e-03 at step 13"
    error = capsys.readouterr().err
    assert error.startswith("error: training.steps: the learning rate would rise again, ")
    assert rise in error and error.count("\n") == 1
    assert saved_steps() == [8, 12]

    assert run("training.steps=15", "optimizer.learning_rate=2e-2") == 0  # changed by name
    assert "learning rate: 1.34e-03 at step 12 -> 5.11e-03 at step 13" in capsys.readouterr().out
    assert saved_steps()[-1] == 15
    assert (
        run("training.steps=40", "optimizer.allow_restart=true", "optimizer.schedule=linear") == 0
    )


def test_a_diverged_loss_ends_the_run_with_4_and_is_not_saved(folder, capsys):
    """Also between two log lines, where only the save would notice."""
    edits = ("optimizer.learning_rate=1e30", "optimizer.gradient_clip=none")
    rare = ("logging.every_steps=99", "evaluation.every_steps=0", "checkpoint.every_steps=2")
    assert run(*edits, "optimizer.warmup_steps=0", *rare) == 4
    assert "the loss is nan at step 2" in capsys.readouterr().err
    assert not list(Path("runs/tiny/checkpoints").iterdir())


def test_ctrl_c_in_a_process_of_its_own_saves_and_exits_75(folder):
    """The real command line, interrupted as a user would."""
    arguments = ["--config", "tiny.py", "training.steps=100000", "runtime.platform=cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxlm.train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 2/"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 75, err
    assert "stopped by SIGINT" in out and "Traceback" not in err
    assert config.load("runs/tiny/config.json").training.steps == 100_000


def test_the_command_to_resume_is_that_of_all_processes():
    arguments = ["--config", "a b.py", "seed=1", "runtime.process=1", "runtime.processes=2"]
    command = train.resume_command([*arguments, "runtime.coordinator=host:1"])
    assert command == "python -m jaxlm.train --config 'a b.py' seed=1"
