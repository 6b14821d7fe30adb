"""The figures of a compiled step, and how they are printed."""

import json
from dataclasses import replace

import pytest
from support import tiny

from jaxlm import hardware
from jaxlm.plan.compile_report import format_plan
from jaxlm.plan.compile_sweep import SweepResult, build_sweep_document, format_sweep
from jaxlm.plan.roofline import EXPOSED, PARTS, Estimate
from jaxlm.plan.step_plan import CollectiveTotal, StepPlan, build_step_document, list_notes

SECONDS = dict(zip(PARTS, (0.5, 0.2, 0.2, 0.05, 0.05), strict=True))


def plan_of(target: str = "h100:8", **changes) -> StepPlan:
    """A step of one second with 8 x 989.4 TFLOP of which half are the model's."""
    cluster = hardware.parse_cluster(target)
    plan = StepPlan(
        config=tiny.CONFIG,
        cluster=cluster,
        mesh={"data": 1, "fsdp": 8, "tensor": 1},
        parameters=123456,
        blocks="scanned",
        batch_size=16,
        argument_bytes=1_000_000_000,
        temp_bytes=2_000_000_000,
        peak_bytes=3_000_000_000,
        usable_bytes=hardware.usable_memory(cluster.accelerator),
        kernels={"attention": ("cudnn", "supported"), "cross attention": ("cudnn", "supported")},
        collectives=[CollectiveTotal("all-gather", 4, 10**9, 0.15, 10**9)],
        flops=int(4 * 989.4e12),
        estimate=Estimate(SECONDS, 0.15, int(0.6 * 989.4e12)),
        tokens=512,
        steps=100,
        samples=1600,
        price=None,
        compile_seconds=1.0,
    )
    return plan._replace(**changes)


def test_mfu_tokens_and_cost_follow_from_the_time_of_a_step():
    plan = plan_of(price=2.5)
    assert plan.step_seconds == pytest.approx(1.0)
    assert plan.mfu == pytest.approx(0.5)
    assert plan.tokens_per_second == pytest.approx(512)
    assert plan.gpu_hours == pytest.approx(8 * 100 / 3600)
    assert plan.cost == pytest.approx(2.5 * 8 * 100 / 3600)
    assert plan.hidden_seconds == pytest.approx(0.15 - SECONDS[EXPOSED])


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        (1600, ": 100 seconds, 0.2 GPU-hours, 0.56 at 2.5"),
        (160_000, ": 2.8 hours, 22.2"),
        (16_000_000, ": 11.6 days, 2,222.2"),
    ],
)
def test_the_time_of_a_run_is_told_in_a_fitting_unit(samples, text):
    assert text in format_plan(plan_of(samples=samples, price=2.5))


def test_smaller_batches_of_a_schedule_take_their_share_of_a_step():
    assert plan_of(samples=800).run_seconds == pytest.approx(50)


@pytest.mark.parametrize(
    ("peak", "fits", "fraction", "verdict"),
    [
        (60_000_000_000, True, 0.71, "fits: jax takes 63.70 of the 84.93 GB of h100"),
        (70_000_000_000, False, 0.83, "fits with XLA_PYTHON_CLIENT_MEM_FRACTION=0.83"),
        (84_000_000_000, False, None, "does not fit: jax takes 63.70 of the 84.93 GB of h100"),
    ],
)
def test_the_verdict_goes_by_the_memory_that_jax_takes(peak, fits, fraction, verdict):
    plan = plan_of(peak_bytes=peak)
    assert (plan.fits, plan.fraction_that_fits) == (fits, fraction)
    assert verdict in format_plan(plan)


def test_jax_takes_the_share_that_the_environment_says(monkeypatch):
    gpu = hardware.find_accelerator("h100")
    monkeypatch.delenv(hardware.MEMORY_FRACTION, raising=False)
    assert hardware.usable_memory(gpu) == int(0.75 * gpu.memory_bytes)
    monkeypatch.setenv(hardware.MEMORY_FRACTION, "0.5")
    assert hardware.usable_memory(gpu) == gpu.memory_bytes // 2
    monkeypatch.setenv(hardware.MEMORY_FRACTION, "half")
    with pytest.raises(hardware.UserError, match="must be above 0 and at most 1, got 'half'"):
        hardware.usable_memory(gpu)


def test_the_document_has_plain_numbers():
    document = json.loads(json.dumps(build_step_document(plan_of()), allow_nan=False))
    expected = {
        "argument_bytes": 1_000_000_000,
        "temp_bytes": 2_000_000_000,
        "peak_bytes": 3_000_000_000,
        "flops": int(4 * 989.4e12),
        "attention": "cudnn",
        "compile_seconds": 1.0,
    }
    assert {name: document[name] for name in expected} == expected
    assert document["step_seconds"] == pytest.approx(1.0)
    (gather,) = document["collectives"]
    assert (gather["kind"], gather["count"], gather["bytes"]) == ("all-gather", 4, 10**9)


def test_different_kernels_of_attention_are_all_named():
    kernels = {"encoder attention": ("cudnn", ""), "cross attention": ("xla", "")}
    assert plan_of(kernels=kernels).attention == "cudnn, xla"


def test_notes_say_what_a_v100_lacks():
    config = replace(tiny.CONFIG, precision=replace(tiny.CONFIG.precision, compute="bfloat16"))
    notes = " ".join(list_notes(plan_of("v100:8", config=config)))
    assert "does not compile for compute capability 7.0" in notes
    assert "no bfloat16; products are counted at its float32 rate, 15.7 TFLOP/s" in notes
    assert list_notes(plan_of(config=config)) == []


def test_a_sweep_shows_what_fits_and_what_cannot_be_compiled():
    results = [
        SweepResult(tiny.CONFIG, plan_of()),
        SweepResult(tiny.CONFIG, plan_of(peak_bytes=10**12)),
        SweepResult(tiny.CONFIG, None, "INTERNAL: no"),
    ]
    head, fits, large, broken = format_sweep(results).splitlines()
    assert head.split()[:4] == ["zero", "tensor", "microbatches", "remat"]
    assert fits.endswith("  fits") and large.endswith("does not fit")
    assert broken.endswith("can't be compiled: INTERNAL: no")
    rows = build_sweep_document(results)["sweep"]
    assert [row.get("fits") for row in rows] == [True, False, None]
    assert rows[2]["error"] == "INTERNAL: no"
