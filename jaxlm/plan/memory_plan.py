"""The plan of a config's memory on a cluster: bytes, verdict, largest microbatch, changes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from jaxlm.config import Config, ConfigError, OptimizerConfig
from jaxlm.hardware import Cluster
from jaxlm.plan.device_program import trained_bytes
from jaxlm.plan.memory import NOTES, UPDATE, MemoryEstimate, estimate_memory
from jaxlm.plan.memory_advice import (
    Change,
    Microbatch,
    largest_microbatch,
    rows_per_gpu,
    suggest_changes,
)
from jaxlm.plan.memory_report import (
    Verdict,
    format_stages,
    format_table,
    gigabytes,
    judge,
    stages_document,
)
from jaxlm.plan.state_bytes import BytesPerParameter
from jaxlm.run_checks import check_sample

# What a part of a step is called in the report.
MOMENTS = {
    "forward": "at the end of the forward pass",
    "backward, first half": "at the loss, where the backward pass begins",
    "backward, second half": "towards the end of the backward pass",
    "gradients": "where the gradients of all GPUs are added up",
    UPDATE: "in the update of the weights",
}


class MemoryPlan(NamedTuple):
    """The memory that a config takes on a cluster."""

    config: Config
    cluster: Cluster
    estimate: MemoryEstimate
    verdict: Verdict
    largest: Microbatch | None
    changes: list[Change]  # where it does not fit
    lengths: dict[int, MemoryEstimate]  # by sequence length


def plan_memory(config: Config, cluster: Cluster, lengths: Sequence[int] = ()) -> MemoryPlan:
    """Return the plan of a config. Raises ConfigError where it does not fit so many GPUs."""
    gpus, accelerator = cluster.gpus, cluster.accelerator
    try:
        estimate = estimate_memory(config, gpus, accelerator)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("runtime.attention", str(error)) from error

    verdict = judge(estimate.total, accelerator)
    changes = [] if verdict.fits else suggest_changes(config, gpus, accelerator, estimate)
    longer = {n: estimate_memory(with_length(config, n), gpus, accelerator) for n in lengths}
    largest = largest_microbatch(config, gpus, accelerator, estimate)
    return MemoryPlan(config, cluster, estimate, verdict, largest, changes, longer)


def with_length(config: Config, length: int) -> Config:
    """Return the config with sequences of this length, and enough learned positions for them."""
    model = replace(config.model, context_length=max(length, config.model.context_length))
    data = replace(config.data, sequence_length=length)
    changed = replace(config, model=model, data=data)
    check_sample(changed)
    return changed


def bytes_of(config: Config) -> BytesPerParameter:
    """Return the bytes per parameter of a config's state."""
    return BytesPerParameter(*trained_bytes(config))


# The report


def format_plan(plan: MemoryPlan) -> str:
    """Return the plan as text."""
    config, estimate = plan.config, plan.estimate
    rows, parallel = rows_per_gpu(config, plan.cluster.gpus), config.parallel
    head = (
        f"{plan.cluster.gpus} x {plan.cluster.accelerator.name}, ZeRO {parallel.zero}, remat "
        f"{parallel.remat}, tensor {parallel.tensor}, {config.precision.compute}, "
        f"{config.optimizer.kind}: microbatches of {rows} x {config.data.sequence_length:,} on "
        "each GPU"
    )
    kernels = [f"{name}: {kernel} ({why})" for name, (kernel, why) in estimate.kernels.items()]
    moment = MOMENTS[estimate.part]
    sections = [
        "\n".join([head, *kernels]),
        format_table(size_rows(plan)),
        f"The most is in memory {moment}.\n{plan.verdict}.",
        format_table(part_rows(estimate)),
        describe_largest(plan),
    ]
    if plan.changes:
        sections.append(describe_changes(plan))
    if plan.lengths:
        sections.append(format_table(length_rows(plan)))
    sections.append(format_stages(plan.cluster, bytes_of(config)))
    return "\n\n".join(sections)


def size_rows(plan: MemoryPlan) -> list[tuple[str, ...]]:
    """Return the table of bytes by what they are for."""
    estimate, precision, adapter = plan.estimate, plan.config.precision, plan.config.adapter
    frozen = f", {adapter.base} where frozen" if adapter.rank else ""
    formats = {
        "parameters": precision.params + frozen,
        "gradients": "float32",
        "optimizer": optimizer_format(plan.config.optimizer),
        "activations": precision.compute,
        "logits": f"float32, {precision.compute}",
    }
    rows = [("", "GB per GPU", "format")]
    for name in ("parameters", "gradients", "optimizer", "activations", "logits", "buffers"):
        rows.append((name, gigabytes(getattr(estimate, name)), formats.get(name, "")))
    for name, size in estimate.working.items():
        if name not in formats and size:
            rows.append((f"  {name.replace('_', ' ')}", gigabytes(size), NOTES[name]))
    return [*rows, ("total", gigabytes(estimate.total), "")]


def optimizer_format(config: OptimizerConfig) -> str:
    """Return the format of the moments."""
    formats = dict.fromkeys((config.first_moment, config.second_moment))
    return ", ".join(formats)


def part_rows(estimate: MemoryEstimate) -> list[tuple[str, ...]]:
    """Return the table of the most bytes in each part of a step."""
    rows = [("part of a step", "most GB")]
    return rows + [
        (MOMENTS[part], gigabytes(estimate.parts[part]))
        for part in MOMENTS
        if part in estimate.parts
    ]


def describe_largest(plan: MemoryPlan) -> str:
    """Return a sentence on the largest microbatch that fits."""
    if plan.largest is None:
        return "Not even one sequence at a time fits on a GPU."
    rows, total = plan.largest
    return f"The largest microbatch that fits has {rows} sequences on a GPU: {gigabytes(total)} GB."


def describe_changes(plan: MemoryPlan) -> str:
    """Return the changes that would help, and the cheapest that is enough."""
    table = f"What would change that:\n\n{format_table(change_rows(plan))}"
    fitting = [change for change in plan.changes if change.fits]
    if not fitting:
        advice = "None is enough: take more GPUs or larger ones, or a smaller model."
    else:
        advice = f"The cheapest that is enough: {' '.join(fitting[0].edits)}"
    return f"{table}\n\n{advice}"


def change_rows(plan: MemoryPlan) -> list[tuple[str, ...]]:
    """Return the table of changes, from the cheapest on."""
    rows = [("change", "GB per GPU", "fits", "price")]
    for change in plan.changes:
        fits = "yes" if change.fits else "no"
        rows.append((" ".join(change.edits), gigabytes(change.total), fits, change.why))
    return rows


def length_rows(plan: MemoryPlan) -> list[tuple[str, ...]]:
    """Return the table of sequence lengths."""
    rows: list[tuple[str, ...]] = [("tokens", "activations", "logits", "total GB", "fits")]
    for length, estimate in plan.lengths.items():
        fits = "yes" if judge(estimate.total, plan.cluster.accelerator).fits else "no"
        sizes = (estimate.activations, estimate.logits, estimate.total)
        rows.append((f"{length:,}", *map(gigabytes, sizes), fits))
    return rows


def build_memory_document(plan: MemoryPlan) -> dict[str, Any]:
    """Return the plan as plain data; bytes are those of one GPU."""
    estimate, config = plan.estimate, plan.config
    names = ("parameters", "gradients", "optimizer", "activations", "logits", "buffers", "total")
    largest = plan.largest
    return {
        **{name: getattr(estimate, name) for name in names},
        "fits": plan.verdict.fits,
        "state_bytes": estimate.parameters + estimate.optimizer,
        "argument_bytes": estimate.parameters + estimate.optimizer + estimate.working["batch"],
        "details": estimate.working,
        "peak": estimate.part,
        "parts": estimate.parts,
        "microbatch_rows": rows_per_gpu(config, plan.cluster.gpus),
        "largest_microbatch": None if largest is None else largest._asdict(),
        "changes": [change._asdict() for change in plan.changes],
        "kernels": {name: kernel for name, (kernel, _) in estimate.kernels.items()},
        "lengths": {
            str(length): {"activations": e.activations, "logits": e.logits, "total": e.total}
            for length, e in plan.lengths.items()
        },
        **stages_document(plan.cluster, bytes_of(config)),
    }
