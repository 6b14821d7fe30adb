"""The losses of several widths over the learning rate, as an SVG: a panel a parametrization.

The ground is white, so that it reads in dark mode too.
"""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np

from jaxlm.card.loss_plot import svg_text
from jaxlm.plan.fit_plot import (
    GAP,
    HEIGHT,
    LEFT,
    RIGHT,
    WIDTH,
    Panel,
    budget_colour,
    margin,
    spread,
)
from jaxlm.plan.transfer import WidthLosses

LEGEND_WIDTH = 64  # pixels of an entry


def draw_transfer(results: Sequence[WidthLosses]) -> str:
    """Return the SVG of the losses; the best rate of each width is a filled dot.

    A run that diverged has no dot, and its curve ends before it.
    """
    names = list(dict.fromkeys(result.parametrization for result in results))
    losses = [loss for result in results for loss in result.losses if math.isfinite(loss)]
    rates = np.array([rate for result in results for rate in result.rates])
    panel_width = (WIDTH - LEFT - RIGHT - GAP * (len(names) - 1)) / len(names)
    widths = sorted({result.width for result in results})

    parts = []
    for place, name in enumerate(names):
        left = LEFT + place * (panel_width + GAP)
        panel = Panel(left, left + panel_width, spread(rates), margin(np.array(losses or [0.0])))
        parts += panel.frame(
            f"Loss over learning rate, {name}", "learning rate (logarithmic)", "{:.0e}".format
        )
        for result in results:
            if result.parametrization == name:
                parts += draw_width(panel, result, budget_colour(result.width, widths))
        for entry, width in enumerate(widths):
            x = left + entry * LEGEND_WIDTH
            colour = budget_colour(width, widths)
            parts.append(f'<circle cx="{x + 6:.1f}" cy="50" r="4" fill="{colour}"/>')
            parts.append(svg_text(x + 14, 54, str(width), "start"))

    label = escape(f"Loss over learning rate at the widths {', '.join(map(str, widths))}")
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    font = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" '
        f'font-family="{font}" aria-label="{label}">'
    )
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>'
    return "\n".join([head, f"<title>{label}</title>", ground, *parts, "</svg>", ""])


def draw_width(panel: Panel, result: WidthLosses, colour: str) -> list[str]:
    """Return the curve and the dots of one width."""
    points = [
        (rate, loss, place)
        for place, (rate, loss) in enumerate(zip(result.rates, result.losses, strict=True))
        if math.isfinite(loss)
    ]
    if not points:
        return []

    rates, losses, _ = (np.array(values) for values in zip(*points, strict=True))
    dots = [
        panel.dot(
            rate,
            loss,
            colour,
            f"width {result.width}, rate {rate:.3g}: {loss:.4f}",
            hollow=place != result.best,
        )
        for rate, loss, place in points
    ]
    return [panel.line(rates, losses, colour), *dots]
