"""The figures of a compiled step as lines and tables."""

from collections.abc import Sequence

from jaxlm.columns import align_columns
from jaxlm.plan.roofline import EXPOSED, PARTS
from jaxlm.plan.step_plan import DAY, HOUR, StepPlan, list_notes


def format_plan(plan: StepPlan) -> str:
    """Return the figures of a compiled step as text."""
    blocks = [
        format_head(plan),
        format_memory(plan),
        format_collectives(plan),
        format_time(plan),
        format_run(plan),
        "\n".join(f"note: {note}" for note in list_notes(plan)),
    ]
    return "\n\n".join(block for block in blocks if block)


def format_head(plan: StepPlan) -> str:
    """Return what was compiled, for which GPUs and mesh."""
    config, cluster = plan.config, plan.cluster
    shape = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    rows = plan.batch_size // config.training.microbatches
    rows //= plan.mesh["data"] * plan.mesh["fsdp"]
    lines = [
        f"{cluster.gpus} x {cluster.accelerator.name} ({count(cluster.nodes, 'node')} of "
        f"{cluster.gpus_per_node}): {config.model.family}, {plan.parameters:,} parameters, "
        f"{config.precision.compute}",
        f"{shape}, ZeRO {config.parallel.zero}, blocks {plan.blocks}, "
        f"remat {config.parallel.remat}",
        f"{plan.batch_size:,} sequences a step in "
        f"{count(config.training.microbatches, 'microbatch', 'microbatches')}, "
        f"{rows:,} on a GPU at a time; {plan.tokens:,} tokens a step",
    ]
    lines += [f"{name}: {kernel} ({reason})" for name, (kernel, reason) in plan.kernels.items()]
    return "\n".join(lines)


def count(number: int, unit: str, units: str = "") -> str:
    """Return '1 node' or '8 nodes'."""
    return f"{number:,} {unit if number == 1 else units or unit + 's'}"


def format_memory(plan: StepPlan) -> str:
    """Return the bytes of a GPU and whether they fit."""
    lines = [
        ("memory of each GPU, by the compiler", "bytes", "GB"),
        ("arguments: state and batch", f"{plan.argument_bytes:,}", gigabytes(plan.argument_bytes)),
        ("temporary", f"{plan.temp_bytes:,}", gigabytes(plan.temp_bytes)),
        ("peak", f"{plan.peak_bytes:,}", gigabytes(plan.peak_bytes)),
    ]
    return f"{align_columns(lines)}\n{format_verdict(plan)}"


def format_verdict(plan: StepPlan) -> str:
    """Return whether the step fits into the GPU's memory, and what would make it fit."""
    gpu = plan.cluster.accelerator
    has = f"jax takes {gigabytes(plan.usable_bytes)} of the {gigabytes(gpu.memory_bytes)} GB"
    if plan.fits:
        return f"fits: {has} of {gpu.name}"
    fraction = plan.fraction_that_fits
    if fraction is not None:
        return (
            f"fits with XLA_PYTHON_CLIENT_MEM_FRACTION={fraction}: without it {has} of {gpu.name}"
        )
    return f"does not fit: {has} of {gpu.name}; `python -m jaxlm.plan memory` says what to change"


def format_collectives(plan: StepPlan) -> str:
    """Return the collectives by kind."""
    if not plan.collectives:
        return "collectives: none"
    lines: list[Sequence[str]] = [("collectives of a step", "count", "GB", "formula GB", "ms")]
    for total in plan.collectives:
        formula = "" if total.formula_bytes is None else f"{total.formula_bytes / 1e9:,.3f}"
        lines.append(
            (
                total.kind,
                f"{total.count:,}",
                f"{total.bytes / 1e9:,.3f}",
                formula,
                f"{1e3 * total.seconds:,.1f}",
            )
        )
    note = "the formula leaves out norms, biases and sums"
    if plan.mesh["tensor"] > 1:
        note = "no formula counts parallel.tensor"
    return f"{align_columns(lines)}\nGB of whole arrays, all times together; {note}"


def format_time(plan: StepPlan) -> str:
    """Return the estimated time of a step by part, tokens/s and MFU."""
    total = plan.step_seconds
    lines: list[Sequence[str]] = [("time of a step, estimated", "ms", "share")]
    for name in PARTS:
        seconds = plan.estimate.parts[name]
        if seconds or name != EXPOSED:
            lines.append((name, f"{1e3 * seconds:,.1f}", f"{seconds / total:.1%}"))
    lines.append(("all", f"{1e3 * total:,.1f}", "100.0%"))
    text = align_columns(lines)
    if plan.collectives:
        text += f"\n{1e3 * plan.hidden_seconds:,.1f} ms of communication run beside kernels"

    gpu = plan.cluster.accelerator
    executed = plan.estimate.flops * plan.cluster.gpus / plan.flops
    peak = gpu.peak_flops[gpu.tensor_dtype] / 1e12
    return (
        f"{text}\n\n"
        f"FLOPs of a step: {plan.flops:.4g} ({executed:.0%} of them executed, as attention skips "
        f"hidden pairs and remat repeats products)\n"
        f"tokens/s: {plan.tokens_per_second:,.0f}, "
        f"{plan.tokens_per_second / plan.cluster.gpus:,.0f} of each GPU; "
        f"MFU {plan.mfu:.1%} of {peak:,.1f} TFLOP/s"
    )


def format_run(plan: StepPlan) -> str:
    """Return the time and the price of the whole run."""
    tokens = plan.tokens // plan.batch_size * plan.samples
    text = (
        f"whole run: {plan.steps:,} steps, {tokens:,} tokens: {duration(plan.run_seconds)}, "
        f"{plan.gpu_hours:,.1f} GPU-hours"
    )
    if plan.cost is not None:
        text += f", {plan.cost:,.2f} at {plan.price:g} a GPU-hour"
    return f"{text}\ncompiled in {plan.compile_seconds:.1f} s"


def duration(seconds: float) -> str:
    """Return '33.9 days', '5.2 hours' or '48 seconds'."""
    if seconds >= DAY:
        return f"{seconds / DAY:,.1f} days"
    return f"{seconds / HOUR:.1f} hours" if seconds >= HOUR else f"{seconds:.0f} seconds"


def gigabytes(size: int) -> str:
    """Return bytes as GB of 10^9, '84.9'."""
    return f"{size / 1e9:,.2f}"
