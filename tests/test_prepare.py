"""python -m jaxlm.prepare: a store and its report, without jax."""

import filecmp
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.stores import write_corpus

from jaxlm import config, data, objectives, prepare, runtime
from jaxlm.data.schedule import BatchSchedule
from jaxlm.data.stream import open_stream, source_sizes

CONFIG = """
from jaxlm.config import Config, DataConfig, ModelConfig, SourceConfig, TokenizerConfig

config = Config(
    model=ModelConfig(vocabulary_size=300, layers=1, width=16, heads=2, context_length=32),
    tokenizer=TokenizerConfig(kind="bytes"),
    data=DataConfig(
        sources=(SourceConfig(name="web", path="web"), SourceConfig(name="notes", path="n.jsonl")),
        sequence_length=32,
        on_error="skip",
    ),
)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_corpus(tmp_path / "web")
    lines = [json.dumps({"text": f"note {number:02}"}) for number in range(30)]
    (tmp_path / "n.jsonl").write_text("\n".join([*lines, "not JSON", "[]"]))
    (tmp_path / "tiny.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_report_counts_what_each_source_has(folder, capsys):
    for _ in range(2):  # the second finds the store
        assert runtime.command(prepare.main, ["--config", "tiny.py", "--json", "r.json"]) == 0
        report = json.loads((folder / "r.json").read_text())
        text_bytes = sum(path.stat().st_size for path in (folder / "web").iterdir())
        keys = ("documents", "kept", "bytes", "tokens", "dropped")
        sources = {
            name: {key: source[key] for key in keys} for name, source in report["sources"].items()
        }
        assert sources == {
            "web": {
                "documents": 40,
                "kept": 40,
                "bytes": text_bytes,
                "tokens": text_bytes + 40,
                "dropped": {},
            },
            "notes": {
                "documents": 32,
                "kept": 30,
                "bytes": 30 * 7,
                "tokens": 30 * 8,
                "dropped": {"unreadable": 2},
            },
        }
        tokens = report["training"]["tokens"] + report["validation"]["tokens"]
        assert tokens == text_bytes + 40 + 30 * 8

        output = [line.split() for line in capsys.readouterr().out.splitlines()]
        table = output.index(["source", "documents", "kept", "bytes", "tokens", "bytes/token"])
        assert output[table + 2] == ["notes", "32", "30", "210", "240", "0.88"]


def test_the_mixture_is_printed_as_in_training_and_kept_out_of_the_report(folder, capsys):
    edits = ["data.sources.0.weight=3", "training.steps=50", "training.batch_size=8"]
    assert runtime.command(prepare.main, ["--config", "tiny.py", "--json", "r.json"]) == 0
    capsys.readouterr()
    assert runtime.command(prepare.main, ["--config", "tiny.py", "--json", "s.json", *edits]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("50 steps (training.steps) read 400 samples of 32 tokens:")

    run_config = config.load("tiny.py", edits)
    store = prepare.prepare_store(run_config)
    objective = objectives.build(run_config.objective, 32, store.tokenizer.vocabulary)
    schedule = BatchSchedule(8)
    stream = open_stream(store, run_config.data, objective, schedule, run_config.seed)
    sizes = source_sizes(stream, store, run_config.data)
    mixture = data.plan_mixture(run_config, sizes)
    table = data.format_mixture(data.describe_mixture(sizes, mixture, schedule, 50))
    assert lines[first + 1 : first + 5] == table.splitlines()
    assert lines[first + 2].split()[:3] == ["web", f"{sizes[0].tokens:,}", "75.00%"]
    assert (folder / "r.json").read_bytes() == (folder / "s.json").read_bytes()

    # What the steps can't read is said, and the store is there all the same.
    assert (
        runtime.command(prepare.main, ["--config", "tiny.py", "data.sources.1.tokens=9999999"]) == 0
    )
    assert "warning: this config can't train: data.sources.1.tokens: " in capsys.readouterr().out


def test_the_report_is_written_to_the_store_or_a_folder(folder, capsys):
    arguments = ["--config", "tiny.py", "--json", "r.json"]
    assert runtime.command(prepare.main, arguments) == 0
    page = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("report: "))
    assert page.parent.parent == Path("stores") and "notes" in page.read_text()
    assert (page.parent / "report.json").read_bytes() == (folder / "r.json").read_bytes()

    assert runtime.command(prepare.main, [*arguments, "--report", "pages"]) == 0
    names = {path.name for path in (folder / "pages").iterdir()}
    assert names == {"report.md", "report.html", "report.json"}


def test_the_report_shows_what_could_not_be_read(folder, capsys):
    """Files that end early, records that are none, and documents without text."""
    lines = [json.dumps({"text": f"line {number}"}) for number in range(30)]
    packed = gzip.compress("\n".join(['{"text": ""}', "{}", *lines]).encode())
    (folder / "n.jsonl").write_bytes(packed[:-8])
    assert runtime.command(prepare.main, ["--config", "tiny.py", "--report", "r"]) == 0

    source = json.loads((folder / "r" / "report.json").read_text())["sources"]["notes"]
    assert source["dropped"] == {"unreadable": 2, "empty": 1}
    assert source["documents"] == source["read"]["documents"] == source["kept"] + 3
    missing, rest = (sample["text"] for sample in source["samples"]["unreadable"])
    assert "n.jsonl:2: no key 'text'" in missing
    assert "n.jsonl: damaged gzip" in rest and "what follows in the file is left out" in rest
    for name in ("report.md", "report.html"):
        assert "damaged gzip" in (folder / "r" / name).read_text()


def test_a_sample_is_shown_from_a_config_and_from_its_store(folder, capsys):
    for split, arguments in (
        ("train", ["--config", "tiny.py"]),
        ("validation", ["--config", "tiny.py"]),
        ("train", []),
    ):
        stores = (
            [] if arguments else [str(next((folder / "stores").glob("*/manifest.json")).parent)]
        )
        line = ["show", *arguments, *stores, "--sample", "1", "--split", split, "--json", "s.json"]
        assert runtime.command(prepare.main, line) == 0
        output = capsys.readouterr().out
        assert f"sample 1: source web, {split}: tokens " in output or "source notes" in output

        sample = json.loads((folder / "s.json").read_text())
        rows = next(iter(sample["sides"].values()))
        assert sample["split"] == split and sample["unit"] == "tokens"
        assert len(rows) == (32 if arguments else sample["length"])
        if arguments:
            assert [row["id"] for row in rows[1:]] == [row["target_id"] for row in rows[:-1]]


@pytest.mark.parametrize("sequences", ["windows", "packed", "documents"])
def test_the_sample_that_is_shown_is_the_one_that_trains(folder, capsys, sequences):
    """Sample 9 is in step 2, from which on only the notes are read."""
    edits = [
        *("seed=3", "training.batch_size=4", f"data.sequences={sequences}"),
        "data.mixture_schedule=[[2,[0.0,1.0]]]",
    ]
    line = ["show", "--config", "tiny.py", "--sample", "9", "--json", "s.json", *edits]
    assert runtime.command(prepare.main, line) == 0
    assert "sample 9: source notes, train: " in capsys.readouterr().out
    rows = json.loads((folder / "s.json").read_text())["sides"]["tokens"]

    run = config.load("tiny.py", edits)
    store = data.open_store(next((folder / "stores").glob("*/manifest.json")).parent)
    objective = objectives.build(run.objective, 32, store.tokenizer.vocabulary)
    stream = open_stream(store, run.data, objective, BatchSchedule(4), 3)
    stream.set_mixture(data.plan_mixture(run, source_sizes(stream, store, run.data)))
    assert stream[2].tokens[1].tolist() == [row["id"] for row in rows]


def test_a_dry_run_writes_no_store(folder, capsys):
    line = ["--config", "tiny.py", "--dry-run", "--json", "r.json"]
    assert runtime.command(prepare.main, line) == 0
    assert "estimate from " in capsys.readouterr().out and not (folder / "stores").exists()
    sources = json.loads((folder / "r.json").read_text())["sources"]
    assert sources["notes"]["kept"] == 30 and sources["notes"]["dropped"] == {"unreadable": 2}


def test_mistakes_end_in_one_line(folder, capsys):
    for arguments, reason in (
        (["--config", "tiny.py", "data.on_error=fail"], "n.jsonl:31: not JSON"),
        (["--config", "tiny.py", "--json", "missing/r.json"], "--json: missing: no such folder"),
        (["--config", "tiny.py", "--report", "missing/x"], "--report: missing: no such folder"),
        (["--config", "tiny.py", "--report", "n.jsonl"], "--report: 'n.jsonl' is no folder"),
        (["--config", "tiny.py", "--data", "nothere"], "data.sources.0.path: nothere: no such"),
        (["--config", "other.py"], "other.py"),
        (["--config", "tiny.py", "--dry-run", "--sample-megabytes", "0"], "must be above 0"),
        (["show", "--sample", "1"], "name the folder of one store"),
        (["show", "nothere", "--sample", "1"], "nothere: no such folder"),
        (["show", "web", "--sample", "1"], "web/manifest.json: missing"),
        (["show", "--config", "tiny.py", "--sample", "-1"], "--sample: -1: must be between"),
    ):
        assert runtime.command(prepare.main, arguments) == 2
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1


def test_jax_is_not_loaded(folder):
    code = (
        "import sys; from jaxlm import prepare; prepare.main(['--config', 'tiny.py']); "
        "prepare.main(['show', '--config', 'tiny.py', '--sample', '0', '--split', 'validation']); "
        "prepare.main(['--config', 'tiny.py', '--dry-run']); "
        "print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_machines_share_the_stages_and_give_the_same_store(folder, capsys):
    def run(*arguments):
        code = runtime.command(prepare.main, ["--config", "tiny.py", *arguments])
        return code, capsys.readouterr()

    assert run()[0] == 0
    (manifest,) = (folder / "stores").glob("*/manifest.json")
    alone = manifest.parent
    shared = ("data.store=shared",)
    code, printed = run(*shared, "--stage", "tokenizer")
    assert code == 2 and "2 of 2 units have not been read" in printed.err
    code, printed = run(*shared, "--stage", "tokens")
    assert code == 2 and "--stage tokenizer, is not done" in printed.err

    for arguments in (
        ["files"],
        ["read", "--part", "2/3"],
        ["read", "--part", "1/3"],
        ["read", "--part", "3/3"],
        ["tokenizer"],
        ["tokens", "--part", "1/2"],
        ["tokens", "--part", "2/2"],
    ):
        assert run(*shared, "--stage", *arguments)[0] == 0
    assert not list((folder / "shared").glob("*/manifest.json"))
    code, printed = run(*shared)
    assert code == 0 and "goes on with what an earlier preparation left" in printed.out
    names = [path.name for path in alone.glob("*") if not path.name.startswith("report")]
    together = folder / "shared" / alone.name
    assert filecmp.cmpfiles(alone, together, names, shallow=False) == (names, [], [])


def test_a_function_of_the_user_chooses_documents(folder, capsys):
    (folder / "mine.py").write_text("def keeps(text):\n    return not text.startswith('note 0')\n")
    arguments = ["--config", "tiny.py", "--json", "r.json", "--keep", "mine.py:keeps"]
    assert runtime.command(prepare.main, arguments) == 0
    report = json.loads((folder / "r.json").read_text())
    assert report["sources"]["notes"]["dropped"] == {"unreadable": 2, "predicate": 10}

    for wrong, reason in (
        (["--keep", "mine.py:keep"], "mine.py: defines no function 'keep' (did you mean"),
        (["--workers", "0"], "--workers: 0: must be at least 1"),
        (["--stage", "read", "data.store=mine.py"], "data.store: "),
        (["--part", "1/2"], "--part: is the share of a --stage"),
        (["--stage", "read", "--part", "3/2"], "--part: 3/2: must be I/N"),
    ):
        assert runtime.command(prepare.main, ["--config", "tiny.py", *wrong]) == 2
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1
