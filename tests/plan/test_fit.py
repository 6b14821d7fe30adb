"""python -m jaxlm.plan fit: CSV files, run directories, figures, pictures and mistakes."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxlm import models
from jaxlm.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
    UserError,
    apply_edits,
    to_dict,
)
from jaxlm.plan import fit_command, observations

HEADER = "parameters,tokens,loss\n"


def planted_rows(outlier=None):
    """CSV rows of a ladder that follows Chinchilla's printed law, with a little noise."""
    rows, rng = [], np.random.default_rng(0)
    for budget in (1e18, 1e19, 1e20):
        for spread in (0.25, 0.5, 1, 2, 4):
            n = (budget / 120) ** 0.5 * spread
            d = budget / 6 / n
            loss = 1.69 + 406.4 / n**0.34 + 410.7 / d**0.28
            loss *= np.exp(0.002 * rng.standard_normal())
            rows.append([f"{n:.8g}", f"{d:.8g}", f"{loss:.8g}"])
    if outlier is not None:
        rows[outlier][2] = f"{float(rows[outlier][2]) * 1.15:.8g}"
    return "".join(",".join(row) + "\n" for row in rows)


@pytest.fixture
def fit(tmp_path, capsys):
    """Return a function that fits the runs of a CSV's text, and returns the JSON and the output."""

    def fit_text(text, *arguments):
        runs, out = tmp_path / "runs.csv", tmp_path / "fit.json"
        runs.write_text(text)
        assert fit_command.main([str(runs), "--resamples=100", "--json", str(out), *arguments]) == 0
        return json.loads(out.read_text()), capsys.readouterr().out

    return fit_text


def test_the_figures_are_plain_numbers_under_their_agreed_keys(fit):
    document, text = fit(HEADER + planted_rows(), "--predict-flops=1e22")
    parametric, intervals = document["parametric"], document["intervals"]
    assert set(parametric) == {"E", "A", "B", "alpha", "beta", "objective"}
    assert all(type(value) is float for value in parametric.values())
    for name, (low, high) in intervals.items():
        assert low < parametric[name] < high
    assert document["isoflop"]["parameters"]["exponent"] == pytest.approx(0.46, abs=0.1)
    assert document["outliers"] == document["dropped"] == []

    (point,) = document["predictions"]
    assert point["loss"] == pytest.approx(2.158, rel=0.02)
    assert point["interval"][0] < point["loss"] < point["interval"][1]
    assert point["parameters_interval"][0] < point["parameters"] < point["parameters_interval"][1]
    assert "15 runs" in text and "1e+22" in text and "check: a fit without" in text


def test_flops_stand_for_tokens_and_names_for_lines(fit):
    by_tokens, _ = fit(HEADER + planted_rows())
    rows = [line.split(",") for line in planted_rows().splitlines()]
    text = "Loss, flops ,name,parameters\n" + "".join(
        f"{loss},{6 * float(n) * float(d)!r},run{i},{n}\n" for i, (n, d, loss) in enumerate(rows)
    )
    by_flops, _ = fit("\ufeff" + text.replace("\n", "\r\n"))
    assert by_flops["parametric"] == pytest.approx(by_tokens["parametric"], rel=1e-6)
    assert by_flops["runs"][3]["name"] == "run3" and by_tokens["runs"][3]["name"] == "line 5"


def test_outliers_are_dropped_on_request_alone(fit):
    kept, text = fit(HEADER + planted_rows(outlier=7))
    assert [run["name"] for run in kept["outliers"]] == ["line 9"] and kept["dropped"] == []
    assert len(kept["runs"]) == 15 and "line 9 (+1" in text

    document, text = fit(HEADER + planted_rows(outlier=7), "--drop-outliers")
    assert document["dropped"] == ["line 9"] and len(document["runs"]) == 14
    assert document["parametric"]["objective"] < kept["parametric"]["objective"] / 2


def test_a_held_out_run_is_compared_with_its_prediction(fit):
    document, text = fit(HEADER + planted_rows(), "--hold-out=line 14")
    (held,) = document["held_out"]
    assert held["name"] == "line 14" and len(document["runs"]) == 14
    assert held["prediction"]["loss"] == pytest.approx(held["loss"], rel=0.01)
    assert held["error"] == abs(held["prediction"]["loss"] / held["loss"] - 1)
    nearest = next(run for run in document["runs"] if run["name"] == held["nearest"])
    assert held["nearest_error"] == abs(nearest["loss"] / held["loss"] - 1)
    assert "line 14" in text


def test_the_picture_has_every_run_twice_and_the_prediction(fit, tmp_path):
    picture = tmp_path / "fit.svg"
    fit(HEADER + planted_rows(), "--predict-flops=1e22", f"--picture={picture}")
    root = ElementTree.fromstring(picture.read_text())
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert sum(title.startswith("line 5:") for title in titles) == 2
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any(text.startswith("L = ") for text in texts) and "2.1" in " ".join(texts)
    assert {"1e+18", "1e+19", "1e+20"} <= set(texts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "runs.csv: is empty"),
        (HEADER, "runs.csv: has no runs"),
        (HEADER + "1e6,1e7,3\n\n1e6,,3\n", "runs.csv:4: tokens is missing"),
        (HEADER + "1e6,-1e7,3\n", "runs.csv:2: tokens must be a finite number above 0, got -1e7"),
        (HEADER + "1e6,1e7,nan\n", "runs.csv:2: loss must be a finite number above 0, got nan"),
        (HEADER + "1e6,1e7,inf\n", "runs.csv:2: loss must be a finite number above 0, got inf"),
        (HEADER + "1e6,0,3\n", "runs.csv:2: tokens must be"),
        (HEADER + "1e6,1e7,three\n", "runs.csv:2: loss must be a number, got 'three'"),
        (HEADER + "1e6,1e7\n", "runs.csv:2: has 2 values, but the header 3 columns"),
        ("parameters,token,loss\n", "runs.csv:1: unknown column 'token' (did you mean 'tokens'?)"),
        ("parameters,loss\n", "runs.csv:1: there is no column 'tokens' or 'flops'"),
        ("tokens,loss\n", "runs.csv:1: there is no column 'parameters'"),
        ("parameters,tokens,loss,loss\n", "runs.csv:1: two columns are called 'loss'"),
        (HEADER + "1e6,1e7,3\n", "runs.csv: the law has five parameters and needs at least 6"),
    ],
)
def test_a_mistake_in_a_csv_is_named_with_its_line(fit, text, message):
    with pytest.raises(UserError) as error:
        fit(text)
    assert message in str(error.value) and error.value.exit_code == 2


def test_wrong_arguments_are_refused(fit):
    with pytest.raises(UserError, match="go together: got 1 and 0"):
        fit(HEADER + planted_rows(), "--predict-parameters=1e9")
    with pytest.raises(UserError, match=r"no run is called 'line 99'"):
        fit(HEADER + planted_rows(), "--hold-out=line 99")
    with pytest.raises(UserError, match="no such folder"):
        fit(HEADER + planted_rows(), "--picture=/no/such/fit.svg")


# Run directories

RUN = Config(
    model=ModelConfig(layers=2, width=64, heads=2, vocabulary_size=512, context_length=128),
    data=DataConfig(sequence_length=128),
    optimizer=OptimizerConfig(warmup_steps=4),
    training=TrainingConfig(steps=50, batch_size=4),
)


def write_run(folder, config, rows):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    lines = [json.dumps({"step": step, tag: value}) for step, tag, value in rows]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 60, "eval/l']))
    return folder


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_a_finished_run_counts_with_its_final_loss(tmp_path, family):
    edits = [f"model.family={family}"]
    if family == "encoder_decoder":
        edits += ["objective.kind=span", "model.positions=relative"]
    run_config = apply_edits(RUN, edits)
    write_run(tmp_path / "done", run_config, [(25, "eval/loss", 5.0), (50, "eval/loss", 4.25)])
    write_run(tmp_path / "broken", run_config, [(25, "eval/loss", 5.0), (26, "train/loss", 5.0)])
    (tmp_path / "untrained").mkdir()
    (tmp_path / "untrained" / "config.json").write_text(json.dumps(to_dict(run_config)))

    runs, notes = observations.read_observations([tmp_path])
    assert runs.names == ("done",) and runs.loss.tolist() == [4.25]
    assert runs.parameters[0] == models.build(run_config.model).parameter_count()
    samples = 50 * 4
    lengths = {"decoder": 128, "encoder_decoder": 157}[family]
    assert runs.tokens[0] == samples * lengths
    assert runs.flops[0] == samples * observations.sample_flops(run_config)
    assert "no eval/loss after its 50 steps (the last row is of step 26)" in notes[0]
    assert "it has not been trained" in notes[1]


def test_repeated_text_and_a_small_validation_split_are_noted(tmp_path):
    def counts(tokens):
        return [{"source": "books", "documents": 9, "tokens": tokens, "bytes": 4 * tokens}]

    folder = write_run(tmp_path / "run", RUN, [(50, "eval/loss", 4.0)])
    splits = {"train": counts(5000), "validation": counts(900)}
    data = {"splits": splits, "validation": {"tokens": 900, "bytes": 3600}, "tokenizer": {}}
    (folder / "training.json").write_text(json.dumps({"data": data}))
    _, notes = observations.read_observations([tmp_path])
    assert "run (5 times)" in notes[0] and "the validation split has 900 tokens" in notes[1]

    (folder / "training.json").write_text("{damaged")
    assert observations.read_observations([folder])[1] == []


def test_directories_without_a_finished_run_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        observations.read_observations([tmp_path])
    write_run(tmp_path / "broken", RUN, [(25, "eval/loss", 5.0)])
    with pytest.raises(UserError, match="no run is finished"):
        observations.read_observations([tmp_path])
