"""Estimates of memory: exact for the state, closed forms for what a step keeps."""

from dataclasses import replace
from functools import cache

import jax
import pytest

from jaxlm import config, hardware, mesh_execution, models, optim, sharding, state
from jaxlm.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainingConfig,
)
from jaxlm.plan import memory, memory_advice
from jaxlm.plan.device_program import Device, measure_state, trace_step
from jaxlm.plan.memory_plan import (
    MemoryPlan,
    build_memory_document,
    format_plan,
    plan_memory,
    with_length,
)
from jaxlm.plan.memory_report import judge

H100 = hardware.find_accelerator("h100")
LAYERS, WIDTH, LENGTH, ROWS, VOCABULARY = 3, 256, 512, 4, 16_384
DECODER = Config(
    model=ModelConfig(
        vocabulary_size=VOCABULARY, layers=LAYERS, width=WIDTH, heads=4, context_length=LENGTH
    ),
    data=DataConfig(sequence_length=LENGTH),
    optimizer=OptimizerConfig(warmup_steps=1),
    training=TrainingConfig(steps=10, batch_size=8 * ROWS),
    parallel=ParallelConfig(zero=1),
)
CHANNEL = ROWS * LENGTH * WIDTH * 2  # bytes of one activation, bfloat16


SHALLOW = replace(
    DECODER,
    model=replace(DECODER.model, layers=1, context_length=128),
    data=DataConfig(sequence_length=128),
    training=replace(DECODER.training, loss_tile=128),  # whatever the GPU's memory
)


def edited(base: Config, **sections) -> Config:
    """Return the config with fields of its sections replaced."""
    changed = {name: replace(getattr(base, name), **fields) for name, fields in sections.items()}
    return replace(base, **changed)


@cache
def step_of(run_config: Config, gpus: int = 8) -> memory.MemoryEstimate:
    return memory.estimate_memory(run_config, gpus, H100)


@pytest.mark.parametrize(
    ("zero", "kind"),
    [
        (0, "adamw"),
        (1, "adamw"),
        pytest.param(1, "adafactor", marks=pytest.mark.slow),
        (1, "muon"),
        pytest.param(1, "shampoo", marks=pytest.mark.slow),
        (2, "adamw"),
        (3, "adamw"),
    ],
)
def test_the_state_has_the_bytes_of_the_arrays(zero, kind):
    """Against the arrays themselves on eight devices, the step and all."""
    run_config = edited(SHALLOW, parallel={"zero": zero}, optimizer={"kind": kind})
    mesh = sharding.make_mesh(run_config.parallel, jax.devices()[:8])
    execution = mesh_execution.build_execution(
        mesh, run_config.parallel, run_config.precision, "auto", width=WIDTH
    )
    model = models.build(run_config.model, run_config.precision, execution)
    optimizer = optim.build_optimizer(run_config.optimizer, 10, model.axes)
    placement = sharding.Placement(mesh, model.axes, zero)
    arrays = state.create_state(model, optimizer, placement, seed=0)

    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(arrays))
    measured = measure_state(run_config, 8)
    assert measured.parameters + measured.optimizer == held


def test_a_layer_keeps_sixteen_numbers_of_each_channel():
    """Its two inputs, their norms, q, k, v, attention's output and the MLP's hidden layer twice."""
    kept = step_of(DECODER).activations - step_of(edited(DECODER, model={"layers": 1})).activations
    assert kept == pytest.approx(16 * CHANNEL * (LAYERS - 1), rel=0.02)


def test_recomputed_layers_keep_their_inputs():
    kept = step_of(edited(DECODER, parallel={"remat": "full"})).activations
    # And the last norm's output; its input is kept as two numbers a token and the sum of both.
    assert kept == pytest.approx((LAYERS + 1) * CHANNEL, rel=0.02)


def test_policies_that_recompute_more_keep_less():
    policies = [edited(DECODER, parallel={"remat": p}) for p in ("none", "weights", "dots", "full")]
    kept = [step_of(run_config).activations for run_config in policies]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 4


def test_a_long_stack_is_extrapolated_from_two_short_ones():
    deep = edited(DECODER, model={"layers": 8})
    assert memory.short_stacks(deep, 8) == (2, 4)
    step = trace_step(deep, 8, hardware.usable_memory(H100), Device())
    traced = max(sum(working.values()) for working in memory.measure_parts(step).values())
    estimate = step_of(deep)
    held = estimate.parameters + estimate.optimizer + estimate.working["batch"]
    assert estimate.total == pytest.approx(held + traced, rel=1e-6)


def test_scanned_stacks_and_stacks_of_different_lengths_are_traced_whole():
    deep = edited(DECODER, model={"layers": 12})
    assert memory.short_stacks(edited(deep, parallel={"zero": 3}), 8) is None
    assert memory.short_stacks(edited(deep, parallel={"blocks": "scanned"}), 8) is None


def test_zero_2_holds_a_part_of_the_gradients_between_microbatches():
    accumulating = edited(DECODER, training={"microbatches": 2, "batch_size": 16 * ROWS})
    parameters = measure_state(accumulating, 8).parameters
    first, second = (
        step_of(edited(accumulating, parallel={"zero": zero})).gradients for zero in (1, 2)
    )
    # Biases and norms stay whole.
    assert first - second == pytest.approx(parameters * (1 - 1 / 8), rel=0.03)


def test_scores_are_those_of_a_tile():
    whole = step_of(DECODER).logits
    assert whole == ROWS * LENGTH * VOCABULARY * (4 + 2)  # float32, and their gradient in bfloat16
    assert step_of(edited(DECODER, training={"loss_tile": 128})).logits == whole / 4


def test_kept_scores_grow_with_the_square_of_the_length():
    slow = replace(DECODER, runtime=replace(DECODER.runtime, attention="xla"))
    flash, scores = step_of(DECODER), step_of(slow)
    assert flash.kernels["attention"][0] == "cudnn" and scores.kernels["attention"][0] == "xla"
    # Four blocks of queries, each over the keys before it: 10 of 16 of all pairs, in float32.
    pairs = LAYERS * ROWS * 4 * LENGTH * LENGTH * 10 // 16
    assert scores.activations - flash.activations > 0.9 * 4 * pairs


def test_tensor_parallelism_splits_heads_and_hidden_layers():
    split = edited(DECODER, parallel={"tensor": 2}, training={"batch_size": 4 * ROWS})
    one, two = step_of(DECODER), step_of(split)
    # Of the sixteen numbers eight are the hidden layer's, three those of q, k and v, and one is
    # attention's output; the other four are of the whole width.
    layer = 16 * CHANNEL * LAYERS
    assert one.activations - two.activations == pytest.approx(layer * 12 / 32, rel=0.03)
    assert two.parameters < 0.55 * one.parameters


@pytest.mark.parametrize("family", ["encoder", "encoder_decoder"])
def test_the_parts_of_an_estimate_add_up(family):
    objective = {"encoder": "masked", "encoder_decoder": "infilling"}[family]
    run_config = replace(
        DECODER,
        model=replace(DECODER.model, family=family, layers=1),
        objective=config.ObjectiveConfig(kind=objective),
    )
    estimate = step_of(run_config)
    cluster = hardware.parse_cluster("h100:8")
    verdict = judge(estimate.total, H100)
    plan = MemoryPlan(run_config, cluster, estimate, verdict, None, [], {})
    document = build_memory_document(plan)
    names = ("parameters", "gradients", "optimizer", "activations", "logits", "buffers")
    assert sum(document[name] for name in names) == document["total"] == estimate.total
    assert document["total"] == max(document["parts"].values())


# Advice


def small_gpu(memory_bytes: int) -> hardware.Accelerator:
    return H100._replace(memory_bytes=int(memory_bytes / hardware.DEFAULT_FRACTION) + 1)


def test_the_largest_microbatch_fits_and_one_sequence_more_does_not():
    known = step_of(SHALLOW)
    gpu = small_gpu(2 * known.total)
    largest = memory_advice.largest_microbatch(SHALLOW, 8, gpu, known)
    assert largest is not None and largest.rows > ROWS and largest.total <= 2 * known.total

    more = memory_advice.with_rows(SHALLOW, 8, largest.rows + 1)
    assert memory.estimate_memory(more, 8, gpu).total > hardware.usable_memory(gpu)
    nothing = small_gpu(known.parameters)
    assert memory_advice.largest_microbatch(SHALLOW, 8, nothing, known) is None


@pytest.mark.slow
def test_the_first_change_that_fits_is_the_cheapest():
    known = step_of(SHALLOW)
    changes = memory_advice.suggest_changes(SHALLOW, 8, small_gpu(int(0.97 * known.total)), known)
    assert changes[0].edits[0].startswith("training.microbatches=") and changes[0].fits
    assert all(change.total < known.total for change in changes)
    assert len({change.edits[0].partition("=")[0] for change in changes}) == len(changes)


@pytest.mark.slow
def test_where_no_single_change_fits_several_are_tried_together():
    known = step_of(SHALLOW)
    *single, together = memory_advice.suggest_changes(SHALLOW, 8, small_gpu(1000), known)
    assert not any(change.fits for change in single) and len(together.edits) > 1
    assert together.total < min(change.total for change in single)


def test_a_longer_sequence_gets_the_positions_that_it_needs():
    longer = with_length(SHALLOW, 256)
    assert longer.model.context_length == 256
    assert step_of(longer).activations == pytest.approx(2 * step_of(SHALLOW).activations, rel=0.1)


def test_the_report_names_the_moment_and_the_verdict():
    cluster = hardware.parse_cluster("h100:8")
    gpu = small_gpu(int(1.1 * step_of(SHALLOW).total))
    plan = plan_memory(SHALLOW, cluster._replace(accelerator=gpu), (256,))
    report = format_plan(plan)
    assert plan.verdict.fits and ": fits into the" in report
    assert plan.largest is not None and f"has {plan.largest.rows} sequences" in report
    assert list(plan.lengths) == [256] and not judge(plan.lengths[256].total, gpu).fits
