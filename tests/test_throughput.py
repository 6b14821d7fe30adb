"""Speed by a clock that only the test moves, and the check of the loss."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxlm import throughput
from jaxlm.config import DivergedError
from jaxlm.hardware import peak_flops
from jaxlm.step import StepMetrics
from jaxlm.throughput import Throughput, fetch_metrics

H100 = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
METRICS = StepMetrics(loss=np.float32(1.5), grad_norm=np.float32(2), param_norm=np.float32(3))


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def pass_time(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock():
    return Clock()


def measure(clock, devices=(H100,), steps_in_flight=0):
    """Return a throughput of 100 tokens a step, 1e9 FLOPs a token."""
    return Throughput(
        devices,
        flops_per_token=1e9,
        tokens_read=lambda steps: 100 * steps,
        steps_in_flight=steps_in_flight,
        now=clock,
    )


def run_steps(speed, clock, first, last, seconds=1.0):
    for step in range(first, last + 1):
        clock.pass_time(seconds)
        speed.wait(step, METRICS)


def test_the_first_step_compiles_and_has_no_speed(clock):
    speed = measure(clock)
    run_steps(speed, clock, 1, 1, seconds=60)
    assert speed.report(1) == {}
    run_steps(speed, clock, 2, 5)
    assert speed.report(5)["train/tokens_per_second"] == pytest.approx(100)
    assert speed.elapsed() == pytest.approx(64)


def test_a_save_between_two_log_lines_leaves_the_next_reading_right(clock):
    speed = measure(clock)
    run_steps(speed, clock, 1, 10)
    speed.report(10)
    run_steps(speed, clock, 11, 14, seconds=1.0)
    with speed.paused(METRICS):
        fetch_metrics(14, METRICS)
        clock.pass_time(500)
    run_steps(speed, clock, 15, 20, seconds=2.0)
    # Ten steps in 4 x 1 + 6 x 2 seconds: those before the save count, and the save does not.
    assert speed.report(20)["train/tokens_per_second"] == pytest.approx(10 * 100 / 16)
    run_steps(speed, clock, 21, 21, seconds=4.0)
    assert speed.report(21)["train/tokens_per_second"] == pytest.approx(25)


def test_mfu_is_of_all_devices(clock):
    mfu = []
    for devices in ((H100,), (H100, H100)):
        speed = measure(clock, devices)
        run_steps(speed, clock, 1, 3)
        mfu.append(speed.report(3)["train/mfu"])
    peak = peak_flops(H100.device_kind)
    assert mfu == pytest.approx([100 * 1e9 / peak, 100 * 1e9 / (2 * peak)])


def test_unknown_devices_have_no_mfu(clock):
    speed = measure(clock, (SimpleNamespace(device_kind="cpu"),))
    run_steps(speed, clock, 1, 3)
    assert speed.report(3).keys() == {"train/tokens_per_second"}


@pytest.mark.parametrize("steps_in_flight", [0, 1, 2])
def test_the_host_runs_so_many_steps_ahead(clock, monkeypatch, steps_in_flight):
    awaited = []
    monkeypatch.setattr(throughput.jax, "block_until_ready", awaited.append)
    speed = measure(clock, steps_in_flight=steps_in_flight)
    for step in range(1, 6):
        speed.wait(step, METRICS._replace(loss=step))
    # The first step is awaited at once, for its compilation.
    assert [metrics.loss for metrics in awaited] == [1, *range(2, 6 - steps_in_flight)]


def test_a_loss_that_is_not_finite_names_its_step():
    assert fetch_metrics(7, METRICS) == METRICS
    for loss in (np.nan, np.inf):
        with pytest.raises(DivergedError, match=f"the loss is {loss} at step 7"):
            fetch_metrics(7, METRICS._replace(loss=jax.numpy.float32(loss)))


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_metrics_that_are_not_finite_end_the_run(name, value):
    with pytest.raises(DivergedError, match=rf"is {value} at step 7; checkpoints before it are"):
        fetch_metrics(7, METRICS._replace(**{name: np.float32(value)}))
