"""Ladders: how recipes are scaled, what is written, and how the runs are trained."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jaxlm.card.facts import sample_lengths
from jaxlm.config import ConfigError, UserError, apply_edits, load
from jaxlm.plan import scaled_config, sweep, sweep_command, sweep_run
from jaxlm.plan.observations import read_observations, sample_flops
from tests.support.tiny_run import RECIPE, RUNS

CONFIGS = Path(__file__).parent.parent.parent / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.py"))


def load_recipe(name, *edits):
    return load(CONFIGS / f"{name}.py", edits)


# The rules


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_scales_to_smaller_and_larger_widths(name):
    config = load_recipe(name)
    sizes = {}
    for width in sweep.all_widths():
        size = sweep.usual_size(config, width)
        if size is not None:
            sizes[width] = size
    assert len(sizes) > 20 and list(sizes.values()) == sorted(sizes.values())
    assert scaled_config.scale_model(config.model, config.model.width) == replace(
        config.model, kv_heads=config.model.kv_heads, mlp_width=config.model.mlp_width
    )


def test_a_model_keeps_its_proportions():
    model = load_recipe("llama_1b").model
    half = scaled_config.scale_model(model, model.width // 2)
    assert half.layers == round(model.layers / 2)
    assert half.width_per_head == model.width_per_head
    assert half.key_value_heads * model.heads == model.key_value_heads * half.heads
    assert half.hidden_width == pytest.approx(model.hidden_width / 2, abs=8)
    with pytest.raises(ConfigError, match="heads of even width"):
        scaled_config.scale_model(model, 33)


@pytest.mark.parametrize("name", ["quickstart", "bert_base", "t5_base", "electra_small"])
def test_a_run_spends_its_budget_and_ends_with_its_schedule(name):
    config = load_recipe(name)
    budget = 0.02 * scaled_config.recipe_flops(config)
    width = config.model.width // 2
    run = sweep.plan_run(config, width, budget, "run", evaluation_tokens=2**14)
    scaled, training = run.config, run.config.training

    assert run.flops == training.steps * training.batch_size * sample_flops(scaled)
    assert abs(run.flops - budget) <= 0.51 * training.batch_size * sample_flops(scaled)
    assert run.tokens == training.steps * training.batch_size * sample_lengths(scaled).tokens
    before = config.training.batch_schedule[-1:] or ((0, config.training.batch_size),)
    assert math.log2(before[0][1] / training.batch_size) % 1 == 0
    assert training.batch_size % training.microbatches == 0
    if scaled.optimizer.decay_steps is not None:
        assert scaled.optimizer.decay_steps <= training.steps
    assert scaled.optimizer.warmup_steps < training.steps / 2


def test_the_learning_rate_follows_width_and_batch_size():
    """The roots of 1 / width (arXiv 1706.03762) and of the batch size (arXiv 2205.10287)."""
    config = load_recipe("gpt2_124m")
    budget = scaled_config.recipe_flops(config)
    same = scaled_config.scale_run(config, 768, budget, evaluation_tokens=1024)
    assert same.optimizer == config.optimizer and same.model == config.model
    assert same.training.batch_size == config.training.batch_size

    less = scaled_config.scale_run(config, 384, budget / 2**6.2, evaluation_tokens=1024)
    assert less.training.batch_size == config.training.batch_size / 4
    rate = config.optimizer.learning_rate * (2 / 4) ** 0.5
    assert less.optimizer.learning_rate == pytest.approx(rate)
    adafactor = load_recipe("t5_base")
    rate = scaled_config.scale_run(adafactor, 384, 1e18, evaluation_tokens=1024).optimizer
    assert rate.learning_rate == adafactor.optimizer.learning_rate


def test_with_mup_the_learning_rate_does_not_follow_the_width():
    edits = ["model.parametrization=mup", "model.mup_base_width=768"]
    config = apply_edits(load_recipe("gpt2_124m"), edits)
    budget = scaled_config.recipe_flops(config)
    narrow = scaled_config.scale_run(config, 384, budget, evaluation_tokens=1024)
    assert narrow.optimizer.learning_rate == config.optimizer.learning_rate
    assert narrow.model.mup_base_width == 768


def test_schedules_in_steps_and_tokens_are_scaled():
    config = apply_edits(
        load_recipe("quickstart"),
        [
            "optimizer.decay_steps=450",
            'data.sources=[{"name":"a","path":"a"},{"name":"b","path":"b","tokens":900000}]',
            "data.mixture_schedule=[[0,[1,2]],[300,[2,1]]]",
            "training.batch_schedule=[[100,16]]",
        ],
    )
    budget = scaled_config.recipe_flops(config) / 4
    scaled = scaled_config.scale_run(config, 128, budget, evaluation_tokens=1024)
    share = scaled.training.steps / 900
    assert scaled.optimizer.decay_steps == round(450 * share)
    assert scaled.data.mixture_schedule[1][0] == round(300 * share)
    samples = scaled.training.steps * scaled.training.batch_size
    assert scaled.data.sources[1].tokens == round(900_000 * samples / (100 * 8 + 800 * 16))
    assert scaled.training.batch_schedule == ()


def test_a_reduced_batch_still_divides_by_the_devices():
    edits = ["runtime.devices=32", "training.batch_size=64", "training.microbatches=2"]
    config = load_recipe("gpt2_124m", *edits)
    scaled = scaled_config.scale_run(config, 128, 1e15, evaluation_tokens=1024)
    assert scaled.training.batch_size == 32 and scaled.training.microbatches == 1


# Ladders


def test_an_isoflop_ladder_has_each_size_with_each_budget():
    config = load_recipe("quickstart")
    runs = sweep.plan_isoflop(config, [1e14, 1e13], sizes=4)
    assert [run.budget for run in runs] == [1e13] * 4 + [1e14] * 4
    widths = [run.config.model.width for run in runs]
    assert widths[:4] == sorted(set(widths[:4])) and widths[4:] == sorted(set(widths[4:]))
    assert widths[0] < widths[4] and widths[3] < widths[7]
    assert runs[0].name == f"1e13-w{widths[0]}"
    shared = sweep.plan_isoflop(config, [1e13, 1e14], widths=[96, 64])
    assert [run.name for run in shared] == ["1e13-w64", "1e13-w96", "1e14-w64", "1e14-w96"]
    for run in runs:
        assert run.flops == pytest.approx(run.budget, rel=0.05)

    # All score the same windows, once, at the end.
    evaluations = {run.config.evaluation for run in runs}
    assert len(evaluations) == 1
    evaluation = evaluations.pop()
    assert evaluation.every_steps == 0
    assert evaluation.steps * evaluation.batch_size * 256 == sweep.EVALUATION_TOKENS
    assert {run.config.data for run in runs} == {config.data}


def test_the_chosen_sizes_surround_the_optimum():
    config = load_recipe("gpt2_124m")
    widths = sweep.choose_widths(config, 1e18, 5, 20.0)
    sizes = [sweep.usual_size(config, width) for width in widths]
    optimum = math.sqrt(1e18 / 120)
    assert sizes[0] < optimum / 2 and sizes[-1] > optimum * 2


def test_a_size_ladder_keeps_the_tokens_per_parameter():
    runs = sweep.plan_sizes(load_recipe("quickstart"), [128, 64, 256], tokens_per_parameter=5)
    assert [run.name for run in runs] == ["w64", "w128", "w256"]
    for run in runs:
        assert run.tokens / run.parameters == pytest.approx(5, rel=0.03)


def test_budgets_that_are_too_small_and_doubled_ones_are_refused():
    config = load_recipe("quickstart")
    with pytest.raises(UserError, match="fewer than 20: raise it"):
        sweep.plan_isoflop(config, [4e9])
    with pytest.raises(UserError, match="--budgets: 1e\\+13 stands twice"):
        sweep.plan_isoflop(config, [1e13, 1e13])
    with pytest.raises(UserError, match="--widths: 33 does not go with the recipe"):
        sweep.plan_isoflop(config, [1e13], widths=[33, 64])


# Files and training


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Return the path of a recipe, in whose folder the test runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "text.txt").write_text("the cat sat on the mat, and so on and on. " * 2000)
    return "recipe.py"


def write(recipe, *arguments):
    widths = [] if "--widths" in arguments else ["--widths", "16,32"]
    common = ["--config", recipe, "--out", "ladder", "--budgets", "4e9,9e9"]
    return sweep_command.main([*common, *widths, *arguments])


def test_a_ladder_is_written_once_and_never_overwritten(recipe, capsys):
    assert write(recipe) == 0
    assert "4 runs" in capsys.readouterr().out
    ladder = json.loads(Path("ladder/sweep.json").read_text())
    assert [run["name"] for run in ladder["runs"]] == ["4e9-w16", "4e9-w32", "9e9-w16", "9e9-w32"]
    saved = Path("ladder/4e9-w16/config.json")
    config = load(saved)
    assert config.run_directory == "ladder/4e9-w16" and config.model.width == 16

    before = saved.stat().st_mtime_ns
    assert write(recipe) == 0 and saved.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="ladder: holds another ladder"):
        write(recipe, "--widths", "16,24")
    with pytest.raises(UserError, match="learning_rate of 4e9-w16 is"):
        write(recipe, "optimizer.learning_rate=1e-3")


TRAINER = """#!{python}
import json, sys
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--config") + 1]).parent
config = json.loads((folder / "config.json").read_text())
codes = json.loads(Path("codes.json").read_text())
code = codes.pop(folder.name, [0])
print("a line of the trainer")
if code[0]:
    Path("codes.json").write_text(json.dumps(codes | {{folder.name: code[1:] or [0]}}))
    print("error: it broke", file=sys.stderr)
    sys.exit(code[0])
step = config["training"]["steps"]
with (folder / "metrics.jsonl").open("a") as file:
    loss = 1 + config["model"]["width"] / 100
    file.write(json.dumps({{"step": step, "eval/loss": loss}}) + "\\n")
"""


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Train by a script that writes a loss, or ends with the exit codes that a test sets."""
    script = tmp_path / "trainer"
    script.write_text(TRAINER.format(python=sys.executable))
    script.chmod(0o755)
    monkeypatch.setattr(sweep_run.sys, "executable", str(script))
    monkeypatch.setattr(sweep_run, "POLL_SECONDS", 0.02)

    def set_codes(**codes):
        (tmp_path / "codes.json").write_text(
            json.dumps({name.replace("_", "-").removeprefix("r"): c for name, c in codes.items()})
        )

    set_codes()
    return set_codes


def test_the_runs_are_trained_in_order_and_then_fitted(recipe, trainer, capsys):
    assert write(recipe, "--run") == 0
    out = capsys.readouterr()
    assert "fit with\n  python -m jaxlm.plan fit ladder --picture ladder/fit.svg" in out.out
    assert "run 4 of 4, 9e9-w32: eval/loss 1.3200" in out.err
    assert "a line of the trainer" in Path("ladder/4e9-w16/train.log").read_text()
    runs, notes = read_observations(["ladder"])
    assert runs.loss.tolist() == [1.16, 1.32, 1.16, 1.32] and notes == []

    assert write(recipe, "--run") == 0
    assert "4 of 4 runs are finished" in capsys.readouterr().out


def test_a_stopped_run_ends_the_ladder_and_goes_on_later(recipe, trainer, capsys):
    trainer(r4e9_w32=[75])
    assert write(recipe, "--run") == 75
    out = capsys.readouterr().out
    assert "run 2 of 4, 4e9-w32: stopped" in out and "go on with" in out
    assert not Path("ladder/9e9-w16/metrics.jsonl").exists()
    assert write(recipe, "--run") == 0
    assert "1 of 4 runs are finished" in capsys.readouterr().out


def test_a_diverged_run_is_left_and_any_other_failure_ends_the_ladder(recipe, trainer, capsys):
    trainer(r4e9_w32=[4, 4])
    assert write(recipe, "--run") == 4
    assert "diverged: 4e9-w32; a fit leaves them out" in capsys.readouterr().out
    assert Path("ladder/9e9-w32/metrics.jsonl").exists()
    trainer(r4e9_w32=[2])
    with pytest.raises(UserError, match="run 2 of 4, 4e9-w32: it broke"):
        write(recipe, "--run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ladder=size"], "--ladder size needs --widths"),
        ([], "--budgets: an isoFLOP ladder needs them"),
        (["--budgets=4e9", "--sizes=4", "--widths=16"], "--sizes and --widths"),
        (["--budgets=4e9", "--sizes=2"], "must be a whole number from 3 to 64"),
        (["--budgets=1e9,x"], "must be a number above 0"),
        (["--budgets=4e9", "--data=missing.txt", "--run"], "missing.txt: no such file"),
    ],
)
def test_wrong_arguments_of_a_ladder_are_refused(recipe, arguments, message):
    with pytest.raises(UserError) as error:
        sweep_command.main(["--config", recipe, "--out", "ladder", *arguments])
    assert message in str(error.value)
    assert not Path("ladder").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
def test_a_small_ladder_of_each_family_is_trained_and_read(recipe, family):
    edits = [*RUNS[family], "optimizer.learning_rate=3e-3"]
    ladder = ["--out", "ladder", "--budgets", "4e9", "--widths", "16,32", "--run"]
    assert sweep_command.main(["--config", recipe, *ladder, *edits]) == 0
    runs, _ = read_observations(["ladder"])
    assert runs.names == ("4e9-w16", "4e9-w32")
    assert all(0 < loss < 6 for loss in runs.loss)
    assert len(list(Path("stores").glob("*/manifest.json"))) == 1
