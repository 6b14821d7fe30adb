"""The figures of a step that was compiled for a cluster: memory, collectives, time, money."""

import math
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from jaxlm import communication, flops, hardware
from jaxlm.config import Config
from jaxlm.hardware import Cluster
from jaxlm.plan.compile_step import CompiledStep
from jaxlm.plan.compiled_text import COLLECTIVES, CompiledText
from jaxlm.plan.roofline import (
    EXPOSED,
    MEASURED,
    Efficiency,
    Estimate,
    collective_seconds,
    estimate_step,
)
from jaxlm.plan.targets import OLDEST_COMPILED
from jaxlm.types import Batch

# jax's default share of a GPU's memory can be raised to this; the rest is for CUDA and NCCL.
LARGEST_FRACTION = 0.95
DAY, HOUR = 86_400, 3_600


class CollectiveTotal(NamedTuple):
    """The collectives of one kind in a step."""

    kind: str
    count: int  # times that a GPU takes part
    bytes: int  # of whole arrays: after a gather, before a scatter; of all times together
    seconds: float  # that the links need, hidden or not
    formula_bytes: int | None  # by `communication.step_transfers`. None: it does not know them


class StepPlan(NamedTuple):
    """The figures of a config on a cluster. Bytes are those of each GPU."""

    config: Config
    cluster: Cluster
    mesh: dict[str, int]
    parameters: int
    blocks: str  # "unrolled" or "scanned"
    batch_size: int  # sequences of a step, the most of the schedule

    argument_bytes: int
    temp_bytes: int
    peak_bytes: int
    usable_bytes: int  # that jax takes of the GPU's memory

    kernels: dict[str, tuple[str, str]]  # of each kind of attention, and why
    collectives: list[CollectiveTotal]
    flops: int  # of a step on all GPUs, without recomputation
    estimate: Estimate
    tokens: int  # that the model reads in a step
    steps: int
    samples: int  # of the whole run
    price: float | None  # of a GPU-hour
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Return whether the peak fits into the memory that jax takes."""
        return self.peak_bytes <= self.usable_bytes

    @property
    def fraction_that_fits(self) -> float | None:
        """Return the XLA_PYTHON_CLIENT_MEM_FRACTION, in hundredths, with which the peak fits."""
        share = self.peak_bytes / self.cluster.accelerator.memory_bytes
        fraction = math.ceil(100 * share) / 100
        return fraction if fraction <= LARGEST_FRACTION else None

    @property
    def attention(self) -> str:
        """Return the kernels of attention, each once: "cudnn"."""
        return ", ".join(dict.fromkeys(kernel for kernel, _ in self.kernels.values()))

    @property
    def step_seconds(self) -> float:
        """Return the estimated seconds of a step."""
        return self.estimate.seconds

    @property
    def peak_flops(self) -> float:
        """Return the peak of all GPUs in the 16-bit dtype of their tensor cores."""
        gpu = self.cluster.accelerator
        return self.cluster.gpus * gpu.peak_flops[gpu.tensor_dtype]

    @property
    def mfu(self) -> float:
        """Return the share of the peak that the FLOPs of a step reach."""
        return self.flops / self.step_seconds / self.peak_flops

    @property
    def tokens_per_second(self) -> float:
        """Return the tokens that the model reads in a second."""
        return self.tokens / self.step_seconds

    @property
    def run_seconds(self) -> float:
        """Return the seconds of all steps; smaller batches count by their samples."""
        return self.samples / self.batch_size * self.step_seconds

    @property
    def gpu_hours(self) -> float:
        """Return the GPU-hours of all steps."""
        return self.cluster.gpus * self.run_seconds / HOUR

    @property
    def cost(self) -> float | None:
        """Return the price of all steps. None: without a price of a GPU-hour."""
        return None if self.price is None else self.price * self.gpu_hours

    @property
    def hidden_seconds(self) -> float:
        """Return the seconds of collectives that run beside kernels."""
        return self.estimate.communication_seconds - self.estimate.parts[EXPOSED]


def plan_step(
    compiled: CompiledStep, price: float | None = None, efficiency: Efficiency = MEASURED
) -> StepPlan:
    """Return the figures of a compiled step; `price` is that of a GPU-hour."""
    run, cluster, config = compiled.run, compiled.cluster, compiled.run.config
    text = CompiledText(compiled.text)
    rows = max(run.schedule.sizes(0))
    return StepPlan(
        config=config,
        cluster=cluster,
        mesh=dict(run.placement.mesh.shape),
        parameters=run.model.parameter_count() + run.model.generator_parameter_count(),
        blocks=run.execution.blocks,
        batch_size=rows,
        argument_bytes=compiled.argument_bytes,
        temp_bytes=compiled.temp_bytes,
        peak_bytes=compiled.peak_bytes,
        usable_bytes=hardware.usable_memory(cluster.accelerator),
        kernels=run.kernels(),
        collectives=total_collectives(text, cluster, config, dict(run.placement.mesh.shape)),
        flops=rows * sample_flops(config, run.example),
        estimate=estimate_step(text, cluster, efficiency),
        tokens=rows * sum(sample_lengths(run.example)),
        steps=config.training.steps,
        samples=run.schedule.first_sample(config.training.steps),
        price=price,
        compile_seconds=compiled.seconds,
    )


def sample_lengths(example: Batch) -> tuple[int, int]:
    """Return the tokens of a sample and those of its source, 0 without one."""
    source = 0 if example.source is None else example.source.shape[1]
    return example.tokens.shape[1], source


def sample_flops(config: Config, example: Batch) -> int:
    """Return the FLOPs of the forward and backward pass for one sample."""
    assert example.targets is not None
    predictions = example.targets.shape[1]
    return flops.training_flops(config.model, *sample_lengths(example), predictions)


def total_collectives(
    text: CompiledText, cluster: Cluster, config: Config, mesh: dict[str, int]
) -> list[CollectiveTotal]:
    """Return the collectives of a step by kind, beside the bytes that the formula says.

    The formula leaves out norms, biases and sums of the loss, and `parallel.tensor`.
    """
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    for collective in text.collectives():
        counts[collective.kind] += collective.times
        sizes[collective.kind] += collective.times * collective.bytes
        seconds[collective.kind] += collective.times * collective_seconds(collective, cluster)

    formula: Counter[str] = Counter()
    transfers = communication.step_transfers(
        config.model,
        config.precision,
        zero=config.parallel.zero,
        fsdp=mesh["fsdp"],
        data=mesh["data"],
        microbatches=config.training.microbatches,
    )
    for transfer in transfers:
        formula[transfer.kind] += transfer.bytes

    return [
        CollectiveTotal(
            kind=kind,
            count=counts[kind],
            bytes=sizes[kind],
            seconds=seconds[kind],
            formula_bytes=formula[kind] if mesh["tensor"] == 1 else None,
        )
        for kind in COLLECTIVES
        if counts[kind]
    ]


def list_notes(plan: StepPlan) -> list[str]:
    """Return what a reader of the figures should know of this GPU and config."""
    gpu, notes = plan.cluster.accelerator, []
    if gpu.compute_capability < OLDEST_COMPILED:
        notes.append(
            f"{gpu.name}: CUDA 13 does not compile for compute capability "
            f"{gpu.compute_capability}; this is the program for {OLDEST_COMPILED}, and training "
            "takes a jax with CUDA 12"
        )

    compute = plan.config.precision.compute
    if compute not in gpu.peak_flops:
        rate = gpu.peak_flops["float32"] / 1e12
        notes.append(
            f"{gpu.name}: its tensor cores have no {compute}; products are counted at its float32 "
            f"rate, {rate:.1f} TFLOP/s, and MFU against {gpu.tensor_dtype}"
        )
    if plan.config.training.batch_schedule:
        notes.append(f"the step is that of the largest batch, {plan.batch_size:,} sequences")
    return notes


def build_step_document(plan: StepPlan) -> dict[str, Any]:
    """Return the figures as `--json` writes them: bytes, seconds, shares of 1."""
    config, cluster = plan.config, plan.cluster
    return {
        "gpu": cluster.accelerator.name,
        "gpus": cluster.gpus,
        "nodes": cluster.nodes,
        "mesh": plan.mesh,
        "zero": config.parallel.zero,
        "microbatches": config.training.microbatches,
        "remat": config.parallel.remat,
        "parameters": plan.parameters,
        "batch_size": plan.batch_size,
        "argument_bytes": plan.argument_bytes,
        "temp_bytes": plan.temp_bytes,
        "peak_bytes": plan.peak_bytes,
        "memory_bytes": cluster.accelerator.memory_bytes,
        "usable_bytes": plan.usable_bytes,
        "fits": plan.fits,
        "memory_fraction": plan.fraction_that_fits,
        "attention": plan.attention,
        "attention_kernels": {
            name: {"kernel": kernel, "reason": reason}
            for name, (kernel, reason) in plan.kernels.items()
        },
        "collectives": [total._asdict() for total in plan.collectives],
        "flops": plan.flops,
        "executed_flops_per_gpu": plan.estimate.flops,
        "step_seconds": plan.step_seconds,
        "step_parts": plan.estimate.parts,
        "hidden_communication_seconds": plan.hidden_seconds,
        "mfu": plan.mfu,
        "tokens_per_second": plan.tokens_per_second,
        "steps": plan.steps,
        "run_seconds": plan.run_seconds,
        "gpu_hours": plan.gpu_hours,
        "cost": plan.cost,
        "compile_seconds": plan.compile_seconds,
        "notes": list_notes(plan),
    }
