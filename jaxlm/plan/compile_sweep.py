"""Compile the variants of a sweep, and put them side by side."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlm.columns import align_columns
from jaxlm.config import Config, UserError
from jaxlm.hardware import Cluster
from jaxlm.plan.compile_report import gigabytes
from jaxlm.plan.compile_step import compile_step
from jaxlm.plan.step_plan import StepPlan, build_step_document, plan_step
from jaxlm.progress import Progress


class SweepResult(NamedTuple):
    """A variant, with its figures or with the reason why there are none."""

    config: Config
    plan: StepPlan | None
    error: str = ""


def compile_variants(
    variants: Sequence[Config], cluster: Cluster, price: float | None = None
) -> list[SweepResult]:
    """Compile each variant; return the fastest first, and last what can't be compiled."""
    results = []
    progress = Progress(len(variants), line_seconds=0)
    try:
        for number, variant in enumerate(variants, 1):
            result = compile_variant(variant, cluster, price)
            results.append(result)
            progress.update(number, f"{number} of {len(variants)}: {', '.join(cells_of(variant))}")
    finally:
        progress.close()
    return sorted(results, key=lambda result: -tokens_per_second(result))


def compile_variant(variant: Config, cluster: Cluster, price: float | None) -> SweepResult:
    """Compile one variant."""
    try:
        return SweepResult(variant, plan_step(compile_step(variant, cluster), price))
    except (UserError, RuntimeError, NotImplementedError) as error:  # XLA's is a RuntimeError
        first_line = str(error).strip().partition("\n")[0]
        return SweepResult(variant, None, first_line or type(error).__name__)


def tokens_per_second(result: SweepResult) -> float:
    """Return the tokens per second of a variant; -1 if it can't be compiled."""
    return -1.0 if result.plan is None else result.plan.tokens_per_second


def cells_of(variant: Config) -> list[str]:
    """Return what the variants of a sweep differ in, as shown while they are compiled."""
    return [
        f"zero {variant.parallel.zero}",
        f"tensor {variant.parallel.tensor}",
        f"microbatches {variant.training.microbatches}",
        f"remat {variant.parallel.remat}",
    ]


def format_sweep(results: Sequence[SweepResult]) -> str:
    """Return the table of a sweep."""
    head = ("zero", "tensor", "microbatches", "remat", "peak GB", "ms a step", "tokens/s", "MFU")
    lines: list[Sequence[str]] = [(*head, "memory")]
    for result in results:
        variant, plan = result.config, result.plan
        cells = [
            str(variant.parallel.zero),
            str(variant.parallel.tensor),
            f"{variant.training.microbatches:,}",
            variant.parallel.remat,
        ]
        if plan is None:
            lines.append([*cells, "", "", "", "", f"can't be compiled: {result.error}"])
            continue
        cells += [
            gigabytes(plan.peak_bytes),
            f"{1e3 * plan.step_seconds:,.1f}",
            f"{plan.tokens_per_second:,.0f}",
            f"{plan.mfu:.1%}",
        ]
        lines.append([*cells, describe_memory(plan)])
    return align_columns(lines)


def describe_memory(plan: StepPlan) -> str:
    """Return whether a step fits: 'fits', 'fits at 0.90' of the memory, or 'does not fit'."""
    if plan.fits:
        return "fits"
    fraction = plan.fraction_that_fits
    return "does not fit" if fraction is None else f"fits at {fraction:.2f}"


def build_sweep_document(results: Sequence[SweepResult]) -> dict[str, Any]:
    """Return the results as `--json` writes them."""
    rows = []
    for result in results:
        if result.plan is not None:
            rows.append(build_step_document(result.plan))
            continue
        parallel, training = result.config.parallel, result.config.training
        rows.append(
            {
                "zero": parallel.zero,
                "mesh": {"tensor": parallel.tensor},
                "microbatches": training.microbatches,
                "remat": parallel.remat,
                "error": result.error,
            }
        )
    return {"sweep": rows}
