"""Loss curves as an SVG: one for training, one for validation, over a logarithmic axis. The ground is white, so it reads in dark mode."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 48, 56
SHOWN = 1 / 300  # of the longest way: what lies before would take half of the picture
BIN_PIXELS = 1.5  # of the training curve: the points within are drawn as their mean
TRAIN, VALIDATION, INK, GRID = "#7a9cc6", "#c2410c", "#24292f", "#e3e6ea"
AXIS = "#8c959f"
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def loss_curves(train: Points, validation: Points, unit: str) -> str:
    """The SVG of (place, loss) pairs with places above 0, in order; `unit` names the places. "" where there are no points."""
    train, validation = (
        [(x, y) for x, y in points if x > 0 and math.isfinite(y)] for points in (train, validation)
    )
    if not train and not validation:
        return ""
    longest = max(x for x, _ in [*train, *validation])
    train, validation = (
        [(x, y) for x, y in points if x >= SHOWN * longest] for points in (train, validation)
    )
    across, up = bounds(train, validation)
    curve = [place(point, across, up) for point in thinned(train, across)]
    dots = [place(point, across, up) for point in validation]
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>',
        text(LEFT, 24, "Loss, nats per target", "start", 15),
        *(grid_up(value, up) for value in ticks(*up)),
        *(grid_across(value, across) for value in log_ticks(*across)),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, f"{unit} (logarithmic)"),
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="{AXIS}"/>',
        f'<clipPath id="inside"><rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT}" height="{HEIGHT - TOP - BOTTOM}"/></clipPath>',
        *line("train", curve, TRAIN, 1.5, 0 if len(curve) > 1 else 4),
        *line("validation", dots, VALIDATION, 2, 3.5 if len(dots) <= 60 else 0),
        *(text(x, y - 10, f"{validation[-1][1]:.4g}", "end") for x, y in dots[-1:]),
        *legend(
            [("training", TRAIN)] * bool(train) + [("validation", VALIDATION)] * bool(validation)
        ),
    ]
    label = "Loss over " + unit
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img"'
    style = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"'
    return "\n".join(
        [
            f'{head} {style} aria-label="{escape(label)}">',
            f"<title>{escape(label)}</title>",
            *parts,
            "</svg>",
            "",
        ]
    )


def bounds(train: Points, validation: Points) -> tuple[tuple[float, float], tuple[float, float]]:
    """(lowest, highest) place and loss that are shown. A later spike above the first losses is cut off."""
    both = [*train, *validation]
    places, losses = [x for x, _ in both], [y for _, y in both]
    first = max(points[0][1] for points in (train, validation) if points)
    low, high = min(losses), min(max(losses), first + 0.2 * abs(first))
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    across = (min(places), max(places))
    return across if across[0] < across[1] else (across[0] / 2, across[1] * 2), (
        low - margin,
        high + margin,
    )


def thinned(points: Points, across: tuple[float, float]) -> Points:
    """The mean of the points that would be drawn within `BIN_PIXELS`."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for x, y in points:
        bins.setdefault(int(horizontal(x, across) / BIN_PIXELS), []).append((x, y))
    return [
        (sum(x for x, _ in found) / len(found), sum(y for _, y in found) / len(found))
        for found in bins.values()
    ]


def horizontal(x: float, across: tuple[float, float]) -> float:
    low, high = map(math.log, across)
    return LEFT + (math.log(x) - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def vertical(y: float, up: tuple[float, float]) -> float:
    return HEIGHT - BOTTOM - (y - up[0]) / (up[1] - up[0]) * (HEIGHT - TOP - BOTTOM)


def place(
    point: tuple[float, float], across: tuple[float, float], up: tuple[float, float]
) -> tuple[float, float]:
    # A spike far above the picture stays a number that every viewer can draw.
    return horizontal(point[0], across), max(vertical(point[1], up), -HEIGHT)


def line(name: str, points: Points, colour: str, width: float, radius: float) -> list[str]:
    if not points:
        return []
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"/>'
    ]
    parts += [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>'
        for x, y in points
        if radius
    ]
    return [f'<g id="{name}" clip-path="url(#inside)">', *parts, "</g>"]


def legend(entries: Sequence[tuple[str, str]]) -> list[str]:
    parts = []
    for number, (name, colour) in enumerate(entries):
        x = WIDTH - RIGHT - 104 * (len(entries) - number)
        parts += [
            f'<line x1="{x}" y1="19" x2="{x + 20}" y2="19" stroke="{colour}" stroke-width="3"/>',
            text(x + 26, 24, name, "start"),
        ]
    return parts


def grid_up(value: float, up: tuple[float, float]) -> str:
    y = vertical(value, up)
    rule = f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{GRID}"/>'
    return rule + text(LEFT - 8, y + 4, f"{value:.6g}", "end")


def grid_across(value: float, across: tuple[float, float]) -> str:
    x = horizontal(value, across)
    rule = f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" stroke="{GRID}"/>'
    return rule + text(x, HEIGHT - BOTTOM + 18, short(value))


def text(x: float, y: float, words: str, anchor: str = "middle", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{INK}">{escape(words)}</text>'


def ticks(low: float, high: float) -> list[float]:
    """Four to ten round numbers within."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within; with their doubles and halves where there would be few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        found = [
            factor * 10.0**power
            for power in powers
            for factor in factors
            if low <= factor * 10.0**power <= high
        ]
        if len(found) >= 5:
            return found
    return found if len(found) > 1 else [low, high]


def short(value: float) -> str:
    """41000 -> '41k'."""
    return next(
        (f"{value / size:.4g}{unit}" for size, unit in UNITS if value >= size), f"{value:.4g}"
    )
