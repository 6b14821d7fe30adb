"""The command on tiny configs: figures, parts of the step from a real trace, mistakes."""

import contextlib
import json

import jax
import pytest
from support import tiny_run

from jaxlm import bench, config, runtime
from jaxlm.benchmark import synthetic
from jaxlm.benchmark.figures import Figures, FlopCounts, Memory, build_document
from jaxlm.benchmark.report import format_figures

QUICK = ("--steps", "3", "--warm-up", "1", "--no-cold-start")
KEYS = {"tokens_per_second", "step_seconds", "mfu", "peak_bytes", "flops_per_step"}
KEYS |= {"first_step_seconds", "precision", "devices"}

# Other recipes, as edits of the tiny one.
OTHERS = {
    "encoder": tiny_run.FAMILIES["encoder"],
    "encoder_decoder": tiny_run.FAMILIES["encoder_decoder"],
    "electra": (
        *tiny_run.FAMILIES["encoder"],
        "objective.kind=replaced_tokens",
        "model.generator_share=0.5",
        "model.head_transform=true",
    ),
    "zero 3": ("runtime.devices=2", "parallel.zero=3"),
    "zero 2, microbatches": ("runtime.devices=2", "parallel.zero=2", "training.microbatches=2"),
    "packed": ("data.sequences=packed",),
    "batch schedule": ("training.batch_schedule=[[2, 4], [5, 16]]",),
}


@pytest.fixture
def folder(tmp_path):
    """Go to a folder with the tiny recipe and its text."""
    tiny_run.write_recipe(tmp_path)
    with contextlib.chdir(tmp_path):
        yield tmp_path


def measured(capsys, *arguments):
    """Run the command and return its JSON."""
    code = runtime.command(bench.main, ["--config", "tiny.py", *QUICK, "--json", "-", *arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def assert_is_split(document):
    """Check that the parts are shares of the step, none missing."""
    parts = document["parts"]
    assert sum(parts.values()) == pytest.approx(1)
    assert all(share >= 0 for share in parts.values())
    for part in ("attention", "mlp", "head_and_loss", "optimizer", "norms_and_embedding"):
        assert parts[part] > 0, part


def test_the_command_measures_and_leaves_the_trace_alone(folder, capsys):
    document = measured(capsys, "--synthetic", "--profile", "trace")
    assert set(document) >= KEYS
    assert set(document["step_seconds"]) == {"median", "p10", "p90"}
    assert document["tokens_per_step"] == document["target_tokens_per_step"] == 8 * 32
    assert document["tokens_per_second"] == 8 * 32 / document["step_seconds"]["median"]
    assert document["mfu"] is None and document["product_flops"] > 0  # a CPU
    assert document["peak_bytes"] > document["parameter_bytes"] + document["optimizer_bytes"]
    assert_is_split(document)
    assert document["parts_unknown"] is None
    assert document["profiled_step_seconds"] < 100 * document["step_seconds"]["median"]

    # No run directory and no store; the trace can be read.
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {
        "tiny.py",
        "text.txt",
        "trace",
    }
    (trace,) = folder.rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(trace)).planes
    assert any(plane.name == "/host:CPU" for plane in planes)
    assert list(folder.rglob("*.trace.json.gz"))  # what Perfetto opens


@pytest.mark.slow
@pytest.mark.parametrize("edits", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("data", [(), ("--synthetic",)], ids=["data", "synthetic"])
def test_other_recipes_are_measured(folder, capsys, edits, data):
    document = measured(capsys, *data, *edits)
    assert_is_split(document)
    assert (document["parts"]["communication"] > 0) == (document["devices"] == 2)
    assert {path.name for path in folder.iterdir()} >= {"tiny.py", "text.txt"}
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_a_start_without_a_cache_is_measured_in_another_process(folder, capsys):
    arguments = ["--config", "tiny.py", "--synthetic", "--steps", "2", "--json", "figures.json"]
    assert runtime.command(bench.main, arguments) == 0
    document = json.loads((folder / "figures.json").read_text())
    assert document["first_step_seconds_cold"] == sum(document["start_up_cold"].values())
    assert min(document["start_up_cold"].values()) > 0
    assert "no cache" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.sources.0.path=missing.txt"], "missing.txt: no such file (--synthetic measures"),
        (["--steps", "0"], "--steps: must be a whole number from 1 to 100,000, got '0'"),
        (["--profile", "no/such/folder"], "--profile: no/such: no such folder"),
        (["--json", "no/such.json"], "--json: no: no such folder"),
        (["runtime.processes=2"], "runtime.process: is needed for one of 2 processes"),
        (
            ["runtime.processes=2", "runtime.process=0", "runtime.coordinator=localhost:1234"],
            "bench measures one process: set runtime.processes=1",
        ),
        (["--synthetic", "tokenizer.sentinels=300"], "model.vocabulary_size"),
    ],
)
def test_a_mistake_is_one_line(folder, capsys, arguments, message):
    assert runtime.command(bench.main, ["--config", "tiny.py", *QUICK, *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert message in line


@pytest.mark.parametrize(
    "edits",
    [
        ("objective.kind=causal",),
        ("objective.kind=prefix",),
        ("objective.kind=fill_in_the_middle",),
        ("data.sequences=packed",),
        *tiny_run.FAMILIES.values(),
        (*tiny_run.FAMILIES["encoder_decoder"], "objective.kind=infilling"),
        (
            *tiny_run.FAMILIES["encoder_decoder"],
            "objective.kind=pairs",
            "data.sources.0.format=pairs",
            "data.validation.method=hash",
        ),
    ],
)
def test_random_text_is_cut_by_each_objective(folder, edits):
    tiny = config.load("tiny.py", ["model.vocabulary_size=300", *edits, "training.batch_size=3"])
    first, second = (synthetic.batch(tiny, number) for number in (0, 1))
    assert len(first.tokens) == 3 and first.weights.sum() > 0
    assert first.tokens.max() < tiny.model.vocabulary_size
    assert (first.tokens != second.tokens).any()
    assert (first.tokens == synthetic.batch(tiny, 0).tokens).all()


FIGURES = Figures(
    devices="8 x NVIDIA H100 80GB HBM3",
    device_count=8,
    family="decoder",
    objective="causal",
    compute="bfloat16",
    parameters=1_000_000,
    batch_size=64,
    tokens=65_536,
    targets=60_000.0,
    synthetic=False,
    step_seconds=(0.5, 0.25, 0.5, 1.0, 0.5),
    flops=FlopCounts(exact=2 * 10**15, causal=10**15, rule=3 * 10**15),
    peak_flops=8e15,
    product_flops=None,
    memory=Memory(3, "measured", 1, 2, 4),
    parts={"attention": 0.3, "mlp": 0.15, "other": 0.05},
    parts_unknown="",
    start_up={"import": 1.0, "set_up": 2.0, "compile": 3.0, "first_step": 0.5},
    cold_start_up={"import": 1.0, "set_up": 2.0, "compile": 30.0, "first_step": 0.5},
)


def test_figures_are_those_of_the_median_step():
    document = build_document(FIGURES)
    assert document["tokens_per_second"] == 131_072 and document["devices"] == 8
    assert document["target_tokens_per_second"] == 120_000
    assert document["step_seconds"] == {"median": 0.5, "p10": 0.35, "p90": 0.8}
    assert (document["mfu"], document["mfu_causal"], document["mfu_6n"]) == (0.5, 0.25, 0.75)
    assert document["parts"]["attention"] == pytest.approx(0.6)
    assert (document["first_step_seconds"], document["first_step_seconds_cold"]) == (6.5, 33.5)


def test_the_table_shows_formula_and_peak():
    text = format_figures(FIGURES)
    assert "6N + 12LdT" in text and "8,000.0 TFLOP/s of all devices in bfloat16" in text
    assert "step: 500.0 ms, the median of 5 (p10 350.0, p90 800.0)" in text
    shares = [line.split()[-1] for line in text.splitlines() if line.endswith("%")]
    assert shares == ["50.0%", "25.0%", "75.0%", "60.0%", "30.0%", "10.0%", "100.0%"]


def test_unknown_parts_are_a_line_that_says_why():
    unknown = FIGURES._replace(parts={}, parts_unknown="the trace has no events of the devices")
    text = format_figures(unknown)
    assert "parts of the step: unknown, since the trace has no events of the devices\n" in text
    assert "part of a profiled step" not in text
    document = build_document(unknown)
    assert (document["parts"], document["parts_unknown"]) == ({}, unknown.parts_unknown)
