"""A fit from the files to the figures, and the figures as plain data for --json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import UserError
from jaxlm.config.fields import suggestion
from jaxlm.plan.isoflop import IsoflopFit, PowerLawFit, fit_isoflop
from jaxlm.plan.observations import Observations, read_observations
from jaxlm.plan.parametric_fit import (
    RESAMPLES,
    SEED,
    ParametricFit,
    check_runs,
    find_outliers,
    fit_parametric,
    percentile_interval,
)
from jaxlm.plan.prediction import (
    HeldOut,
    Prediction,
    check_extrapolation,
    compare_held_out,
    predict_optimum,
    predict_run,
)


class Results(NamedTuple):
    """All that is known of some runs."""

    runs: Observations  # of the fit
    fit: ParametricFit
    isoflop: IsoflopFit | None
    outliers: tuple[tuple[str, float], ...]  # name and residual in log loss, dropped or not
    dropped: tuple[str, ...]
    predictions: tuple[Prediction, ...]
    held_out: tuple[HeldOut, ...]
    extrapolation: tuple[HeldOut, ...]  # the largest budget, predicted by the others
    notes: tuple[str, ...]  # on runs that are not finished


def fit_runs(
    paths: Sequence[str | Path],
    *,
    predict_flops: Sequence[float] = (),
    predict_pairs: Sequence[tuple[float, float]] = (),
    hold_out: Sequence[str] = (),
    drop_outliers: bool = False,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Results:
    """Fit the laws to the runs of CSV files and directories, and predict others.

    `predict_flops` are budgets, whose best run is sought; `predict_pairs` are (parameters, tokens).
    Raises UserError naming file and line of a mistake.
    """
    observed, notes = read_observations(paths)
    held = hold_out_mask(observed, hold_out)
    runs, held_runs = observed.select(~held), observed.select(held)
    try:
        check_runs(runs)
    except UserError as error:
        raise UserError(f"{', '.join(map(str, paths))}: {error}") from error

    fit = fit_parametric(runs, resamples=resamples, seed=seed)
    mask = find_outliers(fit)
    outliers = tuple(
        (name, float(residual))
        for name, residual, is_outlier in zip(runs.names, fit.residuals, mask, strict=True)
        if is_outlier
    )
    dropped: tuple[str, ...] = ()
    if drop_outliers and outliers:
        dropped = tuple(name for name, _ in outliers)
        runs = runs.select(~mask)
        fit = fit_parametric(runs, resamples=resamples, seed=seed)

    predictions = [predict_optimum(fit, runs, flops, seed) for flops in predict_flops]
    for parameters, tokens in predict_pairs:
        ratio = float(runs.flops_per_pair(np.array([parameters]))[0])
        flops = ratio * parameters * tokens
        predictions.append(
            predict_run(fit, parameters=parameters, tokens=tokens, flops=flops, seed=seed)
        )

    return Results(
        runs=runs,
        fit=fit,
        isoflop=fit_isoflop(runs, resamples=resamples, seed=seed),
        outliers=outliers,
        dropped=dropped,
        predictions=tuple(predictions),
        held_out=tuple(compare_held_out(fit, runs, held_runs)),
        extrapolation=tuple(check_extrapolation(runs)),
        notes=tuple(notes),
    )


def hold_out_mask(runs: Observations, names: Sequence[str]) -> np.ndarray:
    """Return bool [n]: the runs of these names. Raises UserError for a name that is not there."""
    for name in names:
        if name not in runs.names:
            known = suggestion(name, runs.names)
            raise UserError(f"--hold-out: no run is called {name!r}{known}")
    return np.array([name in names for name in runs.names])


def optimal_exponents(fit: ParametricFit) -> dict[str, dict[str, Any]]:
    """Return the powers of C with which the law's best parameters and tokens grow.

    N_opt ~ C^(beta / (alpha + beta)), D_opt ~ C^(alpha / (alpha + beta)): equation 4 of Hoffmann et
    al. 2022, for FLOPs in proportion to N D.
    """
    total = fit.law.alpha + fit.law.beta
    sums = fit.draws[:, 3] + fit.draws[:, 4]
    exponents = {}
    for name, value, column in (("parameters", fit.law.beta, 4), ("tokens", fit.law.alpha, 3)):
        low, high = percentile_interval(fit.draws[:, column] / sums)
        exponents[name] = {"exponent": value / total, "interval": [float(low), float(high)]}
    return exponents


# JSON


def build_fit_document(results: Results) -> dict[str, Any]:
    """Return the figures as plain data, with all their digits."""
    law, runs = results.fit.law, results.runs
    predicted = runs.loss / np.exp(results.fit.residuals)
    columns = zip(runs.names, *runs[1:], predicted, strict=True)
    keys = ("name", "parameters", "tokens", "flops", "loss", "predicted")
    return {
        "parametric": {
            "E": law.E,
            "A": law.A,
            "B": law.B,
            "alpha": law.alpha,
            "beta": law.beta,
            "objective": results.fit.objective,
        },
        "intervals": {name: list(pair) for name, pair in results.fit.intervals().items()},
        "optimal": optimal_exponents(results.fit),
        "isoflop": None if results.isoflop is None else describe_isoflop(results.isoflop),
        "runs": [
            {
                key: value if key == "name" else float(value)
                for key, value in zip(keys, row, strict=True)
            }
            for row in columns
        ],
        "outliers": [{"name": name, "residual": value} for name, value in results.outliers],
        "dropped": list(results.dropped),
        "left_out": list(results.notes),
        "predictions": [describe_prediction(point) for point in results.predictions],
        "held_out": [describe_held_out(run) for run in results.held_out],
        "extrapolation": [describe_held_out(run) for run in results.extrapolation],
    }


def describe_isoflop(isoflop: IsoflopFit) -> dict[str, Any]:
    """Return the curves and their power laws as plain data."""
    keys = ("flops", "parameters", "tokens", "loss", "inside")
    return {
        "curves": [
            {key: getattr(curve, key) for key in keys} | {"runs": list(curve.runs.names)}
            for curve in isoflop.curves
        ],
        "parameters": describe_power_law(isoflop.parameters),
        "tokens": describe_power_law(isoflop.tokens),
    }


def describe_power_law(law: PowerLawFit | None) -> dict[str, Any] | None:
    """Return a power law as plain data: value = coefficient C^exponent."""
    if law is None:
        return None
    interval = law.exponent_interval
    return {
        "exponent": law.exponent,
        "coefficient": float(np.exp(law.intercept)),
        "interval": None if interval is None else list(interval),
    }


def describe_prediction(point: Prediction) -> dict[str, Any]:
    """Return a prediction as plain data."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in point._asdict().items()
    }


def describe_held_out(run: HeldOut) -> dict[str, Any]:
    """Return a held-out run as plain data."""
    return {
        "name": run.name,
        "loss": run.loss,
        "prediction": describe_prediction(run.prediction),
        "error": run.error,
        "nearest": run.nearest,
        "nearest_error": run.nearest_error,
    }
