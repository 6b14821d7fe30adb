"""Time the training step of a config on random text.

Both commands that measure speed do it by this: tests/gpu/step_speed.py and tests/peers/compare.py.
"""

import itertools
import time
from typing import Any, NamedTuple

import jax

from jaxlm import state, step
from jaxlm.config import Config
from jaxlm.run import Run, build_run
from support import synthetic

HOST_BATCHES = 4  # different ones, used in turn


class TimedSteps(NamedTuple):
    """A training step that was compiled and run."""

    run: Run
    compiled: Any  # jax's compiled step
    seconds: list[float]  # of each timed step
    losses: list[float]  # of every step, from the first
    compile_seconds: float


def time_steps(run_config: Config, *, warm_up: int, timed: int) -> TimedSteps:
    """Compile the step of a config and run it on batches cut by the config's objective.

    The process must be configured for `run_config.runtime` before, as in jaxlm.train.
    """
    run = build_run(run_config, first_step=0)
    batches = [synthetic.batch(run_config, number) for number in range(HOST_BATCHES)]
    current = state.create_state(run.model, run.optimizer, run.placement, run_config.seed)
    jitted = step.train_step(
        run.model,
        run.optimizer,
        run_config.training,
        run.placement,
        run_config.seed,
        tile_bytes=run.tile_bytes,
        compiler_options=run.compiler_options,
    )
    before_compiling = time.perf_counter()
    compiled = jitted.lower(current, run.placement.put(batches[0])).compile()
    compile_seconds = time.perf_counter() - before_compiling

    # As many steps stay in flight while the host prepares the next as in the loop of jaxlm.train:
    # one on a GPU, none on CPUs.
    losses, ends = [], []
    for number in range(warm_up + timed + 1):
        current, metrics = compiled(current, run.placement.put(batches[number % HOST_BATCHES]))
        losses.append(metrics.loss)
        if number >= run.steps_in_flight:
            jax.block_until_ready(losses[number - run.steps_in_flight])
            ends.append(time.perf_counter())
    jax.block_until_ready(current)

    return TimedSteps(
        run=run,
        compiled=compiled,
        seconds=[end - start for start, end in itertools.pairwise(ends)][-timed:],
        losses=[float(loss) for loss in losses],
        compile_seconds=compile_seconds,
    )
