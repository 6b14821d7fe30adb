"""Fit the parametric scaling law L(N, D) = E + A / N^alpha + B / D^beta to trained runs.

This is approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3): the Huber loss, delta
1e-3, of the difference of log losses is least for the fit, where the law is the log-sum-exp of
(log A - alpha log N, log B - beta log D, log E). Besiroglu et al. 2024 (arXiv 2404.10102) show what
happens where the search ends early; `minimize_from_grid` therefore goes on to the last digits.
"""

from typing import NamedTuple

import numpy as np

from jaxlm.config import UserError
from jaxlm.plan.observations import Observations
from jaxlm.plan.scaling_laws import ParametricLaw

DELTA = 1e-3  # of log losses: beyond it the Huber loss grows linearly
LEAST_RUNS = 6  # the law has five parameters
START_EXPONENTS = (0.1, 0.2, 0.35, 0.5, 0.8, 1.2)  # of alpha and of beta: 36 starts
POLISHED = 8  # starts that L-BFGS continues, the best ones
COARSE_DELTAS = (0.03, 0.005)  # smoother problems that the search goes through first
LEAST_GAIN, STUCK = 1e-11, 1e3  # share of the objective, and damping, at which a search ends
RESAMPLES, SEED, CONFIDENCE = 500, 0, 0.95
OUTLIER_SCALES = 4.5  # robust standard deviations of the residuals


class ParametricFit(NamedTuple):
    """A law, how it fits the runs that it was fitted to, and draws of it by the bootstrap."""

    law: ParametricLaw
    objective: float  # sum of the Huber losses over the runs
    residuals: np.ndarray  # [n]: log of the loss less that of the law
    draws: np.ndarray  # [resamples, 5]: log E, log A, log B, alpha, beta

    @property
    def scale(self) -> float:
        """Return the robust standard deviation of the residuals (0: the law fits exactly)."""
        return robust_scale(self.residuals)

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return the 95% interval of each parameter of the law, by its name."""
        columns = np.exp(np.minimum(self.draws[:, :3], 700.0)), self.draws[:, 3:]
        low, high = percentile_interval(np.concatenate(columns, axis=1))
        names = ("E", "A", "B", "alpha", "beta")
        return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


# The fit


def fit_parametric(
    runs: Observations, *, resamples: int = RESAMPLES, seed: int = SEED
) -> ParametricFit:
    """Fit the law to at least 6 runs, and to `resamples` of them drawn with replacement.

    Whole runs are drawn (the bootstrap of cases), which assumes nothing of their noise. Raises
    UserError where the runs are too few or do not differ.
    """
    check_runs(runs)
    problem = Problem.of(runs)
    point, objective = minimize_from_grid(problem)

    draws = bootstrap(problem, point, resamples, seed)
    e, a, b, alpha, beta = map(float, problem.uncentre(point[None])[0])
    law = ParametricLaw(
        E=float(np.exp(e)),
        A=float(np.exp(a)),
        B=float(np.exp(b)),
        alpha=alpha,
        beta=beta,
        source=f"fitted to {runs.count} runs",
    )
    residuals = -problem.linearize(point[None])[0][0]
    return ParametricFit(law, objective, residuals, problem.uncentre(draws))


def check_runs(runs: Observations) -> None:
    """Raise UserError for runs that can't tell the five parameters of the law apart."""
    if runs.count < LEAST_RUNS:
        raise UserError(
            f"the law has five parameters and needs at least {LEAST_RUNS} runs, got {runs.count}"
        )
    for name, values in (("parameters", runs.parameters), ("tokens", runs.tokens)):
        different = len(np.unique(np.round(np.log(values), 3)))
        if different < 3:
            raise UserError(
                f"the runs have {different} different numbers of {name}: the law needs at least 3"
            )
    if len(np.unique(runs.loss)) == 1:
        raise UserError(f"all runs have the loss {runs.loss[0]:g}: there is nothing to fit")


class Problem(NamedTuple):
    """The runs as the search sees them: logs, with the mean of log N and of log D taken off.

    Centred, the parameters of the law depend on each other much less.
    """

    log_parameters: np.ndarray  # [n]
    log_tokens: np.ndarray  # [n]
    log_loss: np.ndarray  # [n]
    mean_parameters: float
    mean_tokens: float

    @classmethod
    def of(cls, runs: Observations) -> "Problem":
        """Return the problem of some runs."""
        x, y = np.log(runs.parameters), np.log(runs.tokens)
        return cls(x - x.mean(), y - y.mean(), np.log(runs.loss), float(x.mean()), float(y.mean()))

    def uncentre(self, points: np.ndarray) -> np.ndarray:
        """Return [k, 5] points as log E, log A, log B, alpha, beta of the law itself."""
        e, a, b, alpha, beta = points.T
        a = a + alpha * self.mean_parameters
        return np.stack([e, a, b + beta * self.mean_tokens, alpha, beta], axis=1)

    def linearize(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the residuals [k, n] of [k, 5] points and their derivatives [k, 5, n].

        A residual is the log of the law's loss less that of the run. The derivatives by the logs of
        E, A / N^alpha and B / D^beta are the shares of these terms in the loss.
        """
        e, a, b, alpha, beta = (column[:, None] for column in points.T)
        size_term = a - alpha * self.log_parameters
        data_term = b - beta * self.log_tokens
        largest = np.maximum(np.maximum(size_term, data_term), e)

        weights = [np.exp(term - largest) for term in (e, size_term, data_term)]
        total = weights[0] + weights[1] + weights[2]
        e_share, size_share, data_share = (weight / total for weight in weights)
        slopes = -size_share * self.log_parameters, -data_share * self.log_tokens
        jacobian = np.stack([e_share, size_share, data_share, *slopes], axis=1)
        return largest + np.log(total) - self.log_loss, jacobian


def huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    """Return r^2 / 2 up to |r| = delta, and from there on its tangent."""
    size = np.abs(residuals)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))


def minimize_from_grid(problem: Problem) -> tuple[np.ndarray, float]:
    """Return the point [5] of the lowest objective, and the objective.

    From each start of a grid the Levenberg-Marquardt method goes through two smoother problems
    (a larger delta) to the problem itself. L-BFGS continues from the best minima that it found.
    """
    from scipy.optimize import minimize

    points = grid_of_starts(problem)
    weights = np.ones((len(points), len(problem.log_loss)))
    for delta in (*COARSE_DELTAS, DELTA):
        points, values = descend(problem, points, weights, delta, iterations=25)
    best = np.argsort(values)[:POLISHED]
    points, values = descend(problem, points[best], weights[best], DELTA, iterations=200)

    # Most starts end in the same place, which needs no second polish: scipy's L-BFGS is quick, but
    # the threads of its BLAS are not.
    scale = max(float(values.min()), 1e-300)  # brings the objective near 1, as L-BFGS wants it
    _, different = np.unique(np.round(values / scale, 6), return_index=True)
    for number in different:
        point = points[number]
        found = minimize(
            objective_and_gradient,
            point,
            args=(problem, scale),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 2000, "maxfun": 5000, "ftol": 1e-15, "gtol": 1e-12},
        )
        if found.fun * scale < values[number]:
            points[number], values[number] = found.x, found.fun * scale
    return points[values.argmin()], float(values.min())


def grid_of_starts(problem: Problem) -> np.ndarray:
    """Return [36, 5] points: alpha and beta from a grid, E, A and B by least squares.

    For given exponents the law is linear in E, A and B. A term that would be negative starts as 2%
    of the loss.
    """
    alpha, beta = (grid.ravel() for grid in np.meshgrid(START_EXPONENTS, START_EXPONENTS))
    columns = np.stack(
        [
            np.ones((len(alpha), len(problem.log_loss))),
            np.exp(-alpha[:, None] * problem.log_parameters),
            np.exp(-beta[:, None] * problem.log_tokens),
        ],
        axis=2,
    )
    columns = columns / np.exp(problem.log_loss)[:, None]  # relative residuals, as in logs

    normal = np.einsum("kni,knj->kij", columns, columns)
    ridge = 1e-9 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(3)
    terms = np.linalg.solve(normal + ridge, columns.sum(axis=1)[:, :, None])[:, :, 0]
    terms = np.maximum(terms, 0.02 * np.exp(problem.log_loss.mean()))
    return np.concatenate([np.log(terms), alpha[:, None], beta[:, None]], axis=1)


def objective_and_gradient(
    point: np.ndarray, problem: Problem, scale: float
) -> tuple[float, np.ndarray]:
    """Return the sum of the Huber losses at a point [5] and its gradient, both over `scale`."""
    residuals, jacobian = problem.linearize(point[None])
    gradient = jacobian[0] @ np.clip(residuals[0], -DELTA, DELTA)
    return float(huber(residuals, DELTA).sum()) / scale, gradient / scale


def descend(
    problem: Problem, points: np.ndarray, weights: np.ndarray, delta: float, iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return [k, 5] points after Levenberg-Marquardt steps, and their objectives [k].

    `weights` [k, n] count the runs. Each step solves least squares in which a residual r beyond
    delta weighs delta / |r|: a bound of the Huber loss from above that touches it. A step that does
    not improve its point is not taken; all points go on together, and those that are done drop out.
    """
    found, values = points.copy(), np.zeros(len(points))
    going = np.arange(len(points))  # places of the points that still move
    damping = np.full(len(points), 1e-2)
    residuals, jacobian = problem.linearize(points)
    objective = (weights * huber(residuals, delta)).sum(axis=1)

    for iteration in range(iterations):
        moved = points + damped_step(jacobian, residuals, weights, damping, delta)
        moved_residuals, moved_jacobian = problem.linearize(moved)
        after = (weights * huber(moved_residuals, delta)).sum(axis=1)

        better = after < objective
        gain = np.where(better, objective - after, 0.0) / np.maximum(objective, 1e-300)
        damping = np.clip(damping * np.where(better, 0.3, 5.0), 1e-12, 1e8)
        points = np.where(better[:, None], moved, points)
        objective = np.where(better, after, objective)
        residuals = np.where(better[:, None], moved_residuals, residuals)
        jacobian = np.where(better[:, None, None], moved_jacobian, jacobian)

        done = np.where(better, gain < LEAST_GAIN, damping > STUCK)
        if (iteration > 5 and done.any()) or iteration == iterations - 1:
            found[going], values[going] = points, objective
            left = ~done
            going, points, weights, damping = (
                array[left] for array in (going, points, weights, damping)
            )
            residuals, jacobian, objective = (
                array[left] for array in (residuals, jacobian, objective)
            )
        if not len(going):
            break

    return found, values


def damped_step(
    jacobian: np.ndarray,
    residuals: np.ndarray,
    weights: np.ndarray,
    damping: np.ndarray,
    delta: float,
) -> np.ndarray:
    """Return the Levenberg-Marquardt steps [k, 5], no component larger than 3."""
    bound = weights * np.minimum(1.0, delta / np.maximum(np.abs(residuals), 1e-300))
    weighted = jacobian * bound[:, None, :]
    normal = weighted @ jacobian.transpose(0, 2, 1)
    gradient = weighted @ residuals[:, :, None]

    diagonal = np.einsum("kii->ki", normal)
    floor = 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-30
    damped = normal + (damping[:, None] * diagonal + floor)[:, :, None] * np.eye(5)
    step = -np.linalg.solve(damped, gradient)[:, :, 0]
    return step * np.minimum(1.0, 3.0 / np.maximum(np.abs(step).max(axis=1), 1e-30))[:, None]


# Intervals, outliers, predictions


def bootstrap(problem: Problem, point: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return the points [resamples, 5] fitted to runs drawn with replacement, from `point` on."""
    rng = np.random.default_rng(seed)
    count = len(problem.log_loss)
    weights = rng.multinomial(count, np.full(count, 1 / count), resamples).astype(np.float64)

    points = np.repeat(point[None], resamples, axis=0)
    for delta, iterations in ((0.01, 30), (DELTA, 60)):
        points, _ = descend(problem, points, weights, delta, iterations)
    return points


def percentile_interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 2.5% and 97.5% percentiles over the first axis."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
    return low, high


def robust_scale(residuals: np.ndarray) -> float:
    """Return 1.4826 times the median size of the residuals, without the five smallest.

    A fit by (nearly) absolute residuals passes through as many runs as it has parameters; Maronna
    et al. (Robust Statistics, 2006, section 4.4) leave these out.
    """
    sizes = np.sort(np.abs(residuals))[5:]
    return float(1.4826 * np.median(sizes)) if len(sizes) else 0.0


def find_outliers(fit: ParametricFit) -> np.ndarray:
    """Return bool [n]: the runs whose residual is beyond 4.5 robust standard deviations.

    Differences below 1e-6 of the loss are rounding, however well the other runs fit.
    """
    return np.abs(fit.residuals) > np.maximum(OUTLIER_SCALES * fit.scale, 1e-6)
