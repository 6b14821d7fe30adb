"""IsoFLOP curves: parabolas, their minima, and power laws of them."""

import numpy as np
import pytest

from jaxlm.plan.isoflop import fit_isoflop
from jaxlm.plan.observations import Observations


def parabolas(exponent=0.47, sizes=5, noise=0.0, shift=1.0, seed=0):
    """A ladder whose curves are parabolas with their minima at 0.3 C^exponent times `shift`."""
    flops = np.repeat([1e17, 3e17, 1e18, 3e18], sizes)
    best = 0.3 * flops**exponent
    parameters = best * np.tile(np.geomspace(0.3, 3, sizes), 4)
    loss = 3 - 0.05 * np.log(flops / 1e17) + 0.08 * np.log(parameters / best / shift) ** 2
    loss = loss + noise * np.random.default_rng(seed).standard_normal(len(loss))
    names = tuple(map(str, range(len(loss))))
    return Observations(names, parameters, flops / 6 / parameters, flops, loss)


def test_the_minima_and_their_power_laws_are_those_of_the_parabolas():
    fit = fit_isoflop(parabolas())
    assert all(curve.inside for curve in fit.curves)
    assert [curve.flops for curve in fit.curves] == pytest.approx([1e17, 3e17, 1e18, 3e18])
    assert fit.parameters.exponent == pytest.approx(0.47, abs=1e-6)
    assert np.exp(fit.parameters.intercept) == pytest.approx(0.3, rel=1e-4)
    assert fit.tokens.exponent == pytest.approx(0.53, abs=1e-6)
    assert fit.parameters.predict(1e20) == pytest.approx(0.3 * 1e20**0.47, rel=1e-4)
    assert fit.curves[0].loss == pytest.approx(3, abs=1e-6)


def test_intervals_grow_with_the_noise_and_hold_the_exponent():
    widths = []
    for noise in (0.001, 0.004):
        law = fit_isoflop(parabolas(noise=noise, seed=1)).parameters
        assert law.exponent_interval is not None
        low, high = law.exponent_interval
        assert low < 0.47 < high
        assert law.predict_interval(1e20)[0] < 0.3 * 1e20**0.47 < law.predict_interval(1e20)[1]
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_three_sizes_leave_nothing_to_draw_intervals_from():
    law = fit_isoflop(parabolas(sizes=3)).parameters
    assert law.exponent_interval is None and law.predict_interval(1e20) is None
    assert law.exponent == pytest.approx(0.47, abs=1e-6)


def test_a_minimum_beyond_the_sizes_is_said_to_be_at_the_edge():
    fit = fit_isoflop(parabolas(shift=5.0))
    assert not any(curve.inside for curve in fit.curves)
    assert fit.parameters is None
    assert fit.curves[0].parameters == pytest.approx(max(fit.curves[0].runs.parameters))


def test_runs_without_common_budgets_have_no_curves():
    runs = parabolas()
    flops = np.geomspace(1e17, 1e20, runs.count)
    assert fit_isoflop(runs._replace(flops=flops)) is None
