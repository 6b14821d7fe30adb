"""The results of a benchmark: what was measured, what was counted, and what follows from both."""

import statistics
from typing import Any, NamedTuple


class FlopCounts(NamedTuple):
    """FLOPs of a training step, forward and backward, by three conventions."""

    exact: int  # all products, scores of all pairs of positions
    causal: int  # all products, scores of the pairs that a causal mask lets through
    rule: int  # 6N + 12LdT


class Memory(NamedTuple):
    """Bytes, on the device that has most, and of this process."""

    peak: int  # of a device in a step
    peak_source: str  # who says so
    parameters: int  # of each device
    optimizer: int  # of each device
    host_peak: int  # resident in this process


class Figures(NamedTuple):
    """The figures of a config on this machine."""

    # What was measured
    devices: str
    device_count: int
    family: str
    objective: str
    compute: str
    parameters: int
    batch_size: int  # sequences of a step
    tokens: int  # that the model reads in a step, both stacks together
    targets: float  # of a step, the mean
    synthetic: bool

    step_seconds: tuple[float, ...]  # in their order, without the warm-up
    flops: FlopCounts
    peak_flops: float | None  # of all devices together. None: unknown
    product_flops: float | None  # per second that a matrix product reached. None: not measured
    memory: Memory
    parts: dict[str, float]  # seconds of a profiled step, by part. Empty: unknown or not profiled
    parts_unknown: str  # why the parts are unknown. "": they aren't, or the step wasn't profiled
    start_up: dict[str, float]  # seconds of this process, by part
    cold_start_up: dict[str, float]  # of one without a compilation cache. Empty: not measured

    @property
    def median(self) -> float:
        """Return the median seconds of a step."""
        return statistics.median(self.step_seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Return the 10th and the 90th percentile of the seconds of a step."""
        if len(self.step_seconds) == 1:
            return self.step_seconds[0], self.step_seconds[0]
        ranked = statistics.quantiles(self.step_seconds, n=10, method="inclusive")
        return ranked[0], ranked[-1]

    def utilization(self, flops: int) -> float | None:
        """Return the share of the peak that these FLOPs of a step reach. None: unknown peak."""
        return None if self.peak_flops is None else flops / self.median / self.peak_flops


def build_document(figures: Figures) -> dict[str, Any]:
    """Return the figures as `--json` writes them: SI units, bytes and shares of 1."""
    low, high = figures.spread
    profiled = sum(figures.parts.values())
    cold = sum(figures.cold_start_up.values())
    return {
        "devices": figures.device_count,
        "device": figures.devices,
        "family": figures.family,
        "objective": figures.objective,
        "precision": figures.compute,
        "parameters": figures.parameters,
        "batch_size": figures.batch_size,
        "synthetic": figures.synthetic,
        "steps": len(figures.step_seconds),
        "step_seconds": {"median": figures.median, "p10": low, "p90": high},
        "tokens_per_second": figures.tokens / figures.median,
        "target_tokens_per_second": figures.targets / figures.median,
        "tokens_per_step": figures.tokens,
        "target_tokens_per_step": figures.targets,
        "flops_per_step": figures.flops.exact,
        "flops_per_step_causal": figures.flops.causal,
        "flops_per_step_6n": figures.flops.rule,
        "flops_per_second": figures.flops.exact / figures.median,
        "peak_flops": figures.peak_flops,
        "mfu": figures.utilization(figures.flops.exact),
        "mfu_causal": figures.utilization(figures.flops.causal),
        "mfu_6n": figures.utilization(figures.flops.rule),
        "product_flops": figures.product_flops,
        "peak_bytes": figures.memory.peak,
        "peak_bytes_source": figures.memory.peak_source,
        "host_peak_bytes": figures.memory.host_peak,
        "parameter_bytes": figures.memory.parameters,
        "optimizer_bytes": figures.memory.optimizer,
        "parts": {part: seconds / profiled for part, seconds in figures.parts.items()},
        "parts_unknown": figures.parts_unknown or None,
        "profiled_step_seconds": profiled or None,
        "first_step_seconds": sum(figures.start_up.values()),
        "first_step_seconds_cold": cold or None,
        "start_up": figures.start_up,
        "start_up_cold": figures.cold_start_up,
    }
