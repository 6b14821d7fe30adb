"""The parametric fit: planted laws, scipy from many starts, intervals and outliers."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

from jaxlm.config import UserError
from jaxlm.plan import parametric_fit, prediction
from jaxlm.plan.observations import Observations
from jaxlm.plan.parametric_fit import fit_parametric

# Hoffmann et al. 2022 (arXiv 2203.15556), as the paper prints it.
LAW = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}


def planted_loss(parameters, tokens):
    data = LAW["B"] / tokens ** LAW["beta"]
    return LAW["E"] + LAW["A"] / parameters ** LAW["alpha"] + data


def planted_sweep(seed=None, budgets=5, sizes=10, noise=0.02):
    """An isoFLOP ladder whose losses follow the law, but for noise of so large a share."""
    flops = np.repeat(np.geomspace(6e18, 3e21, budgets), sizes)
    spread = np.tile(np.geomspace(0.2, 5, sizes), budgets)
    parameters = np.sqrt(flops / 120) * spread
    tokens = flops / 6 / parameters
    loss = planted_loss(parameters, tokens)
    if seed is not None:
        loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss)))
    names = tuple(f"run {number}" for number in range(len(loss)))
    return Observations(names, parameters, tokens, flops, loss)


def test_a_law_without_noise_is_found_to_the_printed_digits():
    fit = fit_parametric(planted_sweep(budgets=3, sizes=5), resamples=100)
    for name, value in LAW.items():
        assert getattr(fit.law, name) == pytest.approx(value, rel=1e-4)
    assert fit.objective < 1e-14


def scipy_objective(point, log_n, log_d, log_loss):
    """The sum of the Huber losses, written as the paper has it."""
    a, b, e, alpha, beta = point
    predicted = np.logaddexp(np.logaddexp(a - alpha * log_n, b - beta * log_d), e)
    residuals = np.abs(predicted - log_loss)
    small = residuals <= 1e-3
    return np.where(small, residuals**2 / 2, 1e-3 * (residuals - 5e-4)).sum() * 1e3


def test_the_objective_is_as_low_as_scipys():
    """A part of the paper's grid, and none of the gradients that the fit uses."""
    runs = planted_sweep(0, budgets=3, sizes=5)
    logs = np.log(runs.parameters), np.log(runs.tokens), np.log(runs.loss)
    grid = itertools.product((5, 15), (5, 15), (0.0,), (0.5, 1.0), (0.5,))
    found = [minimize(scipy_objective, start, logs, method="L-BFGS-B").fun for start in grid]

    fit = fit_parametric(runs, resamples=100)
    assert fit.objective * 1e3 <= min(found) * (1 + 1e-6)
    law = fit.law
    point = [np.log(law.A), np.log(law.B), np.log(law.E), law.alpha, law.beta]
    assert scipy_objective(point, *logs) == pytest.approx(fit.objective * 1e3, rel=1e-9)


def coverage(seeds, **sizes):
    """How many of the sweeps have the planted alpha, and beta, inside of their intervals."""
    hits = {"alpha": 0, "beta": 0}
    for seed in seeds:
        intervals = fit_parametric(planted_sweep(seed, **sizes)).intervals()
        for name in hits:
            low, high = intervals[name]
            hits[name] += low <= LAW[name] <= high
    return hits


def test_the_intervals_hold_the_planted_exponents():
    hits = coverage(range(8), budgets=3, sizes=6)
    assert min(hits.values()) >= 7
    # They are no wider than the noise makes them.
    low, high = fit_parametric(planted_sweep(0)).intervals()["alpha"]
    assert 0.1 < high - low < 0.6


@pytest.mark.slow
def test_the_intervals_hold_the_planted_exponents_in_95_of_100_sweeps():
    hits = coverage(range(100))
    assert all(85 <= count <= 100 for count in hits.values()), hits


def test_the_same_seed_gives_the_same_intervals():
    runs = planted_sweep(3)
    first, second, other = (
        fit_parametric(runs, resamples=100, seed=seed).intervals() for seed in (0, 0, 1)
    )
    assert first == second != other


def test_an_outlier_is_named_and_hardly_moves_the_law():
    runs = planted_sweep(0, noise=0.002)
    loss = runs.loss.copy()
    loss[17] *= 1.2
    clean, spoiled = (fit_parametric(r, resamples=100) for r in (runs, runs._replace(loss=loss)))
    outliers = parametric_fit.find_outliers(spoiled)
    assert np.flatnonzero(outliers).tolist() == [17]
    assert not parametric_fit.find_outliers(clean).any()
    assert spoiled.law.alpha == pytest.approx(clean.law.alpha, abs=0.02)


def test_too_few_runs_and_equal_ones_are_refused():
    runs = planted_sweep(budgets=3, sizes=5)
    with pytest.raises(UserError, match="at least 6 runs, got 5"):
        fit_parametric(runs.select(np.arange(15) < 5))
    with pytest.raises(UserError, match="1 different numbers of parameters"):
        fit_parametric(runs._replace(parameters=np.full(15, 1e8)))


# Predictions


def test_a_larger_run_is_predicted_within_its_interval():
    runs = planted_sweep(1, noise=0.005)
    fit = fit_parametric(runs)
    point = prediction.predict_run(fit, parameters=7e10, tokens=1.4e12, flops=5.88e23)
    true = planted_loss(7e10, 1.4e12)
    assert point.loss == pytest.approx(true, rel=0.03)
    assert point.interval[0] < true < point.interval[1]


def test_the_optimum_of_a_budget_is_that_of_the_closed_form():
    """Equation 4 of Hoffmann et al. 2022, for C = 6 N D."""
    runs = planted_sweep(budgets=3, sizes=5)
    fit = fit_parametric(runs, resamples=100)
    point = prediction.predict_optimum(fit, runs, 5.76e23)
    closed = fit.law.optimum(5.76e23)
    assert point.parameters == pytest.approx(closed.parameters, rel=1e-3)
    assert point.tokens == pytest.approx(closed.tokens, rel=1e-3)
    assert point.loss == pytest.approx(closed.loss, rel=1e-6)


def test_the_optimum_counts_the_flops_of_the_runs():
    """Runs that need twice the FLOPs per parameter and token get half the budget's worth."""
    runs = planted_sweep(budgets=3, sizes=5)
    fit = fit_parametric(runs, resamples=100)
    doubled = runs._replace(flops=2 * runs.flops)
    point = prediction.predict_optimum(fit, doubled, 1e23)
    assert point.parameters == pytest.approx(fit.law.optimum(5e22).parameters, rel=1e-3)
    assert point.parameters * point.tokens * 12 == pytest.approx(1e23)


def test_the_largest_budget_is_predicted_from_the_others():
    checked = prediction.check_extrapolation(planted_sweep(0, noise=0.002))
    assert len(checked) == 10
    assert np.mean([run.error for run in checked]) < 0.01
    assert np.mean([run.nearest_error for run in checked]) > 0.02
    assert prediction.check_extrapolation(planted_sweep(budgets=2, sizes=5)) == []
