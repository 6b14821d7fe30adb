"""A cooldown from a checkpoint of a run that stays at its peak, and the average of its weights."""

import json
from pathlib import Path

import jax
import pytest
from support import tiny_run
from support.trees import assert_same

from jaxlm import config, convert, evaluate, interop, runtime, train
from jaxlm.load_model import load_model

WSD = ("optimizer.schedule=wsd", "optimizer.ema_decay=0.9")
QUANTIZE = ("quantize", "runs/tiny", "--bits", "8")
COOLED = Path("runs/tiny-cooldown-8")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_run.write_recipe(tmp_path)
    return tmp_path


def cool(*arguments: str) -> int:
    """Run the command with these arguments, on the config of the run."""
    return runtime.command(train.main, ["--config", "runs/tiny/config.json", *arguments])


def test_a_cooldown_is_a_copy_of_the_run_that_decays_from_its_step_on(folder, capsys):
    assert tiny_run.run(*WSD) == 0
    before = {path: path.read_bytes() for path in Path("runs/tiny").rglob("*") if path.is_file()}
    plateau = tiny_run.rows()
    assert cool("--cooldown", "8", "optimizer.cooldown_shape=1-sqrt", "training.steps=14") == 0
    assert "learning rate" not in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in before}

    cooled = tiny_run.rows(str(COOLED))
    assert cooled["train/loss"][:8] == plateau["train/loss"][:8]
    rates = dict(cooled["train/learning_rate"])
    peak = 1e-2
    assert rates[8] == pytest.approx(peak)
    expected = {step: peak - 0.9 * peak * ((step - 9) / 6) ** 0.5 for step in range(9, 15)}
    assert {step: rates[step] for step in expected} == pytest.approx(expected, rel=1e-5)
    assert len(cooled["train/loss"]) == 14

    # Stopped anywhere, the same command continues; here all is done.
    assert cool("--cooldown", "8", "training.steps=14", "optimizer.cooldown_shape=1-sqrt") == 0
    assert "14 of 14 steps are done" in capsys.readouterr().out

    assert {"eval/loss", "eval/ema_loss"} <= set(cooled)
    losses, averaged = (dict(cooled[tag]) for tag in ("eval/loss", "eval/ema_loss"))
    assert set(losses) == set(averaged) and losses[14] != averaged[14]


@pytest.mark.slow
def test_the_average_is_scored_and_exported_on_request(folder, capsys):
    assert tiny_run.run(*WSD, "evaluation.every_steps=0") == 0
    recorded = {tag: rows[-1][1] for tag, rows in tiny_run.rows().items() if "loss" in tag}
    for flags, tag in (([], "eval/loss"), (["--ema"], "eval/ema_loss")):
        assert runtime.command(evaluate.main, ["runs/tiny", *flags, "--json", "scores.json"]) == 0
        loss = json.loads(Path("scores.json").read_text())["total"]["loss"]
        assert loss == pytest.approx(recorded[tag], rel=1e-5)

        arguments = ["export", "runs/tiny", f"out{len(flags)}", *flags]
        assert runtime.command(convert.main, arguments) == 0
        _, exported = interop.load(f"out{len(flags)}")
        weights = load_model("runs/tiny", ema=bool(flags)).params
        assert_same(exported["blocks"], weights["blocks"])

    assert runtime.command(convert.main, [*QUANTIZE, "out8"]) == 0
    assert runtime.command(convert.main, [*QUANTIZE, "out8-ema", "--ema"]) == 0
    averaged, plain = (load_model(f"out8{name}").params["blocks"] for name in ("-ema", ""))
    assert not all(
        jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), averaged, plain))
    )

    different = jax.tree.map(lambda a, b: bool((a != b).any()), exported, interop.load("out0")[1])
    assert any(jax.tree.leaves(different))
    capsys.readouterr()
    assert runtime.command(evaluate.main, ["out0", "--ema", "--data", "text.txt"]) == 2
    error = capsys.readouterr().err
    assert (
        error == "error: out0: --ema: only a run has averages, and this directory has no "
        "checkpoints\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edits", "flags", "tag"),
    [
        (("optimizer.ema_decay=0.9", 'optimizer.frozen=["embedding"]'), ["--ema"], "eval/ema_loss"),
        (("optimizer.kind=schedule_free", "optimizer.schedule=constant"), [], "eval/loss"),
    ],
)
def test_averages_are_read_from_beside_the_scale_of_float16(folder, edits, flags, tag):
    half = ("precision.compute=float16", "optimizer.ema_decay=none", *edits)
    assert tiny_run.run(*half, "evaluation.every_steps=0") == 0
    recorded = tiny_run.rows()[tag][-1][1]
    assert runtime.command(evaluate.main, ["runs/tiny", *flags, "--json", "scores.json"]) == 0
    loss = json.loads(Path("scores.json").read_text())["total"]["loss"]
    assert loss == pytest.approx(recorded, rel=1e-3)  # float16 rounds to 5e-4


def test_a_run_without_an_average_says_so(copied_run, capsys):
    copied_run("decoder")
    assert runtime.command(evaluate.main, ["runs/tiny", "--ema"]) == 2
    reason = "the run keeps no average of its weights (optimizer.ema_decay)"
    assert capsys.readouterr().err == f"error: runs/tiny: --ema: {reason}\n"


@pytest.mark.slow
def test_the_length_of_a_cooldown_is_its_share_of_all_steps(folder):
    edits = ("optimizer.schedule=constant", "optimizer.decay_share=0.2", "evaluation.every_steps=0")
    assert tiny_run.run(*edits) == 0
    assert cool("--cooldown", "8") == 0
    saved = config.load(str(COOLED / "config.json"))
    assert (saved.training.steps, saved.optimizer.schedule) == (10, "wsd")
    assert saved.optimizer.cooldown_start(10) == 8


@pytest.mark.parametrize(
    ("run_edits", "arguments", "code", "message"),
    [
        (
            (),
            ("8",),
            2,
            "optimizer.schedule: --cooldown 8 needs a run whose rate stays at its peak",
        ),
        (WSD, ("7",), 3, "checkpoints: no checkpoint of step 7 (there are: 8, 12)"),
        (WSD, ("2",), 2, "optimizer.warmup_steps: --cooldown 2 is within the warmup of 4 steps"),
        (WSD, ("12",), 2, "--cooldown 12 is within the run's own decay, which starts at step 10"),
        (WSD, ("8", "training.steps=8"), 2, "training.steps: 8 leaves no step for --cooldown 8"),
        (WSD, ("8", "optimizer.decay_share=1"), 2, "needs a share between 0 and 1, got 1; or set"),
        (WSD, ("8", "run_directory=runs/none"), 2, "runs/none: --cooldown 8: there is no run"),
        (WSD, ("8", "optimizer.ema_decay=none"), 2, "optimizer.ema_decay: 0.9 -> none"),
    ],
)
def test_mistakes(copied_run, capsys, run_edits, arguments, code, message):
    """The config of a finished run is edited in place: a mistake is found before anything runs."""
    copied_run("decoder")
    file = Path("runs/tiny/config.json")
    document = json.loads(file.read_text())
    for edit in run_edits:
        key, value = edit.removeprefix("optimizer.").split("=")
        document["optimizer"][key] = value if key == "schedule" else float(value)
    file.write_text(json.dumps(document))

    assert cool("--cooldown", *arguments) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
