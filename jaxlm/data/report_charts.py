"""The pictures of a store's report as SVG: funnels, tokens, the odds of finding near duplicates.

Colours are classes, which the page gives a value for light, dark and paper. Bars are pictures too,
not grounds of boxes: browsers don't print those.
"""

from collections.abc import Sequence
from typing import NamedTuple

BAR_UNITS, BAR_HEIGHT = 1000, 14  # the width stretches with the page
LEAST_UNITS = 4  # of a segment that is not empty, so that it can be seen

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 14, 46
POINTS = 100  # of the curve
KNOWN_SIMILARITY = 0.63  # 5-word shingles that are left where 5% of the words were changed


class Segment(NamedTuple):
    """A part of a bar, in the unit of the bar."""

    start: float
    length: float
    kind: str  # class of the colour


def draw_bar(segments: Sequence[Segment], total: float) -> str:
    """Return the SVG of segments on a ground that stands for `total`."""
    parts = [f'<rect class="ground" width="{BAR_UNITS}" height="{BAR_HEIGHT}"/>']
    for segment in segments:
        if not segment.length or not total:
            continue
        width = max(segment.length / total * BAR_UNITS, LEAST_UNITS)
        start = min(segment.start / total * BAR_UNITS, BAR_UNITS - width)
        place = f'x="{start:.1f}" width="{width:.1f}" height="{BAR_HEIGHT}"'
        parts.append(f'<rect class="{segment.kind}" {place}/>')

    box = f'viewBox="0 0 {BAR_UNITS} {BAR_HEIGHT}" preserveAspectRatio="none"'
    return f'<svg class="bar" {box} aria-hidden="true">{"".join(parts)}</svg>'


def compare_probability(similarity: float, bands: int, rows: int) -> float:
    """Return the probability that two documents agree in one of `bands` of `rows` minima."""
    return 1 - (1 - similarity**rows) ** bands


def draw_find_probability(threshold: float, bands: int, rows: int) -> str:
    """Return the SVG of the probability, over their similarity, that two documents are compared.

    The threshold and 0.63 are marked; a legend beside the picture gives the values there.
    """
    curve = [
        (number / POINTS, compare_probability(number / POINTS, bands, rows))
        for number in range(POINTS + 1)
    ]
    path = " ".join(f"{x_pixel(x):.1f},{y_pixel(y):.1f}" for x, y in curve)
    ticks = [number / 5 for number in range(6)]
    marks = ((KNOWN_SIMILARITY, "known"), (threshold, "threshold"))

    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts = [
        *(horizontal_rule(value) for value in ticks),
        *(vertical_rule(value) for value in ticks),
        f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>',
        write_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "similarity of two documents"),
        f'<g transform="rotate(-90 12 {middle})">{write_text(12, middle, "compared")}</g>',
        f'<polyline class="curve" points="{path}"/>',
    ]
    for similarity, kind in marks:
        parts += draw_mark(similarity, compare_probability(similarity, bands, rows), kind)

    label = f"Probability that two documents are compared: {bands} bands of {rows} minima"
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    head = f'<svg class="chart" {box} role="img" aria-label="{label}"><title>{label}</title>'
    return "\n".join([head, *parts, "</svg>"])


def draw_mark(similarity: float, value: float, kind: str) -> list[str]:
    """Return a line at a similarity and a dot on the curve."""
    x, y = x_pixel(similarity), y_pixel(value)
    return [
        f'<path class="{kind}" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>',
        f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>',
    ]


def x_pixel(similarity: float) -> float:
    return LEFT + similarity * (WIDTH - LEFT - RIGHT)


def y_pixel(probability: float) -> float:
    return HEIGHT - BOTTOM - probability * (HEIGHT - TOP - BOTTOM)


def horizontal_rule(value: float) -> str:
    y = y_pixel(value)
    rule = f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
    return rule + write_text(LEFT - 7, y + 4, f"{100 * value:.0f}%", "end")


def vertical_rule(value: float) -> str:
    x = x_pixel(value)
    rule = f'<path class="rule" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
    return rule + write_text(x, HEIGHT - BOTTOM + 17, f"{value:g}")


def write_text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    """Return a text of our own, which needs no escapes."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'
