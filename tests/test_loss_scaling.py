"""Training in float16: the scale against torch's, skipped steps to the bit, on every mesh."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import random_state, tiny, tiny_run

from jaxlm import checkpoint, loss_scaling, state, step
from jaxlm.checkpoint import Checkpoints
from jaxlm.config import DataConfig, ModelConfig, PrecisionConfig
from jaxlm.run import build_run
from jaxlm.throughput import fetch_metrics
from jaxlm.types import Batch, Tree

HALF = PrecisionConfig(compute="float16", loss_scale_start=1024.0, loss_scale_growth_interval=3)
ONE_LAYER = replace(
    tiny.CONFIG,
    model=ModelConfig(vocabulary_size=300, layers=1, width=16, heads=2, context_length=8),
    data=DataConfig(sequence_length=8),
    precision=HALF,
)
SCRIPT = np.random.default_rng(0).random(200) < 0.85  # which of 200 steps have finite gradients


class OneDevice(NamedTuple):
    """The step of one layer in float16, compiled once, its first state, and a batch."""

    run: Callable
    start: Callable[[], state.TrainState]  # each step takes the memory of the state before
    batch: Batch


@pytest.fixture(scope="module")
def one_device() -> OneDevice:
    parts = tiny.parts(1, ONE_LAYER)
    first = tiny.initial_state(ONE_LAYER)
    return OneDevice(parts.step(), lambda: parts.place(first), tiny.batch(0, ONE_LAYER))


def overflowing(batch: Batch) -> Batch:
    """Return a batch whose loss is infinite in its last row, and so on the last device alone."""
    weights = np.array(batch.weights)
    weights[-1] = np.inf
    return batch._replace(weights=weights)


def same_bits(tree: Tree, other: Tree) -> bool:
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


# The scale


class ScaledStep(NamedTuple):
    """The scale for the next step, and the steps so far that were skipped."""

    scale: float
    skipped: int


@cache
def torch_steps(precision: PrecisionConfig) -> list[ScaledStep]:
    """Return what torch's scaler makes of the script, with a weight that counts its steps."""
    torch: Any = pytest.importorskip("torch")
    scaler = torch.amp.GradScaler(
        "cpu",
        init_scale=precision.loss_scale_start,
        growth_interval=precision.loss_scale_growth_interval,
        backoff_factor=precision.loss_scale_backoff,
    )
    weight = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=1.0)

    steps = []
    for number, is_finite in enumerate(SCRIPT):
        factor = 1.0 if is_finite else (np.inf, np.nan)[number % 2]
        optimizer.zero_grad()
        scaler.scale(weight * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        steps.append(ScaledStep(scaler.get_scale(), number + 1 + round(weight.item())))
    return steps


@pytest.mark.parametrize(
    "precision",
    [
        PrecisionConfig(compute="float16", loss_scale_growth_interval=7),
        PrecisionConfig(compute="float16", loss_scale_growth_interval=3, loss_scale_backoff=0.25),
        # The scale comes to the end of float32, and stays below it.
        PrecisionConfig(
            compute="float16",
            loss_scale_start=2.0**125,
            loss_scale_growth_interval=1,
            loss_scale_backoff=0.75,
        ),
    ],
    ids=["defaults", "backoff", "largest"],
)
def test_the_scale_changes_as_in_torch(precision):
    optimizer = loss_scaling.skip_overflows(optax.sgd(1.0), precision)
    weights: Any = {"a": jnp.zeros(()), "b": jnp.zeros(3)}
    update = jax.jit(optimizer.update)
    current: Any = optimizer.init(weights)

    ours = []
    for number, is_finite in enumerate(SCRIPT):
        factor = 1.0 if is_finite else (jnp.inf, jnp.nan)[number % 2]
        updates, current = update({"a": jnp.ones(()) * factor, "b": jnp.ones(3)}, current)
        weights = optax.apply_updates(weights, updates)
        scale, _, skipped = current.loss_scale
        assert int(skipped) == number + 1 + round(float(weights["a"]))
        ours.append(ScaledStep(float(scale), int(skipped)))
    assert ours == torch_steps(precision)
    assert len({scaled.scale for scaled in ours}) > 5


def test_the_scale_of_training_steps_changes_as_in_torch(one_device):
    """200 whole steps in float16: where the loss is infinite, the step is skipped."""
    run, start, batch = one_device
    bad, current = overflowing(batch), start()

    ours = []
    for number, is_finite in enumerate(SCRIPT):
        current, metrics = run(current, batch if is_finite else bad)
        metrics = fetch_metrics(number + 1, jax.block_until_ready(metrics))
        assert metrics.scaling is not None
        assert metrics.scaling.scale == (ours[-1].scale if ours else HALF.loss_scale_start)
        ours.append(
            ScaledStep(float(metrics.scaling.next_scale), int(metrics.scaling.skipped_steps))
        )
    assert ours == torch_steps(HALF)
    assert ours[-1].skipped == np.sum(~SCRIPT) > 20


# A step


def test_a_skipped_step_changes_the_scale_alone(one_device):
    """Weights of -0.0 keep their sign, too."""
    run, start, batch = one_device
    first = start()
    once, _ = run(first, batch)
    norm = once.params["final_norm"]
    norm["scale"] = jax.device_put(np.full_like(norm["scale"], -0.0), norm["scale"].sharding)
    before = jax.device_get(once)
    after, metrics = jax.device_get(run(once, overflowing(batch)))

    assert same_bits(after.params, before.params)
    assert same_bits(after.optimizer.inner, before.optimizer.inner)
    assert after.step == before.step + 1  # it counts batches
    assert after.optimizer.loss_scale == (512.0, 0, 1)
    assert not np.isfinite(metrics.grad_norm)
    assert (
        before.optimizer.loss_scale == (1024.0, 1, 0)
        and np.signbit(after.params["final_norm"]["scale"]).all()
    )


def test_a_state_saved_while_the_scale_falls_is_restored_to_the_bit(one_device, tmp_path):
    """And the steps after it are those of a run that was never stopped."""
    run, start, batch = one_device
    batches = [overflowing(batch), overflowing(batch), batch, overflowing(batch), batch, batch]

    def steps(current: state.TrainState, numbers: range) -> state.TrainState:
        for number in numbers:
            current, _ = run(current, batches[number])
        return current

    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(3, steps(start(), range(3)), {})
        checkpoints.wait()
        abstract = random_state.abstract_state_of(tiny.parts(1, ONE_LAYER))
        resumed = steps(checkpoints.restore(3, abstract), range(3, 6))
    unbroken = jax.device_get(steps(start(), range(6)))
    assert same_bits(resumed, unbroken)
    assert unbroken.optimizer.loss_scale == (128.0, 2, 3)


# Without the scale


SMALL_ENCODER = replace(
    tiny.ENCODER, model=replace(tiny.ENCODER.model, layers=1, width=32, heads=2)
)


def microbatch_gradients(precision: PrecisionConfig, scale: float | None) -> Tree:
    """Return the gradients of 16 rows of a batch that has 65,536 targets in all."""
    parts = tiny.parts(1, replace(SMALL_ENCODER, precision=precision))
    params, batch = tiny.initial_state(SMALL_ENCODER).params, tiny.batch(0, SMALL_ENCODER)
    counts, training = step.Counts(65536.0), SMALL_ENCODER.training

    def loss(params: Tree) -> Any:
        factor = None if scale is None else jnp.float32(scale)
        return step.batch_loss(parts.model, training, 2**29, counts, params, batch, None, factor)[0]

    grads = jax.jit(jax.grad(loss))(params)
    return jax.device_get(
        loss_scaling.unscale_gradients(grads, None if scale is None else jnp.float32(scale))
    )


def test_gradients_vanish_without_a_scale():
    """Those of all queries are 0 in float16; with the scale they are as in float32."""
    exact = microbatch_gradients(PrecisionConfig(compute="float32"), None)
    unscaled = microbatch_gradients(HALF, None)
    scaled = microbatch_gradients(HALF, 2.0**20)

    for name in ("query_kernel", "key_kernel", "query_bias"):
        exact_values = exact["blocks"]["attention"][name]
        assert np.all(exact_values) and not np.any(unscaled["blocks"]["attention"][name])
        error = scaled["blocks"]["attention"][name] - exact_values
        # float16 rounds to 2^-11 = 5e-4.
        assert np.linalg.norm(error) < 3e-3 * np.linalg.norm(exact_values)


# Meshes


MESHES = {
    "zero 0, data 2": dict(devices=2, data=2),
    "zero 1, microbatches": dict(devices=4, zero=1, microbatches=2),
    "zero 2, microbatches": dict(devices=4, zero=2, microbatches=2),
    "zero 3, tensor 2": dict(devices=8, zero=3, data=2, tensor=2),
    "zero 3, scanned, microbatches": dict(devices=2, zero=3, blocks="scanned", microbatches=2),
}


SLOW = list(zip(tiny.FAMILIES, list(MESHES)[1:4], strict=True))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("small", "zero 3, tensor 2"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
        *(
            pytest.param(*case, marks=pytest.mark.campaign)
            for case in itertools.product(tiny.FAMILIES, MESHES)
            if case not in SLOW
        ),
    ],
)
def test_all_devices_skip_a_step_in_which_one_overflows(one_device, family, name):
    """And a step that is not skipped has the loss and the gradients of one device."""
    half = replace(tiny.FAMILIES[family], precision=HALF) if family != "small" else ONE_LAYER
    options = dict(MESHES[name])
    devices, microbatches = options.pop("devices"), options.pop("microbatches", 1)
    training = replace(half.training, microbatches=microbatches)
    parts = tiny.parts(devices, replace(half, training=training), **options)
    before, batch, run = tiny.initial_state(half), tiny.batch(0, half), parts.step()

    skipped, metrics = jax.block_until_ready(
        run(parts.place(before), parts.put(overflowing(batch)))
    )
    assert same_bits(jax.device_get(skipped).params, before.params)
    assert same_bits(jax.device_get(skipped).optimizer.inner, before.optimizer.inner)
    for array in jax.tree.leaves((skipped.optimizer.loss_scale, metrics.scaling)):
        copies = [np.asarray(shard.data) for shard in array.addressable_shards]
        assert len(copies) == devices and same_bits(copies, copies[:1] * devices)

    _, metrics = jax.block_until_ready(run(skipped, parts.put(batch)))
    assert metrics.scaling.skipped_steps == 1 and metrics.scaling.next_scale == 512
    if family == "small":
        _, expected = one_device.run(one_device.start(), batch)
    else:
        exact = tiny.parts(1, replace(half, precision=PrecisionConfig(compute="float32")))
        _, expected = exact.step()(exact.start(), batch)
    assert metrics.loss == pytest.approx(float(expected.loss), rel=1e-3)
    assert metrics.grad_norm == pytest.approx(float(expected.grad_norm), rel=2e-3)


# Runs


RUN_EDITS = (
    "precision.compute=float16",
    "precision.loss_scale_start=4e6",
    "precision.loss_scale_growth_interval=1",
    "optimizer.schedule=constant",
    "optimizer.warmup_steps=3",
    "evaluation.every_steps=0",
    "checkpoint.every_steps=0",
)


def saved_state(directory: str) -> state.TrainState:
    """Return the newest checkpoint of a run."""
    config, _ = checkpoint.read_run_config(Path(directory))
    run = build_run(config, config.training.steps)
    abstract = state.abstract_state(run.model, run.optimizer, run.placement)
    with Checkpoints(Path(directory) / "checkpoints", keep=2) as checkpoints:
        return jax.device_get(checkpoints.restore(config.training.steps, abstract))


@pytest.mark.slow
def test_a_run_resumed_while_the_scale_falls_is_the_unbroken_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_run.write_recipe(tmp_path)
    assert tiny_run.run(*RUN_EDITS, directory="runs/whole") == 0
    assert "scale 4e+06 skipped 1" in capsys.readouterr().out
    assert tiny_run.run(*RUN_EDITS, "training.steps=3", directory="runs/broken") == 0
    assert tiny_run.run(*RUN_EDITS, directory="runs/broken") == 0

    rows = tiny_run.rows("runs/whole")
    training = {tag: values for tag, values in rows.items() if tag.startswith("train/")}
    broken = tiny_run.rows("runs/broken")
    assert {tag: values for tag, values in broken.items() if tag.startswith("train/")} == training
    skipped = [count for _, count in rows["train/skipped_steps"]]
    assert skipped[:4] == [1, 2, 3, 4] and skipped[-1] < 9
    assert same_bits(saved_state("runs/broken"), saved_state("runs/whole"))

    # Steps that are skipped are none of the warmup, whose last one is the third.
    rates = [rate for _, rate in rows["train/learning_rate"]]
    before = [0, *skipped[:-1]]
    warmup = [min(1, (step - behind + 1) / 3) for step, behind in enumerate(before)]
    assert rates == pytest.approx([1e-2 * share for share in warmup])

    capsys.readouterr()
    edits = [*RUN_EDITS[1:], "precision.compute=float32", "training.steps=14"]
    assert tiny_run.run(*edits, directory="runs/broken") == 2
    assert "differs in precision.compute: float16 -> float32" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_whose_scale_falls_to_the_end_stops_and_names_the_tensors(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    tiny_run.write_recipe(tmp_path)
    edits = ("precision.loss_scale_start=8", "optimizer.learning_rate=1000")
    assert tiny_run.run(*RUN_EDITS, *edits) == 4
    error = capsys.readouterr().err
    assert error.startswith("error: training: the loss scale is 0.5 after step ")
    assert "the gradients of 'blocks/attention/key_bias', " in error and error.count("\n") == 1
