"""The learning rates around the step at which a run is resumed with another config."""

from typing import NamedTuple

import jax
import numpy as np
import optax

from jaxlm.config import ConfigError, OptimizerConfig

RESTART = 2.0  # times the last rate: a smaller rise, as a few steps more bring it, is only told


class RatesAtResume(NamedTuple):
    """The learning rates of the last step before a resume and of the next one."""

    step: int  # steps that are done
    last: float
    planned: float  # of the next step, as the run was planned
    following: float  # of the next step, as it will be


def rates_at_resume(before: optax.Schedule, after: optax.Schedule, step: int) -> RatesAtResume:
    """Return the rates around `step` (at least 1) where one schedule takes another's place."""

    def rate(schedule: optax.Schedule, count: int) -> float:
        return float(jax.device_get(schedule(np.int32(count))))

    # A schedule runs on the steps that are done before.
    return RatesAtResume(step, rate(before, step - 1), rate(before, step), rate(after, step))


def describe_rates(rates: RatesAtResume) -> list[str]:
    """Return a line on the rates if that of the next step changes."""
    step, last, planned, following = rates
    if np.isclose(planned, following, rtol=1e-3, atol=0):
        return []
    return [f"learning rate: {last:.2e} at step {step} -> {following:.2e} at step {step + 1}"]


def check_restart(before: OptimizerConfig, after: OptimizerConfig, rates: RatesAtResume) -> None:
    """Raise ConfigError if more steps would restart a learning rate that decays already.

    The loss would rise with it, and much of the way down be done again. A rate or a schedule that
    is changed by name may rise, and so may a warmup.
    """
    schedule, step = after.schedule, rates.step
    decays = schedule in ("cosine", "linear") and step > after.warmup_steps
    is_named = before.learning_rate != after.learning_rate or before.schedule != schedule
    if not decays or is_named or after.allow_restart:
        return
    if rates.following <= RESTART * max(rates.last, rates.planned):
        return

    rise = f"from {rates.last:.2e} at step {step} to {rates.following:.2e} at step {step + 1}"
    raise ConfigError(
        "training.steps" if before.decay_steps == after.decay_steps else "optimizer.decay_steps",
        f"the learning rate would rise again, {rise}, since {schedule!r} has decayed for fewer "
        "steps: set optimizer.allow_restart=true if that is wanted (schedule 'wsd' can be prolonged"
        " at its peak)",
    )
