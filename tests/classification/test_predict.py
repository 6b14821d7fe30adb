"""Labels of texts by the command, from runs and from Hugging Face directories."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from support import tiny_classifier
from support.marks import quick_and_slow

from jaxlm import convert, evaluate, generate, predict, runtime

PROBLEMS = quick_and_slow([("single_label",)], [(problem,) for problem in tiny_classifier.PROBLEMS])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folder of a finished run of a problem; each is trained once."""
    folders: dict[str, Path] = {}

    def finished(problem: str) -> Path:
        if problem not in folders:
            folders[problem] = tmp_path_factory.mktemp(problem)
            output = tiny_classifier.train_classifier(folders[problem], problem)
            (folders[problem] / "output.txt").write_text(output)
        return folders[problem]

    return finished


def label(folder: Path, texts: str, *options: str, model: str = "runs/tiny") -> list[dict]:
    """Run the command and return the results of its JSON file."""
    out = folder / "out.json"
    arguments = [str(folder / model), "--texts", texts, "--json", str(out), *options]
    assert runtime.command(predict.main, arguments) == 0
    return json.loads(out.read_text())["results"]


def refusal(capsys, *arguments: str) -> str:
    """Return the one line with which the command refuses the arguments."""
    assert runtime.command(predict.main, list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(("problem",), PROBLEMS)
def test_the_labels_of_the_validation_split_have_the_figures_of_the_run(problem, runs, capsys):
    """The command frames, cuts and scores texts as training does."""
    metrics = pytest.importorskip("sklearn.metrics")
    folder = runs(problem)
    rows = map(json.loads, (folder / "runs/tiny/metrics.jsonl").read_text().splitlines())
    scores = [row for row in rows if "eval/loss" in row][-1]

    path = folder / "held_out.jsonl"
    held_out = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(held_out) % 8  # the last batch of the evaluation is not full
    results = label(folder, str(path), "--batch-size", "5")

    if problem == "single_label":
        assert scores["eval/targets"] == len(held_out)
        truth = [record["label"] for record in held_out]
        labels = [result["label"] for result in results]
        assert scores["eval/accuracy"] == pytest.approx(metrics.accuracy_score(truth, labels))
        expected = metrics.matthews_corrcoef(truth, labels)
        assert scores["eval/matthews"] == pytest.approx(expected, abs=1e-9)
        losses = [
            -np.log(result["probabilities"][name])
            for result, name in zip(results, truth, strict=True)
        ]
        assert scores["eval/loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    elif problem == "multi_label":
        truth = [
            [name in record["label"] for name in tiny_classifier.LABELS] for record in held_out
        ]
        labels = [
            [name in result["labels"] for name in tiny_classifier.LABELS] for result in results
        ]
        expected = metrics.f1_score(truth, labels, average="macro", zero_division=0)
        assert scores["eval/macro_f1"] == pytest.approx(expected)
        assert scores["eval/accuracy"] == pytest.approx(metrics.accuracy_score(truth, labels))
    elif problem == "regression":
        values = [list(result["values"].values()) for result in results]
        expected = metrics.mean_squared_error([record["label"] for record in held_out], values)
        assert scores["eval/mse"] == pytest.approx(expected, rel=1e-4)
        assert scores["eval/loss"] == pytest.approx(expected, rel=1e-4)
    else:
        pairs = [
            (tag, token["label"])
            for record, result in zip(held_out, results, strict=True)
            for tag, token in zip(record["label"], result["tokens"], strict=True)
            if token["label"] is not None
        ]
        assert scores["eval/targets"] == len(pairs)
        assert scores["eval/accuracy"] == pytest.approx(
            metrics.accuracy_score(*zip(*pairs, strict=True))
        )


def test_the_run_says_its_figures_and_keeps_the_best(runs):
    folder = runs("single_label")
    output = (folder / "output.txt").read_text()
    assert (
        "step 12: validation loss" in output and "macro F1" in output and "(of 27 texts)" in output
    )

    metadata = (folder / "runs/tiny/README.md").read_text()
    assert (
        "pipeline_tag: text-classification" in metadata and "type: matthews_correlation" in metadata
    )
    assert "python -m jaxlm.predict runs/tiny --texts" in metadata
    assert "**Labels:** bad, good, odd" in metadata
    best = label(folder, str(folder / "held_out.jsonl"), "--best")
    assert best == label(folder, str(folder / "held_out.jsonl"), "--step", "12")


def test_texts_are_read_from_lines_records_tables_and_standard_input(runs, capsys, monkeypatch):
    folder = runs("single_label")
    lines, table = folder / "lines.txt", folder / "table.csv"
    lines.write_text("a good tree\n\nbad bad \x1b[31m river\n")
    table.write_text('id,review\n1,a good tree\n2,"bad bad \x1b[31m river"\n')
    from_lines = label(folder, str(lines))
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["text", "label", "bad", "good", "odd"]
    assert shown[1].startswith("a good tree ") and shown[2].startswith("bad bad \\x1b[31m river ")
    assert len(from_lines) == 2 and set(from_lines[0]) == {"label", "probabilities"}
    assert sum(from_lines[0]["probabilities"].values()) == pytest.approx(1)
    assert label(folder, str(table), "--text-key", "review") == from_lines

    records = b'{"text": "a good tree"}\n{"text": "bad bad \\u001b[31m river"}\n'
    for content in (lines.read_bytes(), records):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert label(folder, "-") == from_lines


def test_pairs_are_two_texts_and_long_texts_are_cut(runs, capsys):
    folder, path = runs("single_label"), None
    path = folder / "pairs.jsonl"
    records = [
        {"premise": "a good tree", "claim": "bad"},
        {"premise": "a good tree", "claim": ""},
        {"premise": "a good tree" + " and" * 40, "claim": "bad"},
    ]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    results = label(folder, str(path), "--text-key", "premise", "--pair-key", "claim")
    assert results[0] != results[1] and [result.get("cut") for result in results] == [
        None,
        None,
        True,
    ]
    note = f"note: {path}:3 is longer than 32 tokens: only these are read"
    assert capsys.readouterr().err.strip() == note


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "\n\n", "--texts: {path}: holds no texts"),
        ("a.jsonl", '{"texts": "x"}\n', "{path}:1: no key 'text' (did you mean 'texts'?)"),
        ("b.jsonl", '\n{"text": 3}\n', "{path}:2: 'text': must be a string, got int"),
        ("c.jsonl", "[1]\n", "{path}:1: must be a JSON object such as"),
        ("d.jsonl", '{"text": \n', "{path}:1: not JSON: "),
        ("e.jsonl", '{"text": "\\ud800"}\n', "{path}:1: 'text': holds half a surrogate pair"),
        ("f.csv", "a,b\n1,2,3\n", "{path}:2: has more fields than the header names columns"),
        ("g.txt", None, "--texts: {path}: No such file or directory"),
    ],
)
def test_wrong_texts_are_refused_in_one_line(name, content, message, runs, capsys):
    folder = runs("single_label")
    path = folder / name
    if content is not None:
        path.write_text(content)
    line = refusal(capsys, str(folder / "runs/tiny"), "--texts", str(path))
    assert line.startswith("error: " + message.format(path=path))


def test_what_is_no_classifier_is_refused_in_one_line(runs, capsys, tmp_path):
    folder = runs("single_label")
    run, texts = str(folder / "runs/tiny"), str(folder / "held_out.jsonl")
    line = refusal(capsys, run, "--texts", texts, "--length", "49")
    assert "--length 49: the model's positions end at 48" in line

    for command, arguments in ((generate, ["--prompt", "x"]), (evaluate, [])):
        assert runtime.command(command.main, [run, *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == (
            f"error: {run}: is a classifier, which gives labels in place of tokens: "
            f"python -m jaxlm.predict {run} --texts FILE"
        )


@pytest.mark.slow
def test_a_language_model_has_no_labels(copied_run, capsys):
    copied_run("encoder")
    Path("texts.txt").write_text("a tree\n")
    line = refusal(capsys, "runs/tiny", "--texts", "texts.txt")
    assert line.startswith("error: runs/tiny: has no classification head: it predicts tokens")


@pytest.mark.slow
@pytest.mark.parametrize("problem", tiny_classifier.PROBLEMS)
def test_an_export_gives_the_same_labels_here_and_in_transformers(problem, runs, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder, out = runs(problem), tmp_path / "hf"
    assert (
        runtime.command(convert.main, ["export", str(folder / "runs/tiny"), str(out), "--best"])
        == 0
    )
    path = folder / "held_out.jsonl"
    results = label(folder, str(path), "--best", "--length", "48")
    assert label(folder, str(path), model=str(out)) == results

    kind = "Token" if problem == "token" else "Sequence"
    model = getattr(transformers, f"AutoModelFor{kind}Classification").from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    for line, result in zip(path.read_text().splitlines(), results, strict=True):
        record = json.loads(line)
        words = problem == "token"
        encoded = tokenizer(
            record["tokens"] if words else record["text"],
            is_split_into_words=words,
            truncation=True,
            max_length=48,
            return_tensors="pt",
        )
        with torch.no_grad():
            scores = model(**encoded).logits[0]
        if words:
            places = encoded.word_ids()
            for number, token in enumerate(result["tokens"]):
                if token["label"] is not None:
                    own = scores[places.index(number)].softmax(-1).numpy()
                    np.testing.assert_allclose(
                        list(token["probabilities"].values()), own, atol=2e-5
                    )
            continue
        if problem == "regression":
            got, expected = result["values"], scores
        else:
            got = result["probabilities"]
            expected = scores.sigmoid() if problem == "multi_label" else scores.softmax(-1)
        np.testing.assert_allclose(list(got.values()), expected.numpy(), atol=2e-5)
