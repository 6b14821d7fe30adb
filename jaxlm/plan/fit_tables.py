"""The figures of a fit as the text that `plan fit` prints."""

from collections.abc import Sequence

import numpy as np

from jaxlm.card.loss_plot import short_number
from jaxlm.columns import align_columns
from jaxlm.plan.fit_report import Results, optimal_exponents
from jaxlm.plan.isoflop import IsoflopFit
from jaxlm.plan.prediction import HeldOut, Interval, Prediction

SHOWN_RUNS, SHOWN_BUDGETS = 12, 12  # names of a list, rows of a table


def format_results(results: Results) -> str:
    """Return the figures as paragraphs and tables."""
    parts = [
        describe_runs(results),
        format_law(results),
        format_isoflop(results.isoflop, results),
        format_predictions(results.predictions),
        format_held_out(results.held_out, "held out"),
        format_check(results.extrapolation),
    ]
    return "\n\n".join(part for part in parts if part)


def describe_runs(results: Results) -> str:
    """Return what was fitted, and what was left out."""
    runs = results.runs
    ranges = ", ".join(
        f"{short_number(values.min())} to {short_number(values.max())} {name}"
        for name, values in (("parameters", runs.parameters), ("tokens", runs.tokens))
    )
    lines = [
        f"{runs.count} runs: {ranges}, {runs.flops.min():.3g} to {runs.flops.max():.3g} FLOPs, "
        f"losses {runs.loss.min():.4g} to {runs.loss.max():.4g}"
    ]
    return "\n".join([*lines, *results.notes])


def format_law(results: Results) -> str:
    """Return the parametric law with its intervals, residuals and outliers."""
    fit, intervals = results.fit, results.fit.intervals()
    rows = [["", "value", "95% interval"]]
    for name, interval in intervals.items():
        rows.append([name, f"{getattr(fit.law, name):.4g}", format_interval(interval)])

    sizes = np.abs(np.expm1(fit.residuals))
    worst = int(sizes.argmax())
    lines = [
        "loss = E + A / parameters^alpha + B / tokens^beta",
        align_columns(rows),
        f"residuals: {np.median(sizes):.2%} in the middle, at most {sizes[worst]:.2%} "
        f"({results.runs.names[worst]}); objective {fit.objective:.6g}",
    ]

    if results.outliers:
        listed = [f"{name} ({np.expm1(residual):+.2%})" for name, residual in results.outliers]
        advice = "dropped" if results.dropped else "kept; --drop-outliers fits without them"
        lines.append(f"outliers ({advice}): {join_names(listed)}")

    exponents = optimal_exponents(fit)
    growth = [
        f"{name} as C^{entry['exponent']:.3f} ({format_interval(entry['interval'])})"
        for name, entry in exponents.items()
    ]
    lines.append(f"compute-optimal growth by the law: {', '.join(growth)}")
    return "\n".join(lines)


def format_isoflop(isoflop: IsoflopFit | None, results: Results) -> str:
    """Return the minima of the isoFLOP curves and their power laws."""
    if isoflop is None:
        return "isoFLOP curves: none, since few runs share a budget"

    rows = [["budget, FLOPs", "runs", "best parameters", "best tokens", "loss"]]
    for curve in isoflop.curves:
        best = [short_number(curve.parameters), short_number(curve.tokens), f"{curve.loss:.4f}"]
        if not curve.inside:
            # The edge is the best of the sizes that were tried, and no more.
            smaller = curve.parameters <= curve.runs.parameters.min() * 1.001
            best = ["at the edge: try " + ("smaller" if smaller else "larger"), "", ""]
        rows.append([f"{curve.flops:.3g}", str(curve.runs.count), *best])

    lines = ["minima of the isoFLOP parabolas", align_columns(shorten_rows(rows))]
    if isoflop.parameters is None or isoflop.tokens is None:
        return "\n".join([*lines, "power laws: they need the minima of two budgets"])
    for name, law in (("parameters", isoflop.parameters), ("tokens", isoflop.tokens)):
        interval = "no interval: four sizes a budget give one"
        if law.exponent_interval is not None:
            interval = format_interval(law.exponent_interval)
        lines.append(f"best {name} = {np.exp(law.intercept):.4g} C^{law.exponent:.3f} ({interval})")

    for point in results.predictions:
        if point.parameters_interval is not None:
            sizes = [law.predict(point.flops) for law in (isoflop.parameters, isoflop.tokens)]
            lines.append(
                f"at {point.flops:.3g} FLOPs by these power laws: {short_number(sizes[0])} "
                f"parameters, {short_number(sizes[1])} tokens"
            )
    return "\n".join(lines)


def shorten_rows(rows: list[list[str]]) -> list[list[str]]:
    """Return the header and the first and last rows of a long table."""
    left_out = len(rows) - 1 - SHOWN_BUDGETS
    if left_out <= 0:
        return rows
    half = SHOWN_BUDGETS // 2
    note = [f"... {left_out} more", *[""] * (len(rows[0]) - 1)]
    return [*rows[: half + 1], note, *rows[-half:]]


def format_predictions(predictions: Sequence[Prediction]) -> str:
    """Return the runs that were asked for: their loss, and the optimum of a budget."""
    if not predictions:
        return ""

    rows = [["FLOPs", "parameters", "tokens", "loss", "95% interval of a run"]]
    for point in predictions:
        cells = [short_number(point.parameters), short_number(point.tokens)]
        rows.append(
            [f"{point.flops:.3g}", *cells, f"{point.loss:.4f}", format_interval(point.interval)]
        )
    lines = ["predictions of the law", align_columns(rows)]
    lines += [
        f"optimum of {point.flops:.3g} FLOPs, 95% intervals: "
        f"{format_sizes(point.parameters_interval)} parameters, "
        f"{format_sizes(point.tokens_interval)} tokens"
        for point in predictions
        if point.parameters_interval is not None and point.tokens_interval is not None
    ]
    return "\n".join(lines)


def format_held_out(held_out: Sequence[HeldOut], title: str) -> str:
    """Return the runs that the fit has not seen, beside the nearest one that it has."""
    if not held_out:
        return ""

    rows = [[title, "loss", "predicted", "error", "nearest run", "its error"]]
    for run in held_out:
        loss, predicted = f"{run.loss:.4f}", f"{run.prediction.loss:.4f}"
        rows.append(
            [run.name, loss, predicted, f"{run.error:.2%}", run.nearest, f"{run.nearest_error:.2%}"]
        )
    return align_columns(rows)


def format_check(extrapolation: Sequence[HeldOut]) -> str:
    """Return how well the other runs predict those of the largest budget."""
    if not extrapolation:
        return ""
    errors = [run.error for run in extrapolation]
    nearest = [run.nearest_error for run in extrapolation]
    return (
        f"check: a fit without the largest budget predicts its {len(errors)} runs with a mean "
        f"error of {np.mean(errors):.2%} (at most {max(errors):.2%}); the loss of the nearest run "
        f"is off by {np.mean(nearest):.2%}"
    )


def format_interval(interval: Sequence[float]) -> str:
    """Return '0.31 to 0.42'."""
    low, high = interval
    return f"{low:.4g} to {high:.4g}"


def format_sizes(interval: Interval) -> str:
    """Return '1.2M to 3.4M'."""
    return " to ".join(map(short_number, interval))


def join_names(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - SHOWN_RUNS
    return ", ".join(names[:SHOWN_RUNS]) + (f" and {more} more" if more > 0 else "")
