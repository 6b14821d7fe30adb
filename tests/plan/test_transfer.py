"""python -m jaxlm.plan transfer: learning rates of several widths, side by side."""

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support import tiny_run

from jaxlm.config import UserError
from jaxlm.plan import transfer_command
from jaxlm.plan.scaled_config import scale_width
from jaxlm.plan.transfer import (
    WidthLosses,
    describe_transfer,
    final_loss,
    format_transfer,
    list_rates,
)
from jaxlm.plan.transfer_plot import draw_transfer

RESULTS = [
    WidthLosses("mup", 64, 1000, (0.001, 0.002, 0.004), (3.0, 2.0, 2.5)),
    WidthLosses("standard", 128, 4000, (0.001, 0.002, 0.004), (2.0, 2.5, math.inf)),
]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Return the path of the tiny recipe, in the working directory."""
    tiny_run.write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    return "tiny.py"


@pytest.mark.slow
def test_a_loss_is_that_of_a_run_with_this_width_and_rate(recipe):
    edits = ["model.parametrization=mup", "model.mup_base_width=16", "model.tied_head=false"]
    arguments = ["--config", recipe, "--widths", "32", "--rates", "2", "--json", "rates.json"]
    arguments += ["--picture", "rates.svg", "model.dropout=0"]
    assert transfer_command.main([*arguments, *edits]) == 0
    (result,) = json.loads(Path("rates.json").read_text())["runs"]
    assert result["rates"] == [0.005, 0.01] and result["width"] == 32
    assert ElementTree.parse("rates.svg").getroot().tag.endswith("svg")

    assert tiny_run.run(*edits, "model.dropout=0", "optimizer.learning_rate=0.005") == 0
    rows = map(json.loads, Path("runs/tiny/metrics.jsonl").read_text().splitlines())
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert result["losses"][0] == pytest.approx(sum(losses[-2:]) / 2, rel=1e-6)
    assert result["losses"][0] != result["losses"][1]


def test_rates_are_factors_of_two_around_the_middle():
    assert list_rates(8.0, 3) == [4.0, 8.0, 16.0]
    assert list_rates(8.0, 2) == [4.0, 8.0]


def test_the_loss_is_the_mean_of_the_last_steps():
    assert final_loss([9.0] * 8 + [1.0, 2.0]) == 1.5
    assert final_loss([1.0, math.nan]) == math.inf


def test_widths_change_no_depth():
    from support import tiny

    wide = scale_width(tiny.ENCODER_DECODER, 128).model
    assert (wide.width, wide.heads, wide.layers, wide.encoder_layers) == (128, 8, 2, 1)


def test_a_diverged_run_is_named_and_has_no_dot():
    table = format_transfer(RESULTS)
    assert table[1][-2:] == ["2.0000*", "2.5000"] and table[2][-1] == "diverged"
    runs = describe_transfer(RESULTS)["runs"]
    assert runs[1]["losses"] == [2.0, 2.5, None] and runs[0]["best_rate"] == 0.002

    svg = ElementTree.fromstring(draw_transfer(RESULTS))
    titles = [title.text for title in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert "width 64, rate 0.002: 2.0000" in titles
    assert len([title for title in titles if title and title.startswith("width")]) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--widths=64", "--compare"],
            "--compare: the recipe has model.parametrization='standard'",
        ),
        (["--widths=1.5"], "must be a whole number from 1"),
        (["--widths=32", "precision.compute=float16"], "plan transfer has no loss scaling"),
        (["--widths=32", "--rates=0"], "--rates: must be above 0"),
        (["--widths=32", "--data=missing.txt"], "missing.txt: no such file"),
    ],
)
def test_wrong_arguments_are_refused(recipe, arguments, message):
    with pytest.raises(UserError) as error:
        transfer_command.main(["--config", recipe, *arguments])
    assert message in str(error.value)
