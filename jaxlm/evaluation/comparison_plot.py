"""The comparison of models on several domains as an SVG: a line from the base to each model.

The ground is white, so that it reads in dark mode too.
"""

from collections.abc import Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from jaxlm.card.loss_plot import AXIS, GRID, INK, linear_ticks, svg_text
from jaxlm.evaluation.comparison import Change

WIDTH, TOP, BOTTOM, RIGHT = 760, 64, 52, 150
ROW, HEADING = 24, 30  # pixels: of a model, and of the name of a domain
CHARACTER = 6.7  # pixels of a name's letter
LONGEST_NAME = 34  # characters that are drawn
GAINED, LOST = "#2563a8", "#c2410c"


def draw_comparison(changes: Sequence[Change], base: str, figure: str) -> str:
    """Return the SVG: the base is a hollow dot, each model a filled one, in each domain.

    A line says how far the model is from the base: blue where the figure fell, orange where it
    rose.
    """
    names = [shorten_name(change.model) for change in changes]
    left = 32 + CHARACTER * max(map(len, names))
    values = [value for change in changes for value in (change.value, change.base)]
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - RIGHT - left)

    domains = [(name, list(group)) for name, group in groupby(changes, lambda c: c.domain)]
    bottom = TOP + len(domains) * HEADING + len(changes) * ROW
    height = bottom + BOTTOM
    parts = [
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
        svg_text(16, 26, f"{figure.replace('_', ' ').capitalize()} by domain", "start", 15),
        dot(22, 44, INK, hollow=True),
        svg_text(32, 48, f"{shorten_name(base)} (before)", "start"),
    ]
    for tick in linear_ticks(low, high):
        parts.append(
            f'<line x1="{x(tick):.1f}" y1="{TOP}" x2="{x(tick):.1f}" y2="{bottom}" '
            f'stroke="{GRID}"/>{svg_text(x(tick), bottom + 18, f"{tick:.4g}")}'
        )
    y = float(TOP)
    for domain, rows in domains:
        parts.append(svg_text(16, y + 20, domain, "start", 13))
        y += HEADING
        for change in rows:
            parts += draw_change(change, x(change.base), x(change.value), y + ROW / 2)
            y += ROW
    parts.append(f'<path d="M{left:.1f} {bottom}H{WIDTH - RIGHT}" stroke="{AXIS}"/>')
    parts.append(svg_text((left + WIDTH - RIGHT) / 2, height - 12, figure.replace("_", " ")))

    label = escape(f"{figure.replace('_', ' ')} of {len(set(names))} models by domain")
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    font = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" '
        f'font-family="{font}" aria-label="{label}">'
    )
    return "\n".join([head, f"<title>{label}</title>", *parts, "</svg>", ""])


def draw_change(change: Change, start: float, end: float, y: float) -> list[str]:
    """Return the line of a model from x = `start` to `end`, with its name and figures."""
    colour = GAINED if change.difference <= 0 else LOST
    words = f"{change.value:.4g} ({change.percent:+.1f}%)"
    return [
        svg_text(28, y + 4, shorten_name(change.model), "start"),
        f'<line x1="{start:.1f}" y1="{y:.1f}" x2="{end:.1f}" y2="{y:.1f}" stroke="{colour}" '
        'stroke-width="3"/>',
        dot(start, y, INK, hollow=True),
        dot(end, y, colour),
        svg_text(WIDTH - RIGHT + 12, y + 4, words, "start"),
    ]


def dot(x: float, y: float, colour: str, *, hollow: bool = False) -> str:
    fill = "#ffffff" if hollow else colour
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{colour}" '
        'stroke-width="1.5"/>'
    )


def shorten_name(name: str) -> str:
    """Return the end of a long name, which says more about a path than its start."""
    return name if len(name) <= LONGEST_NAME else f"...{name[-LONGEST_NAME:]}"
