"""The figures of a benchmark as the text that the command prints."""

from collections.abc import Sequence

from jaxlm.benchmark.figures import Figures
from jaxlm.columns import align_columns

CONVENTIONS = {
    "exact": "all products, scores of all pairs (PaLM's)",
    "causal": "all products, scores of a causal mask alone",
    "rule": "6N + 12LdT",
}
PART_NAMES = {
    "attention": "attention",
    "mlp": "MLP",
    "head_and_loss": "head and loss",
    "norms_and_embedding": "norms, residuals, embedding",
    "optimizer": "optimizer",
    "communication": "communication, not overlapped",
    "input_wait": "waiting for a batch",
    "idle": "idle: starting programs, other waits",
    "other": "other: casts and stacking of weights, copies",
}
START_UP_NAMES = {
    "import": "import",
    "set_up": "data and model",
    "compile": "compile",
    "first_step": "first step",
}


def format_figures(figures: Figures) -> str:
    """Return the figures as lines and tables."""
    blocks = [
        format_head(figures),
        format_speed(figures),
        format_flops(figures),
        format_memory(figures),
        format_parts(figures),
        format_start_up(figures),
    ]
    return "\n\n".join(block for block in blocks if block)


def format_head(figures: Figures) -> str:
    """Return what was measured."""
    text = "random text (--synthetic)" if figures.synthetic else "the config's data"
    return (
        f"{figures.devices}, {figures.compute}: {figures.family}, {figures.objective}, "
        f"{figures.parameters:,} parameters\n"
        f"{figures.batch_size:,} sequences a step of {text}"
    )


def format_speed(figures: Figures) -> str:
    """Return the time of a step and the tokens per second."""
    median, (low, high) = figures.median, figures.spread
    return (
        f"step: {1e3 * median:,.1f} ms, the median of {len(figures.step_seconds)} "
        f"(p10 {1e3 * low:,.1f}, p90 {1e3 * high:,.1f})\n"
        f"tokens/s: {figures.tokens / median:,.0f} that the model reads, "
        f"{figures.targets / median:,.0f} of them targets"
    )


def format_flops(figures: Figures) -> str:
    """Return the FLOPs by convention, and their share of the peak or of a product's rate."""
    rate, name = figures.peak_flops, "MFU"
    if rate is None:
        rate, name = figures.product_flops, "of the product"
    lines = [("FLOPs of a step", "GFLOP", "GFLOP/s", *([name] if rate else []))]
    for convention, description in CONVENTIONS.items():
        flops = getattr(figures.flops, convention)
        speed = flops / figures.median
        share = [f"{speed / rate:.1%}"] if rate else []
        lines.append((description, f"{flops / 1e9:,.1f}", f"{speed / 1e9:,.1f}", *share))

    if figures.peak_flops is not None:
        note = f"MFU = FLOPs of a step / seconds / peak, {figures.peak_flops / 1e12:,.1f} TFLOP/s "
        note += "of all devices in bfloat16 (data sheets, jaxlm/accelerators.py)"
    elif figures.product_flops is not None:
        note = f"the peak is unknown; a product [4096,384] x [384,1536] in {figures.compute} "
        note += f"on all devices at once reached {figures.product_flops / 1e9:,.0f} GFLOP/s"
    else:
        note = "the peak is unknown"
    return f"{align_columns(lines)}\n{note}"


def format_memory(figures: Figures) -> str:
    """Return the bytes of a device and of this process."""
    memory = figures.memory
    return (
        f"bytes per device: peak {memory.peak:,} ({memory.peak_source}), "
        f"parameters {memory.parameters:,}, optimizer state {memory.optimizer:,}\n"
        f"bytes of this process: peak {memory.host_peak:,}"
    )


def format_parts(figures: Figures) -> str:
    """Return the share of the step of each part; the largest first, what is left over last."""
    if figures.parts_unknown:
        return f"parts of the step: unknown, since {figures.parts_unknown}"
    if not figures.parts:
        return ""
    whole = sum(figures.parts.values())
    names = [name for name in figures.parts if name != "other"]
    names.sort(key=lambda name: -figures.parts[name])

    lines: list[Sequence[str]] = [("part of a profiled step", "ms", "share")]
    for name in (*names, "other"):
        seconds = figures.parts[name]
        lines.append((PART_NAMES[name], f"{1e3 * seconds:,.1f}", f"{seconds / whole:.1%}"))
    lines.append(("all", f"{1e3 * whole:,.1f}", "100.0%"))
    return align_columns(lines)


def format_start_up(figures: Figures) -> str:
    """Return the seconds to the first step, with and without a compilation cache."""
    columns = {"this process": figures.start_up}
    if figures.cold_start_up:
        columns = {"no cache": figures.cold_start_up, "cache": figures.start_up}

    lines: list[Sequence[str]] = [("seconds to the first step", *columns)]
    for name, description in START_UP_NAMES.items():
        lines.append((description, *(f"{column[name]:,.1f}" for column in columns.values())))
    lines.append(("all", *(f"{sum(column.values()):,.1f}" for column in columns.values())))
    return align_columns(lines)
