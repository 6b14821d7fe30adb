"""The picture of a fit as an SVG: loss over parameters for each budget, and loss over compute.

The ground is white, so that it reads in dark mode too.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np

from jaxlm.card.loss_plot import linear_ticks, log_ticks, short_number, svg_text
from jaxlm.config import UserError
from jaxlm.plan.isoflop import Curve, IsoflopFit
from jaxlm.plan.observations import Observations
from jaxlm.plan.parametric_fit import ParametricFit
from jaxlm.plan.prediction import HeldOut, Prediction, predict_losses, predict_optimum

WIDTH, HEIGHT = 1080, 460
TOP, BOTTOM, LEFT, GAP, RIGHT = 72, 56, 64, 84, 28
GRID, AXIS, INK, PREDICTED = "#e3e6ea", "#8c959f", "#24292f", "#c2410c"
# From the smallest budget to the largest: dark blue to yellow-green, which print and colour-blind
# readers tell apart (stops of viridis).
RAMP = ("#440154", "#3b528b", "#21918c", "#5ec962", "#b5c918")
CURVE_POINTS = 60
DRAWN_BUDGETS, MOST_BUDGETS = 4, 7  # curves of the law without common budgets, and with many


class Panel(NamedTuple):
    """A plot within the picture: its place in pixels and its ranges, logarithmic in x."""

    left: float
    right: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    @property
    def clip(self) -> str:
        """Return the id of the rectangle that curves are cut off at."""
        return f"inside-{self.left:.0f}"

    def x(self, value: float) -> float:
        low, high = map(math.log, self.x_range)
        return self.left + (math.log(value) - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def frame(self, title: str, unit: str, form: Callable[[float], str]) -> list[str]:
        """Return the title, the axes and their rules; `form` writes the numbers below."""
        bottom = HEIGHT - BOTTOM
        parts = [svg_text(self.left, 28, title, "start", 15)]
        for value in linear_ticks(*self.y_range):
            y = self.y(value)
            parts.append(
                f'<line x1="{self.left}" y1="{y:.1f}" x2="{self.right}" y2="{y:.1f}" '
                f'stroke="{GRID}"/>{svg_text(self.left - 8, y + 4, f"{value:.4g}", "end")}'
            )
        for value in log_ticks(*self.x_range):
            x = self.x(value)
            parts.append(
                f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{GRID}"/>'
                f"{svg_text(x, bottom + 18, form(value))}"
            )
        middle = (self.left + self.right) / 2
        path = f"M{self.left} {TOP}V{bottom}H{self.right}"
        inside = f'x="{self.left}" y="{TOP}" width="{self.right - self.left}"'
        return [
            f'<clipPath id="{self.clip}"><rect {inside} height="{bottom - TOP}"/></clipPath>',
            *parts,
            svg_text(middle, HEIGHT - 12, unit),
            f'<path d="{path}" fill="none" stroke="{AXIS}"/>',
        ]

    def line(
        self, xs: np.ndarray, ys: np.ndarray, colour: str, dash: str = "", width: float = 1.8
    ) -> str:
        """Return a curve, cut off at the edges of the panel."""
        points = self.points(xs, ys)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        return (
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"'
            f'{dashes} stroke-linejoin="round" clip-path="url(#{self.clip})"/>'
        )

    def points(self, xs: np.ndarray, ys: np.ndarray) -> str:
        """Return pixels as SVG writes them; far outside they stay numbers that viewers can draw."""
        places = (
            (self.x(x), min(max(self.y(y), -HEIGHT), 2 * HEIGHT))
            for x, y in zip(xs, ys, strict=True)
        )
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)

    def dot(self, x: float, y: float, colour: str, name: str, hollow: bool = False) -> str:
        """Return a circle that says its name under the pointer."""
        fill = "#ffffff" if hollow else colour
        return (
            f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="4" fill="{fill}" '
            f'stroke="{colour}" stroke-width="1.5"><title>{escape(name)}</title></circle>'
        )


def draw_fit(
    runs: Observations,
    fit: ParametricFit,
    isoflop: IsoflopFit | None,
    predictions: Sequence[Prediction] = (),
    held_out: Sequence[HeldOut] = (),
) -> str:
    """Return the SVG of a fit.

    On the left each budget has its runs, the law (solid) and its parabola (dashed, with a cross at
    the minimum). On the right stand all runs over their FLOPs, the law's best loss for each budget
    with its 95% band, the predictions, and held-out runs as hollow circles.
    """
    curves = isoflop.curves if isoflop is not None else ()
    budgets = [curve.flops for curve in curves]
    if not budgets:
        budgets = list(np.geomspace(runs.flops.min(), runs.flops.max(), DRAWN_BUDGETS))
    if len(budgets) > MOST_BUDGETS:
        places = np.linspace(0, len(budgets) - 1, MOST_BUDGETS)
        budgets = [budgets[round(place)] for place in places]

    parts = [
        *draw_sizes(runs, fit, budgets, curves),
        *draw_compute(runs, fit, budgets, predictions, held_out),
    ]
    law = fit.law
    formula = f"L = {law.E:.3g} + {law.A:.4g} / N^{law.alpha:.3g} + {law.B:.4g} / D^{law.beta:.3g}"
    label = escape(f"Scaling law of {runs.count} runs: {formula}")
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    font = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" '
        f'font-family="{font}" aria-label="{label}">'
    )
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>'
    text = svg_text(WIDTH - RIGHT, 54, formula, "end", 13)
    return "\n".join([head, f"<title>{label}</title>", ground, *parts, text, "</svg>", ""])


def draw_sizes(
    runs: Observations, fit: ParametricFit, budgets: Sequence[float], curves: Sequence[Curve]
) -> list[str]:
    """Return the left panel: loss over parameters, a curve for each budget."""
    width = (WIDTH - LEFT - GAP - RIGHT) / 2
    panel = Panel(LEFT, LEFT + width, spread(runs.parameters), margin(runs.loss))
    sizes = np.geomspace(*panel.x_range, CURVE_POINTS)
    parts = panel.frame(
        "Loss over parameters, by budget in FLOPs", "parameters (logarithmic)", short_number
    )

    for place, budget in enumerate(budgets):
        colour = budget_colour(budget, budgets)
        tokens = budget / (runs.flops_per_pair(sizes) * sizes)
        law = fit.law
        losses = law.E + law.A / sizes**law.alpha + law.B / tokens**law.beta
        parts.append(panel.line(sizes, losses, colour))
        x = panel.left + place * width / len(budgets)
        parts.append(f'<circle cx="{x + 6:.1f}" cy="50" r="4" fill="{colour}"/>')
        parts.append(svg_text(x + 14, 54, f"{budget:.2g}", "start"))

    for curve in curves:
        colour = budget_colour(curve.flops, budgets)
        span = np.geomspace(curve.runs.parameters.min(), curve.runs.parameters.max(), CURVE_POINTS)
        losses = np.polyval(curve.coefficients, np.log(span) - curve.log_center)
        parts.append(panel.line(span, losses, colour, dash="4 4", width=1.2))
        if curve.inside:
            x, y = panel.x(curve.parameters), panel.y(curve.loss)
            cross = f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"
            parts.append(f'<path d="{cross}" stroke="{colour}" stroke-width="2" fill="none"/>')

    return parts + draw_runs(panel, runs, runs.parameters, budgets)


def draw_compute(
    runs: Observations,
    fit: ParametricFit,
    budgets: Sequence[float],
    predictions: Sequence[Prediction],
    held_out: Sequence[HeldOut],
) -> list[str]:
    """Return the right panel: loss over FLOPs, the best loss of each budget, and predictions."""
    points = [*predictions, *(run.prediction for run in held_out)]
    flops = np.array([*runs.flops, *(point.flops for point in points)])
    ends = [loss for point in points for loss in (point.loss, *point.interval)]
    losses = np.array([*runs.loss, *ends, *(run.loss for run in held_out)])
    left = LEFT + (WIDTH - LEFT - GAP - RIGHT) / 2 + GAP
    panel = Panel(left, WIDTH - RIGHT, spread(flops), margin(losses))
    parts = panel.frame("Loss over compute", "training FLOPs (logarithmic)", "{:.0e}".format)

    frontier = best_losses(runs, fit, np.geomspace(*panel.x_range, CURVE_POINTS))
    if frontier is not None:
        xs, best, low, high = frontier
        band = panel.points(np.concatenate([xs, xs[::-1]]), np.concatenate([low, high[::-1]]))
        parts.append(
            f'<polygon points="{band}" fill="{PREDICTED}" fill-opacity="0.12" '
            f'clip-path="url(#{panel.clip})"/>'
        )
        parts.append(panel.line(xs, best, PREDICTED))

    parts += draw_runs(panel, runs, runs.flops, budgets)
    for point in points:
        x, (low_y, high_y) = panel.x(point.flops), map(panel.y, point.interval)
        y = panel.y(point.loss)
        parts.append(
            f'<path d="M{x:.1f} {low_y:.1f}V{high_y:.1f}" stroke="{PREDICTED}" stroke-width="1.5"/>'
            f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z" fill="{PREDICTED}"/>'
            f"{svg_text(x - 8, y - 10, f'{point.loss:.4g}', 'end')}"
        )
    parts += [
        panel.dot(run.prediction.flops, run.loss, INK, f"{run.name}: {run.loss:.4f}", hollow=True)
        for run in held_out
    ]
    return parts


def draw_runs(
    panel: Panel, runs: Observations, places: np.ndarray, budgets: Sequence[float]
) -> list[str]:
    """Return a dot for each run, coloured by its budget."""
    return [
        panel.dot(x, loss, budget_colour(flops, budgets), f"{name}: {loss:.4f}")
        for name, x, loss, flops in zip(runs.names, places, runs.loss, runs.flops, strict=True)
    ]


def best_losses(
    runs: Observations, fit: ParametricFit, budgets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Return budgets, the law's best loss for each, and the 95% band; None without an optimum."""
    try:
        optima = [predict_optimum(fit, runs, float(budget)) for budget in budgets]
    except UserError:
        return None

    parameters = np.array([point.parameters for point in optima])
    tokens = np.array([point.tokens for point in optima])
    low, high = np.percentile(predict_losses(fit.draws, parameters, tokens), [2.5, 97.5], axis=0)
    return budgets, np.array([point.loss for point in optima]), low, high


def budget_colour(flops: float, budgets: Sequence[float]) -> str:
    """Return the colour of a budget between the smallest and the largest."""
    low, high = math.log(min(budgets)), math.log(max(budgets))
    share = 0.5 if high == low else (math.log(flops) - low) / (high - low)
    return RAMP[round(min(max(share, 0.0), 1.0) * (len(RAMP) - 1))]


def spread(values: np.ndarray) -> tuple[float, float]:
    """Return the range of a logarithmic axis around the values."""
    factor = max((values.max() / values.min()) ** 0.06, 1.05)
    return float(values.min() / factor), float(values.max() * factor)


def margin(values: np.ndarray) -> tuple[float, float]:
    """Return the range of a linear axis around the values."""
    room = 0.06 * (values.max() - values.min()) or 0.1 * values.max()
    return float(values.min() - room), float(values.max() + room)
