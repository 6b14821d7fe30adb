"""Predict runs that were not trained by a fitted law, and check predictions of others.

Intervals take in both the bootstrap's laws and the scatter of single runs around the law.
"""

from typing import NamedTuple

import numpy as np

from jaxlm.config import UserError
from jaxlm.plan.observations import Observations
from jaxlm.plan.parametric_fit import (
    LEAST_RUNS,
    SEED,
    ParametricFit,
    check_runs,
    fit_parametric,
    percentile_interval,
)

Interval = tuple[float, float]  # 95%
GRID, GRID_SPAN = 401, 12.0  # sizes that the search for the optimum tries; log of last over first
SAME_BUDGET = 1.1  # largest over smallest FLOPs of what counts as one budget


class Prediction(NamedTuple):
    """The loss that the law predicts for a run."""

    parameters: float
    tokens: float
    flops: float
    loss: float
    interval: Interval  # of the loss of one run
    parameters_interval: Interval | None = None  # of the optimum, where it was sought
    tokens_interval: Interval | None = None


class HeldOut(NamedTuple):
    """A run that the fit has not seen, and its prediction."""

    name: str
    loss: float
    prediction: Prediction
    nearest: str  # the run of the fit that is nearest in log N and log D
    nearest_loss: float

    @property
    def error(self) -> float:
        """Return how far the prediction is off, as a share of the loss."""
        return abs(self.prediction.loss / self.loss - 1)

    @property
    def nearest_error(self) -> float:
        """Return how far the loss of the nearest run is off, as a share of the loss."""
        return abs(self.nearest_loss / self.loss - 1)


def predict_losses(draws: np.ndarray, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the losses [draws, ...] of models by each of the laws [draws, 5] (logs of E, A, B)."""
    shape = (-1,) + (1,) * np.ndim(parameters)
    e, a, b, alpha, beta = (column.reshape(shape) for column in draws.T)
    with np.errstate(over="ignore"):
        data = np.exp(b - beta * np.log(tokens))
        return np.exp(e) + np.exp(a - alpha * np.log(parameters)) + data


def predict_run(
    fit: ParametricFit, *, parameters: float, tokens: float, flops: float, seed: int = SEED
) -> Prediction:
    """Predict the loss of a run with `parameters` that reads `tokens`."""
    losses = predict_losses(fit.draws, np.array(parameters), np.array(tokens))

    # A fit of five parameters takes up some of the scatter of n runs.
    count = len(fit.residuals)
    scatter = np.random.default_rng(seed).choice(fit.residuals, (len(losses), 20))
    scatter *= np.sqrt(count / (count - 5))
    low, high = percentile_interval((losses[:, None] * np.exp(scatter)).ravel())

    loss = fit.law.loss(parameters, tokens)
    return Prediction(parameters, tokens, flops, loss, (float(low), float(high)))


def predict_optimum(
    fit: ParametricFit, runs: Observations, flops: float, seed: int = SEED
) -> Prediction:
    """Predict the compute-optimal run of a budget, and its loss.

    FLOPs per parameter and token are those of the `runs` (`Observations.flops_per_pair`). Raises
    UserError where the law has no optimum.
    """
    law = fit.law
    if law.alpha <= 0 or law.beta <= 0:
        name = "alpha (parameters)" if law.alpha <= 0 else "beta (tokens)"
        raise UserError(f"the fitted law has no optimum: its {name} is not above 0")
    point = np.array([[np.log(law.E), np.log(law.A), np.log(law.B), law.alpha, law.beta]])

    # The grid lies around the optimum for the FLOPs that the runs' middle size needs.
    middle = float(runs.flops_per_pair(np.array([np.exp(np.log(runs.parameters).mean())]))[0])
    ratio = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))
    centre = ratio * (flops / middle) ** (law.beta / (law.alpha + law.beta))
    sizes = np.log(centre) + np.linspace(-GRID_SPAN / 2, GRID_SPAN / 2, GRID)
    tokens = flops / (runs.flops_per_pair(np.exp(sizes)) * np.exp(sizes))

    best = np.exp(minimum_of_grid(sizes, predict_losses(point, np.exp(sizes), tokens)))[0]
    drawn = np.exp(minimum_of_grid(sizes, predict_losses(fit.draws, np.exp(sizes), tokens)))
    parameters = np.concatenate([[best], drawn])
    pairs = flops / (runs.flops_per_pair(parameters) * parameters)

    prediction = predict_run(
        fit, parameters=float(best), tokens=float(pairs[0]), flops=flops, seed=seed
    )
    intervals = [percentile_interval(values[1:]) for values in (parameters, pairs)]
    (n_low, n_high), (d_low, d_high) = intervals
    return prediction._replace(
        parameters_interval=(float(n_low), float(n_high)),
        tokens_interval=(float(d_low), float(d_high)),
    )


def minimum_of_grid(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return where each row of `values` [k, n] over `x` [n] is least.

    A parabola through the best three values refines it; at an edge of the grid it stays there.
    """
    best = np.clip(values.argmin(axis=1), 1, len(x) - 2)
    rows = np.arange(len(values))
    left, here, right = (values[rows, best + shift] for shift in (-1, 0, 1))

    curvature = left - 2 * here + right
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where(curvature > 0, (left - right) / (2 * curvature), 0.0)
    return x[best] + np.clip(np.nan_to_num(shift), -1, 1) * (x[1] - x[0])


def nearest_run(runs: Observations, parameters: float, tokens: float) -> int:
    """Return the place of the run that is nearest in log N and log D."""
    x, y = np.log(runs.parameters / parameters), np.log(runs.tokens / tokens)
    return int(np.argmin(x**2 + y**2))


def compare_held_out(
    fit: ParametricFit, runs: Observations, held_out: Observations
) -> list[HeldOut]:
    """Return the prediction of each of the `held_out` runs by the fit to `runs`."""
    results = []
    for place, name in enumerate(held_out.names):
        parameters, tokens, flops, loss = (float(array[place]) for array in held_out[1:])
        nearest = nearest_run(runs, parameters, tokens)
        prediction = predict_run(fit, parameters=parameters, tokens=tokens, flops=flops)
        results.append(
            HeldOut(name, loss, prediction, runs.names[nearest], float(runs.loss[nearest]))
        )
    return results


def check_extrapolation(runs: Observations) -> list[HeldOut]:
    """Return the runs of the largest budget, predicted by a fit to all the others.

    [] where the others are too few to be fitted, or do not differ enough.
    """
    largest = runs.flops >= runs.flops.max() / SAME_BUDGET
    others = runs.select(~largest)
    if others.count < LEAST_RUNS:
        return []
    try:
        check_runs(others)
    except UserError:
        return []
    return compare_held_out(fit_parametric(others, resamples=50), others, runs.select(largest))
