"""evaluate --against: what models gained and lost on several domains."""

import json
import math
import xml.etree.ElementTree as ElementTree

import pytest
from support.conversions import TEXT, converted, hf_directory

from jaxlm import evaluate, runtime
from jaxlm.config import UserError
from jaxlm.evaluation.comparison import ModelFigures, compare_models, format_comparison
from jaxlm.evaluation.comparison_plot import draw_comparison


def figures(name, values, objective="causal", tokenizer="a", key="bits_per_byte"):
    rows = [{"source": domain, key: value} for domain, value in values.items()]
    return ModelFigures(name, objective, tokenizer, rows)


BASE = figures("runs/books", {"books": 2.0, "peps": 4.0})
PLAIN = figures("runs/plain", {"books": 2.5, "peps": 3.0}, tokenizer="b")
REPLAY = figures("runs/replay", {"books": 1.9, "peps": 3.2})


def test_changes_are_differences_from_the_base():
    changes = compare_models(BASE, [PLAIN, REPLAY])
    assert [(c.domain, c.model) for c in changes] == [
        ("books", "runs/plain"),
        ("books", "runs/replay"),
        ("peps", "runs/plain"),
        ("peps", "runs/replay"),
    ]
    assert [c.difference for c in changes] == pytest.approx([0.5, -0.1, -1.0, -0.8])
    assert [c.percent for c in changes] == pytest.approx([25, -5, -25, -20])


def test_the_table_has_the_base_once_a_domain():
    lines = format_comparison(
        compare_models(BASE, [PLAIN, REPLAY]), BASE.name, "bits_per_byte"
    ).splitlines()
    assert [line.split() for line in lines] == [
        ["domain", "model", "bits", "per", "byte", "change", "percent"],
        ["books", "runs/books", "2.0000"],
        ["books", "runs/plain", "2.5000", "+0.5000", "+25.00"],
        ["books", "runs/replay", "1.9000", "-0.1000", "-5.00"],
        ["peps", "runs/books", "4.0000"],
        ["peps", "runs/plain", "3.0000", "-1.0000", "-25.00"],
        ["peps", "runs/replay", "3.2000", "-0.8000", "-20.00"],
    ]


def test_what_does_not_compare_is_refused():
    masked = [figures(name, {"x": 2.0}, "masked", name, "loss") for name in ("a", "b")]
    with pytest.raises(UserError, match="b has another tokenizer"):
        compare_models(masked[0], masked[1:])
    with pytest.raises(UserError, match="its objective is causal, and that of a is masked"):
        compare_models(BASE, masked[:1])
    with pytest.raises(UserError, match="--data books: has no bits per byte"):
        compare_models(BASE, [figures("c", {"books": None, "peps": 1.0})])
    same = figures("c", {"x": 3.0}, "masked", "a", "loss")
    assert compare_models(masked[0], [same])[0].difference == 1.0


def test_the_picture_places_models_by_their_figures():
    """Further to the right is worse; foreign names are escaped."""
    model = REPLAY._replace(name="<b>&replay")
    svg = draw_comparison(compare_models(BASE, [PLAIN, model]), BASE.name, "bits_per_byte")
    root = ElementTree.fromstring(svg)
    name = "{http://www.w3.org/2000/svg}"
    filled = [c for c in root.iter(f"{name}circle") if c.get("fill") != "#ffffff"]
    places = [float(circle.get("cx")) for circle in filled]
    values = [2.5, 1.9, 3.0, 3.2]
    scale = (places[3] - places[1]) / (values[3] - values[1])
    assert [place - places[1] for place in places] == pytest.approx(
        [scale * (value - values[1]) for value in values], abs=0.2
    )
    assert scale > 0
    assert [c.get("fill") for c in filled] == ["#c2410c", "#2563a8", "#2563a8", "#2563a8"]
    assert "<b>&replay" in [text.text for text in root.iter(f"{name}text")]


def test_models_with_different_tokenizers_compare_on_the_same_text(tmp_path, capsys):
    """By the command; the figures are those that each model has alone."""
    hf, out = hf_directory(tmp_path / "hf", "gpt2"), tmp_path / "out"
    (tmp_path / "tokens.txt").write_text(" wisdom\n")
    assert converted("extend", hf, out, "--tokens", tmp_path / "tokens.txt") == 0
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text("It was the age of wisdom. " * 9)
    data = [f"--data=a={tmp_path / 'a.txt'}", f"--data=b={tmp_path / 'b.txt'}"]

    def run(*arguments):
        return runtime.command(evaluate.main, [str(argument) for argument in arguments])

    results, picture = tmp_path / "c.json", tmp_path / "c.svg"
    options = ("--json", results, "--picture", picture, "--compute", "float32")
    assert run(out, "--against", hf, *data, *options) == 0
    document = json.loads(results.read_text())
    assert run(out, *data, "--json", results, "--compute", "float32") == 0
    alone = json.loads(results.read_text())["sources"]
    assert [change["value"] for change in document["changes"]] == [
        row["bits_per_byte"] for row in alone
    ]
    assert [len(model["sources"]) for model in document["models"]] == [2, 2]
    before, after = (model["sources"][1] for model in document["models"])
    assert before["bytes"] == after["bytes"] and after["targets"] < before["targets"]
    expected = before["loss"] * before["targets"] / math.log(2) / before["bytes"]
    assert document["changes"][1]["base"] == pytest.approx(expected)
    ElementTree.parse(picture)

    capsys.readouterr()
    for arguments, message in (
        ((out, "--against", hf), "has no validation split yet"),
        ((out, out, "--against", hf, *data), "is compared with itself"),
        ((out, hf, *data), "several models are compared with one"),
        ((out, *data, "--picture", picture), "--picture: is drawn with --against"),
        ((out, "--against", hf, *data, "--step", "0"), "--step: is for one model"),
    ):
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
