"""The learning rate of each step."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from jaxlm.config import OptimizerConfig
from jaxlm.types import Array

# How far the rate has fallen, from 0 at the peak to 1 at the final rate, by the share of the decay
# that is done. The shapes are compared in Hägele et al. (arXiv 2405.18392).
FALLEN: dict[str, Callable[[Array], Array]] = {
    "linear": lambda done: done,
    "1-sqrt": jnp.sqrt,
    "cosine": lambda done: 0.5 * (1 - jnp.cos(jnp.pi * done)),
    "1-square": jnp.square,
}


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the function from a step (from 0) to the learning rate of that step.

    The warmup is a line: it is at `warmup_start_ratio` of the peak one step before the first step,
    and at the peak in its last step. It is cut to the steps.
    """
    peak, final = config.learning_rate, config.learning_rate * config.final_learning_rate_ratio
    start = peak * config.warmup_start_ratio
    warmup = min(config.warmup_steps, steps)
    end = config.decay_steps or steps
    decay_start = config.cooldown_start(steps)
    fallen = FALLEN[config.cooldown_shape]

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / max(1, end - warmup), 0.0, 1.0)

        schedules: dict[str, Callable[[], Array]] = {
            "constant": lambda: jnp.full_like(step, peak),
            "linear": lambda: peak + (final - peak) * progress,
            "cosine": lambda: final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress)),
            # Vaswani et al. 2017 section 5.3, scaled to reach the peak where the warmup ends.
            "inverse_sqrt": lambda: (
                peak * jnp.sqrt(max(1, warmup) / jnp.maximum(step, max(1, warmup)))
            ),
            # Warmup-stable-decay, MiniCPM (arXiv 2404.06395).
            "wsd": lambda: (
                peak
                + (final - peak)
                * fallen(jnp.clip((step - decay_start) / max(1, steps - decay_start), 0.0, 1.0))
            ),
        }
        after_warmup = schedules[config.schedule]()

        in_warmup = start + (peak - start) * (step + 1) / max(1, warmup)
        return jnp.where(step < warmup, in_warmup, after_warmup)

    return rate
