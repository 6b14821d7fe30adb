"""The metrics of training steps: read from the device, checked, and reported with their speed."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxlm import hardware
from jaxlm.config import DivergedError
from jaxlm.config.fields import list_names
from jaxlm.loss_scaling import SMALLEST_SCALE, ScalingMetrics
from jaxlm.step import StepMetrics
from jaxlm.types import Tree


def fetch_metrics(step: int, metrics: StepMetrics) -> StepMetrics:
    """Wait for `step` and return its metrics on the host. Raises DivergedError if it diverged.

    A step that was skipped since its gradients overflow has not: its loss may be no number.
    """
    # Sync: a few scalars travel to the host, and the host waits for the step that computes them.
    values = jax.device_get(metrics)
    if values.scaling is not None:
        check_scale(step, values.scaling)
        if list_overflows(values.scaling):
            return values

    for name, value in (("loss", values.loss), ("gradient's norm", values.grad_norm)):
        if not np.isfinite(value):
            raise DivergedError(
                f"training: the {name} is {value} at step {step}; checkpoints before it are kept"
            )
    return values


def check_scale(step: int, scaling: ScalingMetrics) -> None:
    """Raise DivergedError if the scale of the loss is below the smallest one.

    It is as low after some more steps: it takes many good ones to rise.
    """
    if scaling.next_scale >= SMALLEST_SCALE:
        return
    names = list_overflows(scaling)
    overflows = (
        f"the gradients of {list_names(names)} overflow" if names else "gradients overflowed"
    )
    raise DivergedError(
        f"training: the loss scale is {scaling.next_scale:g} after step {step}, below the smallest "
        f"({SMALLEST_SCALE:g}): {overflows}; checkpoints before it are kept"
    )


def list_overflows(scaling: ScalingMetrics) -> list[str]:
    """Return the paths of the parameters whose gradients are not finite."""
    leaves = jax.tree_util.tree_leaves_with_path(scaling.overflows)
    paths = [path for path, overflows in leaves if overflows]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def metrics_row(
    step: int,
    metrics: StepMetrics,
    learning_rate: Callable[[jax.Array], jax.Array],
    throughput: "Throughput",
) -> dict[str, float]:
    """Return the values to log for `step`, by tag. `metrics` are on the host."""
    # Sync: the schedule runs on the device, on the optimizer's count, which starts from 0. Steps
    # that were skipped before this one are not among it.
    scaling, skipped_before = {}, 0
    if metrics.scaling is not None:
        skipped = int(metrics.scaling.skipped_steps)
        scaling = {
            "train/loss_scale": float(metrics.scaling.scale),
            "train/skipped_steps": skipped,
        }
        skipped_before = skipped - bool(list_overflows(metrics.scaling))
    rate = jax.device_get(learning_rate(jax.device_put(np.int32(step - 1 - skipped_before))))

    detection = {}
    if metrics.detection is not None:
        detection = {
            "train/generator_loss": float(metrics.detection.generator_loss),
            "train/detection_loss": float(metrics.detection.loss),
            "train/detection_accuracy": float(metrics.detection.accuracy),
            "train/replaced_share": float(metrics.detection.replaced),
        }

    rewards = {}
    if metrics.rewards is not None:
        chosen, rejected = float(metrics.rewards.chosen), float(metrics.rewards.rejected)
        rewards = {
            "train/reward_chosen": chosen,
            "train/reward_rejected": rejected,
            "train/reward_margin": chosen - rejected,
            "train/reward_accuracy": float(metrics.rewards.accuracy),
        }

    return {
        "train/loss": float(metrics.loss),
        **detection,
        **rewards,
        "train/learning_rate": float(rate),
        "train/grad_norm": float(metrics.grad_norm),
        "train/param_norm": float(metrics.param_norm),
        **scaling,
        "train/tokens": throughput.tokens_read(step),
        **throughput.report(step),
    }


class Throughput:
    """Measure tokens/s and MFU, without the time of compilation, evaluation and saving.

    A window of speed lasts from one report to the next. Only a report starts a new one: time that
    is `paused` is left out of the window, and the steps before and after the pause count.
    """

    def __init__(
        self,
        devices: Sequence[Any],
        *,
        flops_per_token: float,
        tokens_read: Callable[[int], int],
        steps_in_flight: int,
        now: Callable[[], float] = time.perf_counter,
    ):
        """`tokens_read` maps a number of steps to the tokens that all jax devices read in them.

        `steps_in_flight` is how many steps may run while the host prepares the next one. The peak
        of the accelerator is looked up by its name; an unknown one has no MFU.
        """
        peak = hardware.peak_flops(devices[0].device_kind)
        self.peak_flops = None if peak is None else peak * len(devices)
        self.flops_per_token = flops_per_token
        self.tokens_read = tokens_read
        self.steps_in_flight = steps_in_flight
        self.unfinished: list[StepMetrics] = []

        self.now = now
        self.started = now()
        self.resumed = self.started  # when training last went on after a pause
        self.training_seconds = 0.0  # up to `resumed`
        # (step, seconds of training) at the last report; None until the first step is done.
        self.window_start: tuple[int, float] | None = None

    def wait(self, step: int, metrics: StepMetrics) -> None:
        """Wait until at most `steps_in_flight` steps are unfinished; call it after every step."""
        self.unfinished.append(metrics)
        first = self.window_start is None

        # Sync: nothing is transferred, but the host must not run ahead of the device without bound.
        if first or len(self.unfinished) > self.steps_in_flight:
            jax.block_until_ready(self.unfinished.pop(0))

        if first:  # its time was spent on compilation
            self.resumed = self.now()
            self.window_start = (step, 0.0)

    def report(self, step: int) -> dict[str, float]:
        """Return the speed since the last report and start a new window; `step` must be done.

        The result is empty where no step has been done since.
        """
        seconds = self.training_seconds + self.now() - self.resumed
        first_step, first_seconds = self.window_start or (step, seconds)
        if step <= first_step:
            return {}

        tokens = self.tokens_read(step) - self.tokens_read(first_step)
        tokens_per_second = tokens / (seconds - first_seconds)
        self.window_start = (step, seconds)

        values = {"train/tokens_per_second": tokens_per_second}
        if self.peak_flops is not None:
            values["train/mfu"] = tokens_per_second * self.flops_per_token / self.peak_flops
        return values

    @contextlib.contextmanager
    def paused(self, outputs: Tree) -> Iterator[None]:
        """Leave the time of the block out. `outputs` are arrays that the newest step computes."""
        # Sync: the step's own time counts as training, so it has to end first.
        jax.block_until_ready(outputs)
        self.training_seconds += self.now() - self.resumed
        self.resumed = self.now()
        yield
        self.resumed = self.now()

    def elapsed(self) -> float:
        """Return the seconds since training began, with everything included."""
        return self.now() - self.started
