"""Time and what follows from it. jax is imported inside the functions: a command imports this before jax is set up."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jaxlm.config import Config, DivergedError

if TYPE_CHECKING:
    from jaxlm.objectives import Objective
    from jaxlm.step import StepMetrics


class Throughput:
    """Reads the metrics of steps and adds what follows from time: tokens/s without compilation, evaluation and saving; MFU."""

    def __init__(
        self,
        settings: Config,
        devices: Sequence[Any],
        objective: "Objective",
        first_sample: Callable[[int], int],
        most_in_flight: int,
    ):
        """`first_sample` gives the number of samples before a step, `most_in_flight` how many steps may run while the host goes on."""
        import jax

        from jaxlm import flops, hardware, optim

        peak = hardware.peak_flops(devices[0].device_kind)
        self.first_sample, self.tokens_per_sample = first_sample, objective.tokens
        self.rate = jax.jit(
            optim.learning_rate_schedule(settings.optimizer, settings.training.steps)
        )
        sizes = objective.length, objective.source_length, objective.predictions
        self.flops_per_token = flops.training_flops(settings.model, *sizes) / objective.tokens
        self.peak = None if peak is None else peak * len(devices)
        self.in_flight: list[StepMetrics] = []
        self.most_in_flight = most_in_flight
        self.began = self.mark = time.perf_counter()
        self.seconds = 0.0  # of training, up to the mark
        self.since: tuple[int, float] | None = (
            None  # (step, seconds of training) at the last reading
        )

    def tick(self, step: int, metrics: "StepMetrics") -> None:
        """Waits until at most `most_in_flight` steps are unfinished."""
        import jax

        self.in_flight.append(metrics)
        if len(self.in_flight) > self.most_in_flight or self.since is None:
            jax.block_until_ready(self.in_flight.pop(0))
        if self.since is None:  # the first step compiles
            self.mark, self.since = time.perf_counter(), (step, 0.0)

    def read(self, step: int, metrics: "StepMetrics") -> dict[str, float]:
        """The row of a step; waits for it. DivergedError if its loss is no finite number."""
        import jax
        import numpy as np

        found = jax.device_get(metrics)
        if not np.isfinite(found.loss):
            raise DivergedError(
                f"training: the loss is {found.loss} at step {step}; checkpoints before it are kept"
            )
        values = {
            "train/loss": float(found.loss),
            "train/learning_rate": float(np.asarray(self.rate(step - 1))),
            "train/grad_norm": float(found.grad_norm),
            "train/param_norm": float(found.param_norm),
            "train/tokens": self.tokens(step),
        }
        seconds = self.seconds + time.perf_counter() - self.mark
        since_step, since_seconds = self.since or (step, seconds)
        if step > since_step:
            values["train/tokens_per_second"] = (self.tokens(step) - self.tokens(since_step)) / (
                seconds - since_seconds
            )
            if self.peak is not None:
                values["train/mfu"] = (
                    values["train/tokens_per_second"] * self.flops_per_token / self.peak
                )
            self.since = (step, seconds)
        return values

    @contextlib.contextmanager
    def paused(self, metrics: "StepMetrics") -> Iterator[None]:
        """Time that is not training. Waits for the step first."""
        import jax

        jax.block_until_ready(metrics)
        self.seconds += time.perf_counter() - self.mark
        self.mark = time.perf_counter()
        yield
        self.mark = time.perf_counter()

    def tokens(self, step: int) -> int:
        """Tokens read up to a step, exactly."""
        return self.first_sample(step) * self.tokens_per_sample

    def wall(self) -> float:
        """Seconds since the loop began, everything included."""
        return time.perf_counter() - self.began
