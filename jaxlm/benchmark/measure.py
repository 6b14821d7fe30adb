"""Measure a config: run its training step as the training loop does, and take the figures."""

import itertools
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import data, flops, hardware, runtime, trainer
from jaxlm.benchmark import synthetic
from jaxlm.benchmark.figures import Figures, FlopCounts, Memory
from jaxlm.benchmark.parts import assign_parts
from jaxlm.benchmark.profile import (
    FETCH,
    RECORDING_OPTIONS,
    STEP,
    StepParts,
    newest_trace,
    read_parts,
    record_profile,
)
from jaxlm.benchmark.start_up import COMPILE, FIRST_STEP, SET_UP, StartUp
from jaxlm.config import Config
from jaxlm.data.loader import LocalBatches, prefetch_batches
from jaxlm.objectives import Objective
from jaxlm.run import Run, build_run, build_update, check_memory, state_bytes
from jaxlm.run_checks import check_trainable
from jaxlm.state import TrainState, create_state
from jaxlm.step import StepMetrics
from jaxlm.types import Batch

SYNTHETIC_BATCHES = 4  # different ones, used in turn
PROFILED_STEPS = 3
PRODUCT = 4096, 384, 1536  # rows, inner size and columns of the product that is timed
PRODUCT_ROUNDS = 5


class Options(NamedTuple):
    """How a config is measured."""

    steps: int = 20  # that are timed
    warm_up: int = 3  # steps before them, beside the first
    profile: Path | None = None  # the folder that keeps the trace. None: it is removed
    profiled_steps: int = PROFILED_STEPS  # 0: no profile


class Program(NamedTuple):
    """A compiled training step with its state and its batches."""

    run: Run
    lowered: Any  # jax.stages.Lowered, the step before it is compiled
    step: Any  # compiled: (state, batch) -> (state, metrics)
    state: TrainState
    batches: Iterator[Batch]
    objective: Objective
    first_loss: float


class Steps(NamedTuple):
    """Steps that were run."""

    state: TrainState  # after them
    seconds: list[float]  # of each
    losses: list[float]


def measure(
    config: Config, store: data.Store | None, options: Options, start_up: StartUp
) -> Figures:
    """Return the figures of a config in this process, on its data or, without a store, random text.

    `start_up` has measured the process so far. Where the batch size changes in training, the last
    one is measured. Nothing is written but the trace that `options` ask for.
    """
    config = settle_batch_size(config)
    program = start(config, store, start_up)
    targets: list[float] = []

    def count_targets(batch: Batch) -> None:
        targets.append(float(np.count_nonzero(np.asarray(batch.weights))))

    warm_up, timed = options.warm_up, options.steps
    steps = run_steps(program, program.state, warm_up + timed, count_targets)
    memory = read_memory(program.run, program.step)
    parts = StepParts({})
    if options.profiled_steps:
        parts = profile_steps(program, steps.state, options)

    run, objective = program.run, program.objective
    sizes = objective.length, objective.source_length, objective.predictions
    peak = hardware.peak_flops(run.devices[0].device_kind)
    return Figures(
        devices=runtime.describe_devices(run.devices),
        device_count=len(run.devices),
        family=config.model.family,
        objective=config.objective.kind,
        compute=config.precision.compute,
        parameters=run.model.parameter_count() + run.model.generator_parameter_count(),
        batch_size=config.training.batch_size,
        tokens=config.training.batch_size * objective.tokens,
        targets=statistics.fmean(targets),
        synthetic=store is None,
        step_seconds=tuple(steps.seconds[warm_up:]),
        flops=count_flops(run, sizes),
        peak_flops=None if peak is None else peak * len(run.devices),
        product_flops=time_product(run.devices, config.precision.compute) if peak is None else None,
        memory=memory,
        parts=parts.seconds,
        parts_unknown=parts.unknown,
        start_up=dict(start_up.seconds),
        cold_start_up={},
    )


def settle_batch_size(config: Config) -> Config:
    """Return the config with the batch size of its last step in all steps."""
    training = config.training
    if not training.batch_schedule:
        return config
    last = training.batch_schedule[-1][1]
    return replace(config, training=replace(training, batch_size=last, batch_schedule=()))


def start(config: Config, store: data.Store | None, start_up: StartUp) -> Program:
    """Return the compiled step after the first batch, and measure the time that it takes."""
    with start_up.measure(SET_UP):
        check_trainable(config)
        run = build_run(config, first_step=0)
        check_memory(run)

        if store is None:
            objective, batches = synthetic.objective(config), synthetic_batches(config)
        else:
            trainer.check_vocabulary(config.model, store)
            stream = trainer.build_stream(run, store)
            objective, batches = stream.objective, stream_batches(run, stream)
        state = create_state(run.model, run.optimizer, run.placement, config.seed)
        batch = run.placement.put(next(batches))
        jax.block_until_ready((state, batch))

    with start_up.measure(COMPILE):
        step = build_update(run)
        lowered = step.lower(state, batch)  # type: ignore[attr-defined]
        compiled = lowered.compile()

    with start_up.measure(FIRST_STEP):
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
    return Program(run, lowered, compiled, state, batches, objective, float(metrics.loss))


def synthetic_batches(config: Config) -> Iterator[Batch]:
    """Yield a few batches of random text in turn."""
    made = [synthetic.batch(config, number) for number in range(SYNTHETIC_BATCHES)]
    while True:
        yield from made


def stream_batches(run: Run, stream: Any) -> Iterator[Batch]:
    """Yield the batches of a run as the training loop reads them, without an end."""
    return prefetch_batches(
        LocalBatches(stream, run.placement.rows),
        0,
        len(stream),
        threads=run.config.data.prefetch_threads,
        buffer=run.config.data.prefetch_batches,
    )


def run_steps(
    program: Program,
    state: TrainState,
    count: int,
    see_batch: Callable[[Batch], None] = lambda batch: None,
) -> Steps:
    """Run steps as the training loop does; `see_batch` is called with each batch, on the host.

    A step lasts from the end of the one before it, the first from its beginning.
    """
    run, unfinished, losses = program.run, [], []
    ends = [time.perf_counter()]

    def wait_for_oldest() -> None:
        jax.block_until_ready(unfinished.pop(0))
        ends.append(time.perf_counter())

    for number in range(count):
        with jax.profiler.StepTraceAnnotation(STEP, step_num=number):
            with jax.profiler.TraceAnnotation(FETCH):
                batch = next(program.batches)
                see_batch(batch)
                placed = run.placement.put(batch)
            metrics: StepMetrics
            state, metrics = program.step(state, placed)
            unfinished.append(metrics)
            losses.append(metrics.loss)
            if len(unfinished) > run.steps_in_flight:
                wait_for_oldest()
    while unfinished:
        wait_for_oldest()
    seconds = [end - begin for begin, end in itertools.pairwise(ends)]
    return Steps(state, seconds, [float(loss) for loss in losses])


def profile_steps(program: Program, state: TrainState, options: Options) -> StepParts:
    """Record some steps, and return the seconds of a step by part."""
    recorded = compile_to_record(program)
    if recorded is not program:
        # The first step of a program also loads its kernels.
        state = run_steps(recorded, state, 1).state

    with tempfile.TemporaryDirectory(prefix="jaxlm-bench-") as temporary:
        directory = options.profile or Path(temporary)
        with record_profile(directory):
            steps = run_steps(recorded, state, options.profiled_steps)
            jax.block_until_ready(steps.state)

        text = recorded.step.as_text()
        name = text.partition("\n")[0].removeprefix("HloModule ").partition(",")[0]
        return read_parts(newest_trace(directory), name, assign_parts(text))


def compile_to_record(program: Program) -> Program:
    """Return a program of the same step whose trace names each kernel's instruction.

    On GPUs it is compiled once more. XLA reads the results of its autotuning from this process or
    from the cache of compiled programs.
    """
    if not runtime.are_gpus(program.run.devices):
        return program
    return program._replace(step=program.lowered.compile(compiler_options=RECORDING_OPTIONS))


def count_flops(run: Run, sizes: tuple[int, int, int]) -> FlopCounts:
    """Return the FLOPs of a step whose samples have these (length, source length, predictions)."""
    model, rows = run.config.model, run.config.training.batch_size
    length, source_length, _ = sizes
    parameters = run.model.parameter_count()

    rule = 0
    if source_length:
        # Each stack reads its own tokens. A token table that both share belongs to the head.
        encoder = encoder_parameters(run)
        rule += flops.rule_training_flops(model.encoder, encoder, source_length)
        parameters -= encoder
    elif model.generator is not None:
        generator = run.model.generator_parameter_count()
        rule += flops.rule_training_flops(model.generator, generator, length)
    rule += flops.rule_training_flops(model, parameters, length)
    return FlopCounts(
        exact=rows * flops.training_flops(model, *sizes),
        causal=rows * flops.causal_training_flops(model, *sizes),
        rule=rows * rule,
    )


def encoder_parameters(run: Run) -> int:
    """Return the parameters of an encoder-decoder's encoder, without its embeddings."""
    shapes = jax.eval_shape(run.model.init, jax.random.key(0))["encoder"]
    stack = {name: tree for name, tree in shapes.items() if name != "embedding"}
    return sum(leaf.size for leaf in jax.tree.leaves(stack))


def read_memory(run: Run, step: Any) -> Memory:
    """Return the bytes of a run: measured by the devices, else as the compiled step declares."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in run.devices]
    peak, source = max(peaks), "measured"
    if not peak:
        # CPUs don't say. Their peak of the analysis leaves the step's own buffers out.
        sizes = step.memory_analysis()
        peak = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
        peak += sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        source = "of the compiled step"

    parameters, optimizer = state_bytes(run)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    host_peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Memory(peak, source, parameters, optimizer, host_peak)


def time_product(devices: list[Any], compute: str) -> float:
    """Return the FLOP/s that a matrix product in this dtype reaches on all devices together."""
    rows, inner, columns = PRODUCT
    dtype = jnp.dtype(compute)

    @jax.jit
    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, preferred_element_type=jnp.float32)

    operands = [
        jax.device_put((jnp.ones((rows, inner), dtype), jnp.ones((inner, columns), dtype)), device)
        for device in devices
    ]
    seconds = []
    for _ in range(PRODUCT_ROUNDS + 1):
        started = time.perf_counter()
        jax.block_until_ready([product(*pair) for pair in operands])
        seconds.append(time.perf_counter() - started)
    return len(devices) * 2 * rows * inner * columns / min(seconds[1:])
