"""Time the training step of a config on random text, as `jaxlm.bench` does.

tests/gpu/step_speed.py and tests/peers/compare.py measure speed by this.
"""

from typing import Any, NamedTuple

from jaxlm.benchmark import measure
from jaxlm.benchmark.start_up import COMPILE, StartUp
from jaxlm.config import Config
from jaxlm.run import Run


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
    start_up = StartUp()
    program = measure.start(run_config, None, start_up)
    steps = measure.run_steps(program, program.state, warm_up + timed)
    return TimedSteps(
        run=program.run,
        compiled=program.step,
        seconds=steps.seconds[warm_up:],
        losses=[program.first_loss, *steps.losses],
        compile_seconds=start_up.seconds[COMPILE],
    )
