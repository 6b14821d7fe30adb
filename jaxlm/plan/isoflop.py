"""Compute-optimal sizes from isoFLOP curves, without a law of the loss.

This is approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2): for each budget a
parabola of the loss over log N, whose minimum is the best size, and power laws of these minima over
the budgets, N_opt ~ C^a and D_opt ~ C^b.
"""

from typing import NamedTuple

import numpy as np

from jaxlm.plan.observations import Observations
from jaxlm.plan.parametric_fit import RESAMPLES, SEED, percentile_interval

Interval = tuple[float, float]  # 95%
SAME_BUDGET = 1.1  # largest over smallest FLOPs of the runs of one curve
LEAST_SIZES = 3  # different sizes of a curve: a parabola has three parameters
LEAST_SHARE = 0.5  # of the runs, that lie on curves: else the budgets are no ladder
VALID_DRAWS = 0.5  # share of the resamples that need a minimum for an interval to be given


class Curve(NamedTuple):
    """The runs of one budget, and the parabola of their losses over log N.

    loss = least + curvature (log N - log parameters)^2; where the parabola has no minimum within
    the sizes of the runs, `inside` is false and the minimum says nothing.
    """

    flops: float  # geometric mean
    runs: Observations
    coefficients: tuple[float, float, float]  # of (log N - log_center)^2, ^1 and ^0
    log_center: float
    inside: bool
    parameters: float  # at the minimum
    tokens: float
    loss: float


class PowerLawFit(NamedTuple):
    """A power of the budget: value = exp(intercept) C^exponent."""

    exponent: float
    intercept: float  # natural log
    exponent_interval: Interval | None  # None: the runs leave no residuals to draw from
    draws: np.ndarray  # [k, 2]: exponents and intercepts

    def predict(self, flops: float) -> float:
        """Return the value at a budget."""
        return float(np.exp(self.intercept + self.exponent * np.log(flops)))

    def predict_interval(self, flops: float) -> Interval | None:
        """Return the 95% interval of the value at a budget."""
        if self.exponent_interval is None:
            return None
        values = np.exp(self.draws[:, 1] + self.draws[:, 0] * np.log(flops))
        low, high = percentile_interval(values)
        return float(low), float(high)


class IsoflopFit(NamedTuple):
    """The curves by budget, and the power laws of their minima (None: fewer than two minima)."""

    curves: tuple[Curve, ...]
    parameters: PowerLawFit | None
    tokens: PowerLawFit | None


def fit_isoflop(
    runs: Observations, *, resamples: int = RESAMPLES, seed: int = SEED
) -> IsoflopFit | None:
    """Fit a parabola to each budget and power laws to their minima; None for runs without budgets.

    The intervals draw the residuals of all parabolas anew.
    """
    groups = group_budgets(runs)
    if sum(group.count for group in groups) < LEAST_SHARE * runs.count:
        return None
    curves = tuple(fit_curve(group) for group in groups)
    inside = [curve for curve in curves if curve.inside]
    if len(inside) < 2:
        return IsoflopFit(curves, None, None)

    flops = np.log([curve.flops for curve in inside])
    optima = np.log([[curve.parameters, curve.tokens] for curve in inside])
    points = fit_lines(flops, optima.T)
    draws = draw_power_laws(curves, resamples, seed)

    fits = []
    for column in (0, 1):
        exponent, intercept = map(float, points[column])
        valid = draws[:, column][np.isfinite(draws[:, column, 0])]
        interval = None
        if len(valid) > VALID_DRAWS * resamples:
            low, high = percentile_interval(valid[:, 0])
            interval = float(low), float(high)
        fits.append(PowerLawFit(exponent, intercept, interval, valid))
    return IsoflopFit(curves, *fits)


def group_budgets(runs: Observations) -> list[Observations]:
    """Return the runs of each budget that has at least three sizes, the smallest budget first."""
    order = np.argsort(runs.flops)
    groups: list[list[int]] = []
    for place in order:
        if groups and runs.flops[place] <= SAME_BUDGET * runs.flops[groups[-1][0]]:
            groups[-1].append(place)
        else:
            groups.append([place])

    masks = [np.isin(np.arange(runs.count), group) for group in groups]
    budgets = [runs.select(mask) for mask in masks]
    return [group for group in budgets if len(np.unique(group.parameters)) >= LEAST_SIZES]


def fit_curve(runs: Observations) -> Curve:
    """Fit the parabola of the losses of one budget over log N."""
    x = np.log(runs.parameters)
    center = float(x.mean())
    coefficients = np.polyfit(x - center, runs.loss, 2)
    minimum, loss, inside = find_minimum(coefficients, x - center)

    parameters = float(np.exp(minimum + center))
    flops = float(np.exp(np.log(runs.flops).mean()))
    tokens = flops / (parameters * float(runs.flops_per_pair(np.array([parameters]))[0]))
    a, b, c = map(float, coefficients)
    return Curve(flops, runs, (a, b, c), center, inside, parameters, tokens, loss)


def find_minimum(coefficients: np.ndarray, x: np.ndarray) -> tuple[float, float, bool]:
    """Return where a parabola is least within the range of `x`, its value, and if that is inside.

    At an edge of the range it is not.
    """
    a, b, _ = coefficients
    vertex = -b / (2 * a) if a > 0 else np.inf
    inside = bool(x.min() < vertex < x.max())
    if not inside:
        edges = np.array([x.min(), x.max()])
        vertex = edges[np.polyval(coefficients, edges).argmin()]
    return float(vertex), float(np.polyval(coefficients, vertex)), inside


def draw_power_laws(curves: tuple[Curve, ...], resamples: int, seed: int) -> np.ndarray:
    """Return [resamples, 2, 2]: of N and of D, exponent and intercept; nan where there is none.

    Each resample adds to the parabolas residuals drawn from all curves. They are scaled up by the
    degrees of freedom that the parabolas take.
    """
    designs = [np.vander(np.log(c.runs.parameters) - c.log_center, 3) for c in curves]
    fitted = [x @ np.array(c.coefficients) for x, c in zip(designs, curves, strict=True)]
    residuals = np.concatenate([c.runs.loss - f for c, f in zip(curves, fitted, strict=True)])
    freedom = len(residuals) - 3 * len(curves)
    if freedom < 1:
        return np.full((resamples, 2, 2), np.nan)
    residuals = residuals * np.sqrt(len(residuals) / freedom)

    rng = np.random.default_rng(seed)
    parameters = np.full((resamples, len(curves)), np.nan)
    tokens = parameters.copy()
    for place, (curve, x, values) in enumerate(zip(curves, designs, fitted, strict=True)):
        losses = values[:, None] + rng.choice(residuals, (len(values), resamples))
        a, b, _ = np.linalg.lstsq(x, losses, rcond=None)[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            vertex = np.where(a > 0, -b / (2 * a), np.inf)
        inside = (vertex > x[:, 1].min()) & (vertex < x[:, 1].max())

        sizes = np.exp(vertex[inside] + curve.log_center)
        parameters[inside, place] = np.log(sizes)
        tokens[inside, place] = np.log(curve.flops / (sizes * curve.runs.flops_per_pair(sizes)))

    flops = np.log([curve.flops for curve in curves])
    return np.stack([fit_lines(flops, values) for values in (parameters, tokens)], axis=1)


def fit_lines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return [k, 2] slopes and intercepts of the lines through the rows of `y` [k, n] over `x` [n].

    Values that are nan are left out; a row needs two that are not.
    """
    known = np.isfinite(y)
    count = known.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        x_mean = np.where(known, x, 0.0).sum(axis=1) / count
        y_mean = np.where(known, y, 0.0).sum(axis=1) / count
        offsets = np.where(known, x - x_mean[:, None], 0.0)
        heights = np.where(known, y - y_mean[:, None], 0.0)
        slope = (offsets * heights).sum(axis=1) / (offsets**2).sum(axis=1)
    slope[count < 2] = np.nan
    return np.stack([slope, y_mean - slope * x_mean], axis=1)
