"""Budgets: the command, its figures, and its mistakes."""

import json
import math

import pytest
from test_structure import ROOT

from jaxlm import flops, hardware, models
from jaxlm import plan as plan_room
from jaxlm.config import ModelConfig, UserError
from jaxlm.plan import Question, budget_command, plan_budget
from jaxlm.plan.scaling_laws import REFIT
from jaxlm.plan.traced_flops import traced_training_flops

GPT2 = ModelConfig(vocabulary_size=50257, layers=12, width=768, heads=12)


def plan(*arguments, tmp_path):
    """Return the plan that the command writes for these arguments."""
    file = tmp_path / "plan.json"
    assert budget_command.main([*arguments, "--json", str(file)]) == 0
    return json.loads(file.read_text())


@pytest.fixture
def run(tmp_path, capsys):
    """Return a function that runs the command on a line, and returns its JSON and its text."""

    def run_line(line):
        document = plan(*line.split(), tmp_path=tmp_path)
        return document, capsys.readouterr().out

    return run_line


def test_a_petaflop_day_in_gpus(run):
    """8.64e19 FLOPs are 8 V100 of 125 TFLOP/s at their peak, or 3.2 A100 of 312."""
    document, text = run("--pf-days 1")
    assert document["flops"] == 8.64e19
    assert "1 petaFLOP/s-day is 8.64e+19 FLOPs: a day of 8 V100 or 3.2 A100 at 100%" in text
    assert "20 V100 or 8 A100 at 40%" in text


def test_gophers_budget(run):
    document, text = run("--flops 5.76e23")
    approaches = document["approaches"]
    assert approaches["1"]["parameters"] == pytest.approx(67e9, rel=0.02)
    assert approaches["2"]["parameters"] == pytest.approx(63e9, rel=0.02)
    assert approaches["3"]["parameters"] == pytest.approx(40e9, rel=0.02)
    assert "loss" not in approaches["1"] and "loss" not in approaches["2"]
    assert approaches["refit"]["loss"] == document["loss"] == pytest.approx(1.974, abs=1e-3)
    assert document["shape"]["width"] == 8192 and document["gpu_hours"] is None
    assert "67.8B" in text and "extrapolated" in text


def test_gpus_days_and_mfu_are_a_budget(run):
    """8 x 7 x 86,400 s x 0.4 x 989.4 TFLOP/s."""
    document, text = run("--gpus 8xh100 --days 7 --mfu 0.4 --price 2.5")
    assert document["flops"] == pytest.approx(8 * 7 * 86_400 * 0.4 * 989.4e12)
    assert document["gpu_hours"] == pytest.approx(1344)
    assert document["cost"] == pytest.approx(3360)
    assert "1,344 GPU-hours" in text and "cost: 3,360" in text


BLOOMBERG = "--parameters 50.6B --tokens 569B --vocabulary-size 131072 --data-tokens 709B "


def test_bloomberggpt_took_its_flops_and_days(run):
    """2.36e23 FLOPs with recomputation, 53 days on 512 A100-40GB at 102 TFLOP/s (table 4).

    139,200 steps of 32.5 s are 52.4 days. 569B of 709B tokens were read, 80% of an epoch.
    """
    line = f"{BLOOMBERG} --recompute --gpus 512xa100-40gb --mfu {102 / 312}"
    document, text = run(line)
    assert document["flops"] == pytest.approx(2.36e23, rel=0.05)
    assert document["exact_flops"] == pytest.approx(2.36e23, rel=0.05)
    assert document["training_flops"] == pytest.approx(0.75 * 2.36e23, rel=0.05)
    assert document["days"] == pytest.approx(139_200 * 32.5 / 86_400, rel=0.05)
    assert document["data"]["epochs"] == pytest.approx(0.8, abs=0.01)
    assert "569B of 709B tokens are read (80%)" in text

    without, _ = run(f"{BLOOMBERG} --gpus 512xa100-40gb --mfu {102 / 312}")
    assert without["days"] == pytest.approx(0.75 * document["days"])


def test_bloomberggpt_needed_its_gpus(run):
    document, _ = run(f"{BLOOMBERG} --recompute --gpus a100-40gb --days 53 --mfu {102 / 312}")
    assert document["gpus"] == pytest.approx(512, rel=0.05)
    document, _ = run(f"{BLOOMBERG} --recompute --gpus 512xa100-40gb --days 53")
    assert document["mfu"] * 312e12 == pytest.approx(102e12, rel=0.05)


def test_bloomberggpts_budget_by_the_law_that_it_used(run):
    """1.3M GPU-hours at 102 TFLOP/s with recomputation: 53B (approach 1), 50B (approach 2)."""
    hours = 1.3e6 / 512 / 24
    document, _ = run(f"--gpus 512xa100-40gb --days {hours} --mfu {102 / 312} --recompute")
    assert document["approaches"]["1"]["parameters"] == pytest.approx(52.993e9, rel=0.02)
    assert document["approaches"]["2"]["parameters"] == pytest.approx(49.753e9, rel=0.02)
    assert document["approaches"]["2"]["tokens"] == pytest.approx(1175.766e9, rel=0.02)


@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder-decoder"])
def test_flops_of_the_shape_cost_the_budget(run, family):
    """Encoders and encoder-decoders within 2%, the steps between shapes; decoders count 6 N D."""
    document, _ = run(f"--flops 1e21 --family {family}")
    exact = document["exact_flops"]
    if family == "decoder":
        assert document["parameters"] * document["tokens"] * 6 == pytest.approx(1e21)
        assert 1.02e21 < exact < 1.12e21  # attention, which 6 N D leaves out
    else:
        assert exact == pytest.approx(1e21, rel=0.02)


def test_smaller_models_give_loss_up(run):
    document, text = run("--flops 1e21")
    rows = document["overtraining"]
    given_up = [row["loss_given_up"] for row in rows]
    assert given_up[1] == 0 and min(given_up) == 0
    assert given_up[1:] == sorted(given_up[1:])
    assert all(row["parameters"] * row["tokens"] * 6 == pytest.approx(1e21) for row in rows)

    half = rows[2]
    more = half["compute_to_equal"] * half["tokens"]
    assert REFIT.loss(half["parameters"], more) == pytest.approx(rows[1]["loss"])
    assert rows[-1]["compute_to_equal"] is None and "never" in text


def test_too_little_data_is_repeated(run):
    document, text = run("--flops 9.3e21 --data-tokens 25B")
    data = document["data"]
    assert data["epochs"] == pytest.approx(9.7, rel=0.1)  # Muennighoff et al., figure 3
    assert data["loss"] > data["unlimited"]["loss"]
    assert document["parameters"] == data["parameters"] < data["unlimited"]["parameters"]
    assert "tokens are read 9.1 times" in text

    enough, text = run("--flops 1e19 --data-tokens 25B")
    assert "data" in enough and enough["data"]["epochs"] < 1
    assert "of 25B tokens are read" in text


def test_what_a_loss_takes(run):
    document, _ = run("--loss 2.2 --parameters 3B")
    assert document["loss"] == pytest.approx(2.2)
    assert set(document["approaches"]) == {"3", "refit"}
    cheapest = document["approaches"]["refit"]
    assert cheapest["loss"] == pytest.approx(2.2)
    assert 6 * cheapest["parameters"] * cheapest["tokens"] < document["flops"]


@pytest.mark.parametrize(
    ("line", "parameters", "tokens"),
    [
        ("--flops 6e21 --parameters 1B", 1e9, 1e12),
        ("--flops 6e21 --tokens 1T", 1e9, 1e12),
        ("--approach 1 --parameters 10B", 10e9, 205.1e9),  # table 3
        ("--approach 1 --tokens 205.1B", 10e9, 205.1e9),
    ],
)
def test_one_size_asks_for_the_other(run, line, parameters, tokens):
    document, _ = run(line)
    assert document["parameters"] == pytest.approx(parameters, rel=0.01)
    assert document["tokens"] == pytest.approx(tokens, rel=0.01)


def test_what_a_recipe_costs(run):
    """nanoGPT's GPT-2: 600,000 steps of 480 x 1,024 tokens, 124,439,808 parameters."""
    recipe = ROOT / "configs" / "gpt2_124m.py"
    document, text = run(f"--config {recipe} --gpus 8xa100")
    assert document["parameters"] == 124_439_808
    assert document["tokens"] == 600_000 * 480 * 1024
    assert document["shape"]["flops_per_token"] == flops.training_flops(GPT2, 1024) / 1024
    assert document["traced_flops_per_token"] == traced_training_flops(GPT2, 1024) / 1024
    assert document["exact_flops"] == document["shape"]["flops_per_token"] * document["tokens"]
    assert "decoder of the config: 12 layers, width 768, 12 heads, MLP of 3072: 124,4" in text

    short, _ = run(f"--config {recipe} training.steps=60000 parallel.remat=full")
    assert short["tokens"] == document["tokens"] / 10
    assert short["exact_flops"] == pytest.approx(document["exact_flops"] / 10 * 4 / 3)


def test_a_recipe_of_two_stacks_is_counted_exactly(run):
    """T5 reads 512 + 114 tokens: 1M steps of 2,048 samples."""
    document, _ = run(f"--config {ROOT / 'configs' / 't5_base.py'}")
    assert document["tokens"] == 1_000_000 * 2048 * (512 + 114)
    assert document["flops"] == pytest.approx(document["exact_flops"])
    assert document["flops"] < 0.5 * 6 * document["parameters"] * document["tokens"]


def test_json_on_stdout_is_all_there_is(capsys):
    assert budget_command.main(["--flops", "1e20", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["flops"] == 1e20


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "nothing to plan from"),
        ("--flops 0", "--flops: must be above 0"),
        ("--flops -1", "--flops: must be a number above 0"),
        ("--flops nan", "--flops: must be a number above 0"),
        ("--flops 1e400", "--flops: must be at most"),
        ("--pf-days 0", "--pf-days: must be above 0"),
        ("--flops 1e20 --pf-days 1", "not allowed with"),
        ("--flops 1e20 --mfu 3", "--mfu: must be above 0 and at most 1"),
        ("--flops 1e20 --mfu 0.4", "--mfu: needs --gpus"),
        ("--days 7", "--days: needs --gpus"),
        ("--flops 1e20 --price 2", "--price: needs --gpus"),
        ("--gpus 8xh1000 --days 7", "there is no GPU 'h1000' in the table"),
        ("--gpus 8xh100 --days 0", "--days: must be above 0"),
        ("--gpus 8xh100", "nothing to plan from"),
        ("--gpus 8xh100 --days 1 --flops 1e22", "compute at most 6.84e+20 FLOPs"),
        ("--gpus 8xh100 --days 9 --flops 1e21 --mfu 0.9", "--mfu: the FLOPs, --gpus and --days"),
        ("--flops 1e20 --loss 2", "--loss: the budget decides it already"),
        ("--flops 1e20 --parameters 1B --tokens 1B", "--tokens: the budget and --parameters"),
        ("--parameters 1B --tokens 1B --loss 2", "--loss: --parameters and --tokens decide"),
        ("--loss 1.5", "no budget reaches a loss of 1.5"),
        ("--loss 2 --parameters 10M", "parameters end at a loss of"),
        ("--loss 2 --approach 1", "--approach 1: predicts no loss"),
        ("--flops 1e20 --data-tokens 0", "--data-tokens: must be above 0"),
        ("--flops 1e20 --vocabulary-size 0", "--vocabulary-size: must be a whole number"),
        ("--flops 1e20 --hardware gpus.json", "--hardware: needs --gpus"),
        ("--flops 1e20 model.layers=2", "'model.layers=2': edits need --config"),
        ("--config configs/no.py", "no such config file"),
        ("--config configs/no.py --tokens 1B", "--tokens: --config decides it"),
        ("--flops 1e12 --family encoder", "no shape has"),
        ("--flops 1e20 --family encoder-decoder --sequence-length 1", "--sequence-length: 1 is"),
    ],
)
def test_mistakes_are_one_line(line, message):
    with pytest.raises(UserError) as error:
        budget_command.main(line.split())
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_budget_too_small_for_the_vocabulary_has_no_shape(run):
    document, text = run("--flops 1e12")
    assert document["shape"] is None and document["exact_flops"] is None
    assert "no shape has" in text


def test_plans_are_functions():
    """As a notebook calls them."""
    answer = plan_budget(Question(parameters=1e9, tokens=20e9))
    assert answer.flops == pytest.approx(1.2e20)
    assert answer.shape is not None
    model = models.build(answer.shape.config)
    assert model.parameter_count() == answer.shape.parameters

    a100 = hardware.find_accelerator("a100")
    answer = plan_budget(Question(flops=1e20, accelerator=a100, gpus=8, mfu=0.5))
    assert answer.machines is not None
    assert answer.machines.hours == pytest.approx(1e20 / (0.5 * 312e12) / 3600)
    assert math.isclose(answer.machines.days or 0, answer.machines.hours / 24 / 8)


def test_every_public_name_is_there():
    assert {name for name in plan_room.__all__ if not hasattr(plan_room, name)} == set()
    with pytest.raises(AttributeError, match="has no attribute 'plan_lunch'"):
        plan_room.plan_lunch  # noqa: B018
