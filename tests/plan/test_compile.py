"""Steps compiled for clusters that are not there, against formulas and measured steps.

Needs the CUDA plugin of jax (extra `cuda`), no GPU. Run with: pytest -m "aot and not campaign"
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytestmark = pytest.mark.aot
pytest.importorskip("jax_cuda13_plugin", reason="needs the extra `cuda`")

from support import tiny

from jaxlm import config, hardware, runtime
from jaxlm.config import Config, ParallelConfig, PrecisionConfig
from jaxlm.plan.compile_command import main
from jaxlm.plan.compile_step import compile_step
from jaxlm.plan.step_plan import StepPlan, plan_step
from jaxlm.run import state_bytes

CONFIGS = Path(__file__).parents[2] / "configs"
# Heads of 64 channels and 128 positions, which flash kernels take.
SMALL = replace(
    tiny.CONFIG,
    model=replace(tiny.CONFIG.model, width=256, context_length=128),
    data=replace(tiny.CONFIG.data, sequence_length=128),
    precision=PrecisionConfig(compute="bfloat16"),
    training=replace(tiny.CONFIG.training, batch_size=32),
)


def compile_plan(run_config: Config, target: str) -> StepPlan:
    return plan_step(compile_step(run_config, hardware.parse_cluster(target)), price=2.0)


@pytest.fixture(scope="module")
def two_nodes() -> StepPlan:
    """A small decoder under ZeRO 3 on two nodes of four H100.

    No rows pad its vocabulary, which the formula leaves out, and its head is apart: XLA gathers a
    table once for two uses that are close to each other.
    """
    model = replace(SMALL.model, vocabulary_size=512, tied_head=False)
    sharded = replace(SMALL, model=model, parallel=ParallelConfig(zero=3, remat="full"))
    return compile_plan(sharded, "h100:2x4")


def test_collectives_are_those_of_the_formula_and_no_others(two_nodes):
    totals = {total.kind: total for total in two_nodes.collectives}
    assert totals.keys() == {"all-gather", "reduce-scatter", "all-reduce"}
    for kind in ("all-gather", "reduce-scatter"):
        assert totals[kind].bytes == totals[kind].formula_bytes
    assert totals["all-reduce"].bytes < 0.01 * totals["reduce-scatter"].bytes


def test_the_step_waits_for_no_more_than_its_collectives_take(two_nodes):
    estimate = two_nodes.estimate
    assert 0 <= estimate.parts["exposed communication"] <= estimate.communication_seconds
    assert two_nodes.hidden_seconds >= 0
    assert two_nodes.attention == "cudnn" and estimate.parts["attention"] > 0
    assert two_nodes.fits and 0 < two_nodes.mfu < 1


@pytest.mark.parametrize("zero", [0, 2])
def test_arguments_are_the_state_by_formula_and_the_batch(zero):
    """XLA aligns each array: 256 bytes at most."""
    compiled = compile_step(
        replace(SMALL, parallel=ParallelConfig(zero=zero)), hardware.parse_cluster("h100:8")
    )
    batch = sum(array[0].nbytes for array in compiled.run.example if array is not None)
    expected = sum(state_bytes(compiled.run)) + batch * SMALL.training.batch_size // 8
    assert expected <= compiled.argument_bytes <= 1.001 * expected + 4096


def test_a_v100_takes_no_flash_kernel_and_the_notes_say_why():
    plan = compile_plan(replace(SMALL, parallel=ParallelConfig(zero=1)), "v100:8")
    assert plan.attention == "xla" and plan.estimate.parts["attention"] == 0
    assert plan.peak_flops == 8 * 125e12


@pytest.mark.parametrize("target", ["l40s:2", "b200:2", "t4"])
def test_other_gpus_are_compiled_for(target):
    plan = compile_plan(SMALL, target)
    assert plan.argument_bytes < plan.peak_bytes < plan.usable_bytes
    assert plan.step_seconds > 0


def test_gpt2_on_an_h200_takes_the_memory_and_the_time_that_were_measured():
    """docs/performance.md, "One GPU": 123.3 ms and 31.9 GB, measured with jax 0.11.2.

    Its products and attention are those that the shares of the peaks were taken from.
    """
    edits = ["training.batch_size=64", "training.microbatches=1", "parallel.zero=0"]
    plan = compile_plan(config.load(CONFIGS / "gpt2_124m.py", edits), "h200")
    assert plan.peak_bytes == pytest.approx(31.9e9, rel=0.02)
    assert plan.step_seconds == pytest.approx(0.1233, rel=0.08)
    assert plan.mfu == pytest.approx(0.459, rel=0.08)


def test_a_sweep_writes_its_rows_sorted_by_speed(capsys, tmp_path):
    file = tmp_path / "sweep.json"
    arguments = ["--config", str(CONFIGS / "gpt2_124m.py"), "--target", "h100:8", "--sweep"]
    arguments += ["--zero", "0,3", "--tensor", "1", "--microbatches", "1", "--remat", "full"]
    edits = ["model.layers=1", "model.width=256", "model.heads=4", "training.batch_size=40"]
    assert runtime.command(main, [*arguments, "--json", str(file), *edits]) == 0

    rows = json.loads(file.read_text())["sweep"]
    speeds = [row["tokens_per_second"] for row in rows]
    assert {row["zero"] for row in rows} == {0, 3} and speeds == sorted(speeds, reverse=True)
    assert len(capsys.readouterr().out.splitlines()) == 3
