"""Loss curves as an SVG: training and validation, over a logarithmic axis.

The ground is white, so that it reads in dark mode too.
"""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

Points = Sequence[tuple[float, float]]
Range = tuple[float, float]

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 48, 56
FIRST_SHARE = 1 / 300  # of the last place: what lies before would take half of the plot
BIN_PIXELS = 1.5  # points of the training curve within that width are drawn as their mean
TRAIN, VALIDATION, INK, GRID = "#7a9cc6", "#c2410c", "#24292f", "#e3e6ea"
AXIS = "#8c959f"
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def draw_loss_curves(train: Points, validation: Points, unit: str) -> str:
    """Return the SVG of (place, loss) pairs; "" where there are no points.

    Places are above 0 and in order; `unit` names them on the axis.
    """
    train, validation = (
        [(x, y) for x, y in points if x > 0 and math.isfinite(y)] for points in (train, validation)
    )
    if not train and not validation:
        return ""

    longest = max(x for x, _ in [*train, *validation])
    train, validation = (
        [(x, y) for x, y in points if x >= FIRST_SHARE * longest] for points in (train, validation)
    )
    x_range, y_range = plot_ranges(train, validation)
    curve = [to_pixels(point, x_range, y_range) for point in average_bins(train, x_range)]
    dots = [to_pixels(point, x_range, y_range) for point in validation]

    entries = [("training", TRAIN)] * bool(train) + [("validation", VALIDATION)] * bool(validation)
    inside = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT}" height="{HEIGHT - TOP - BOTTOM}"'
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>',
        svg_text(LEFT, 24, "Loss, nats per target", "start", 15),
        *(horizontal_rule(value, y_range) for value in linear_ticks(*y_range)),
        *(vertical_rule(value, x_range) for value in log_ticks(*x_range)),
        svg_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, f"{unit} (logarithmic)"),
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="{AXIS}"/>',
        f'<clipPath id="inside"><rect {inside}/></clipPath>',
        *svg_curve("train", curve, TRAIN, width=1.5, radius=0 if len(curve) > 1 else 4),
        *svg_curve("validation", dots, VALIDATION, width=2, radius=3.5 if len(dots) <= 60 else 0),
        *(svg_text(x, y - 10, f"{validation[-1][1]:.4g}", "end") for x, y in dots[-1:]),
        *svg_legend(entries),
    ]

    label = escape(f"Loss over {unit}")
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    font = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" '
        f'font-family="{font}" aria-label="{label}">'
    )
    return "\n".join([head, f"<title>{label}</title>", *parts, "</svg>", ""])


def plot_ranges(train: Points, validation: Points) -> tuple[Range, Range]:
    """Return the (lowest, highest) place and loss to draw; later spikes are cut off."""
    both = [*train, *validation]
    places, losses = [x for x, _ in both], [y for _, y in both]
    first = max(points[0][1] for points in (train, validation) if points)
    low, high = min(losses), min(max(losses), first + 0.2 * abs(first))
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0

    x_range = min(places), max(places)
    if x_range[0] == x_range[1]:
        x_range = x_range[0] / 2, x_range[1] * 2
    return x_range, (low - margin, high + margin)


def average_bins(points: Points, x_range: Range) -> Points:
    """Average the points that would be drawn within `BIN_PIXELS` of each other."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for x, y in points:
        bins.setdefault(int(x_pixel(x, x_range) / BIN_PIXELS), []).append((x, y))
    return [
        (sum(x for x, _ in inside) / len(inside), sum(y for _, y in inside) / len(inside))
        for inside in bins.values()
    ]


def x_pixel(x: float, x_range: Range) -> float:
    low, high = map(math.log, x_range)
    return LEFT + (math.log(x) - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def y_pixel(y: float, y_range: Range) -> float:
    return HEIGHT - BOTTOM - (y - y_range[0]) / (y_range[1] - y_range[0]) * (HEIGHT - TOP - BOTTOM)


def to_pixels(point: tuple[float, float], x_range: Range, y_range: Range) -> tuple[float, float]:
    # A spike far above the plot stays a number that every viewer can draw.
    return x_pixel(point[0], x_range), max(y_pixel(point[1], y_range), -HEIGHT)


def svg_curve(name: str, points: Points, colour: str, width: float, radius: float) -> list[str]:
    if not points:
        return []
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    stroke = f'stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"'
    parts = [f'<polyline points="{path}" fill="none" {stroke}/>']
    parts += [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>'
        for x, y in points
        if radius
    ]
    return [f'<g id="{name}" clip-path="url(#inside)">', *parts, "</g>"]


def svg_legend(entries: Sequence[tuple[str, str]]) -> list[str]:
    parts = []
    for number, (name, colour) in enumerate(entries):
        x = WIDTH - RIGHT - 104 * (len(entries) - number)
        parts += [
            f'<line x1="{x}" y1="19" x2="{x + 20}" y2="19" stroke="{colour}" stroke-width="3"/>',
            svg_text(x + 26, 24, name, "start"),
        ]
    return parts


def horizontal_rule(value: float, y_range: Range) -> str:
    y = y_pixel(value, y_range)
    rule = f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{GRID}"/>'
    return rule + svg_text(LEFT - 8, y + 4, f"{value:.6g}", "end")


def vertical_rule(value: float, x_range: Range) -> str:
    x = x_pixel(value, x_range)
    rule = f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" stroke="{GRID}"/>'
    return rule + svg_text(x, HEIGHT - BOTTOM + 18, short_number(value))


def svg_text(x: float, y: float, words: str, anchor: str = "middle", size: int = 12) -> str:
    style = f'font-size="{size}" text-anchor="{anchor}" fill="{INK}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def linear_ticks(low: float, high: float) -> list[float]:
    """Return four to ten round numbers within the range."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten within the range, with numbers in between where they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        marks = [
            factor * 10.0**power
            for power in powers
            for factor in factors
            if low <= factor * 10.0**power <= high
        ]
        if len(marks) >= 5:
            return marks
    return marks if len(marks) > 1 else [low, high]


def short_number(value: float) -> str:
    """Return 41000 as '41k'."""
    return next(
        (f"{value / size:.4g}{unit}" for size, unit in UNITS if value >= size), f"{value:.4g}"
    )
