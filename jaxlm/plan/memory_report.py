"""The report of `plan memory` as text, and as a document for JSON. Imports no jax."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jaxlm.hardware import Accelerator, Cluster, usable_memory
from jaxlm.plan.state_bytes import (
    ALLOWANCE,
    ITEM_BYTES,
    STAGES,
    BytesPerParameter,
    activations_of,
    largest_model,
    state_of,
    usual_shape,
)

GIGABYTE = 1e9

# Parameters of the models in the table of stages; 0.61B, 2.28B and 11B are the T5 models with which
# Zhao et al. compare replication and sharding (arXiv 2304.11277, section 5.2).
MODEL_SIZES = (0.12e9, 0.35e9, 0.61e9, 1.3e9, 2.28e9, 6.7e9, 11e9, 13e9, 30e9, 70e9, 175e9)
LENGTHS = (2048, 8192, 32_768, 131_072)  # tokens of the table of contexts


def gigabytes(size: float) -> str:
    """Return bytes in units of 1e9, as papers print them: 120, 31.4, 1.9."""
    number = size / GIGABYTE
    if number >= 99.95:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 0.995 else f"{number:.3f}"


def count(parameters: float) -> str:
    """Return a number of parameters as 0.12B, 6.7B or 175B."""
    return f"{parameters / 1e9:.3g}B"


def format_table(rows: Iterable[Sequence[str]]) -> str:
    """Return rows in columns: numbers and their titles to the right, all else to the left."""
    rows = [list(row) for row in rows]
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    is_number = [
        i > 0 and all(cell[:1].isdigit() or not cell for cell in column[1:])
        for i, column in enumerate(columns)
    ]

    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(row, widths, is_number, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


class Verdict(NamedTuple):
    """Whether so many bytes fit on a GPU."""

    total: int
    usable: int
    accelerator: Accelerator

    @property
    def fits(self) -> bool:
        return self.total <= self.usable

    def __str__(self) -> str:
        share = self.usable / self.accelerator.memory_bytes
        room = (
            f"{gigabytes(self.usable)} GB that jax takes of the "
            f"{gigabytes(self.accelerator.memory_bytes)} GB of {self.accelerator.name} "
            f"({share:.0%}; XLA_PYTHON_CLIENT_MEM_FRACTION sets it)"
        )
        verb = "fits" if self.fits else "does not fit"
        return f"{gigabytes(self.total)} GB: {verb} into the {room}"


def judge(total: int, accelerator: Accelerator) -> Verdict:
    """Return whether so many bytes fit into what jax takes of a GPU's memory."""
    return Verdict(total, usable_memory(accelerator), accelerator)


# State alone


def format_state(parameters: float, cluster: Cluster, zero: int, each: BytesPerParameter) -> str:
    """Return the report on the state of a model of so many parameters."""
    accelerator, gpus = cluster.accelerator, cluster.gpus
    state = state_of(parameters, gpus, zero, each)
    allowance = round(ALLOWANCE * parameters * each.total)
    numbers = " + ".join(f"{size:g}" for size in each)
    plural = "s" if gpus > 1 else ""
    sections = [
        f"{parameters:,.0f} parameters on {gpus} GPU{plural}, ZeRO {zero}; bytes per parameter: "
        f"{numbers} (weights, gradients, optimizer)",
        format_table(
            [
                ("", "GB per GPU"),
                *((name, gigabytes(size)) for name, size in state._asdict().items()),
                ("state", gigabytes(state.total)),
                ("with the usual allowance for activations", gigabytes(state.total + allowance)),
            ]
        ),
        f"{judge(state.total, accelerator)}.",
        f"The allowance is half of the unsplit state, {ALLOWANCE * each.total:g} bytes per "
        "parameter; with a config\nthe command counts the activations.",
        format_formats(parameters),
        format_stages(cluster, each, parameters),
        format_contexts(parameters, state.total, each),
    ]
    return "\n\n".join(sections)


def format_formats(parameters: float) -> str:
    """Return the bytes of the weights alone by dtype."""
    cells = [f"{name} {gigabytes(size * parameters)} GB" for name, size in ITEM_BYTES.items()]
    return f"Weights alone: {', '.join(cells)}."


def format_stages(
    cluster: Cluster, each: BytesPerParameter, parameters: float | None = None
) -> str:
    """Return the table of ZeRO stages against sizes of models on a cluster."""
    accelerator, gpus = cluster.accelerator, cluster.gpus
    limit = usable_memory(accelerator)
    extra = () if parameters is None else (parameters,)
    sizes: list[float] = sorted({*MODEL_SIZES, *extra})

    def cell(size: float, zero: int) -> str:
        total = state_of(size, gpus, zero, each).total
        return gigabytes(total) + (" " if total <= limit else "*")

    stages = STAGES if gpus > 1 else STAGES[:1]
    rows = [("parameters", *(f"ZeRO {zero} " for zero in stages))]
    rows += [(count(size), *(cell(size, zero) for zero in stages)) for size in sizes]
    largest = [largest_model(limit, gpus, zero, each) for zero in stages]
    rows.append(("largest", *(f"{count(size)} " for size in largest)))

    title = (
        f"State in GB on each of {gpus} x {accelerator.name} by ZeRO stage; * is more than the "
        f"{gigabytes(limit)} GB that jax takes"
    )
    if gpus == 1:
        end = f"One GPU holds the state of {count(largest[0])} parameters; nothing can be split."
        return f"{title}\n\n{format_table(rows)}\n\n{end}"
    end = (
        f"Replicas (ZeRO 0, as DDP) end at {count(largest[0])} parameters, and sharding all of the "
        f"state\n(ZeRO 3, as FSDP) at {count(largest[3])}, activations not counted."
    )
    return f"{title}\n\n{format_table(rows)}\n\n{end}"


def format_contexts(parameters: float, state: int, each: BytesPerParameter) -> str:
    """Return the table of the activations of one sequence by its length."""
    shape = usual_shape(parameters)
    item = 4 if each.weights == 4 else 2
    titles = ("tokens", "full remat", "flash attention", "with scores", "state + flash")
    rows: list[tuple[str, ...]] = [titles]
    for length in LENGTHS:
        sequence = activations_of(shape, length, item)
        sizes = (
            sequence.recomputed,
            sequence.flash,
            sequence.flash + sequence.scores,
            state + sequence.flash,
        )
        rows.append((f"{length:,}", *map(gigabytes, sizes)))
    return (
        f"Activations in GB of one sequence, if the model has {shape.layers} layers of width "
        f"{shape.width:,} and computes in {8 * item} bits\n\n{format_table(rows)}\n\n"
        "They grow with the context, and scores that are kept with its square: that, not the "
        "weights, fills\n80 GB. Recomputing blocks (parallel.remat=full) keeps their inputs alone."
    )


def state_document(
    parameters: float, cluster: Cluster, zero: int, each: BytesPerParameter
) -> dict[str, Any]:
    """Return the report on the state as plain data."""
    state = state_of(parameters, cluster.gpus, zero, each)
    shape, item = usual_shape(parameters), 4 if each.weights == 4 else 2
    allowance = round(ALLOWANCE * parameters * each.total)
    return {
        **state._asdict(),
        "activations": 0,
        "logits": 0,
        "buffers": 0,
        "total": state.total,
        "fits": judge(state.total, cluster.accelerator).fits,
        "with_allowance": state.total + allowance,
        "weights": {name: round(size * parameters) for name, size in ITEM_BYTES.items()},
        "contexts": [activations_of(shape, length, item)._asdict() for length in LENGTHS],
        **stages_document(cluster, each),
    }


def stages_document(cluster: Cluster, each: BytesPerParameter) -> dict[str, Any]:
    """Return the cluster, and the largest model of each ZeRO stage, as plain data."""
    limit = usable_memory(cluster.accelerator)
    return {
        "gpu": cluster.accelerator.name,
        "gpus": cluster.gpus,
        "usable_bytes": limit,
        "largest_model": {
            str(zero): largest_model(limit, cluster.gpus, zero, each) for zero in STAGES
        },
    }
