"""What the lines of a comparison say: a table of the arms and the ratios of their speeds."""

import statistics
from collections.abc import Sequence
from typing import Any

from peers.shapes import FLOAT32, Arm

from jaxlm.columns import align_columns

Line = dict[str, Any]  # one arm in one round


def arm_speed(lines: Sequence[Line], arm: Arm) -> float | None:
    """Return the tokens/s of an arm: the median over its rounds. None: it has no figures."""
    rounds = list(round_speeds(lines, arm).values())
    return statistics.median(rounds) if rounds else None


def round_speeds(lines: Sequence[Line], arm: Arm) -> dict[int, float]:
    """Return the tokens/s of an arm by round."""
    return {
        line["round"]: line["tokens_per_second"]
        for line in lines
        if line["arm"] == arm.name and line["status"] == "ok"
    }


def fastest(
    lines: Sequence[Line], arms: Sequence[Arm], library: str, precision: str | None
) -> Arm | None:
    """Return the fastest arm of a library in a precision (None: in any)."""
    speeds = {}
    for arm in arms:
        tokens_per_second = arm_speed(lines, arm)
        fits = arm.library == library and precision in (None, arm.precision)
        if fits and tokens_per_second is not None:
            speeds[arm] = tokens_per_second
    return max(speeds, key=lambda arm: speeds[arm]) if speeds else None


def compare_fastest(
    shape: str, lines: Sequence[Line], arms: Sequence[Arm], precision: str | None
) -> Line | None:
    """Return the ratio of tokens/s, fastest jaxlm arm to fastest torch arm, with its rounds."""
    ours = fastest(lines, arms, "jaxlm", precision)
    theirs = fastest(lines, arms, "torch", precision)
    if ours is None or theirs is None:
        return None

    our_rounds, their_rounds = round_speeds(lines, ours), round_speeds(lines, theirs)
    common = sorted(our_rounds.keys() & their_rounds.keys())
    our_speed, their_speed = arm_speed(lines, ours), arm_speed(lines, theirs)
    assert our_speed is not None and their_speed is not None
    return {
        "shape": shape,
        "ratio": round(our_speed / their_speed, 3),
        "precision": precision or "any",
        "jaxlm": ours.name,
        "torch": theirs.name,
        "rounds": [round(our_rounds[number] / their_rounds[number], 3) for number in common],
    }


def ratios(shape: str, lines: Sequence[Line], arms: Sequence[Arm]) -> list[Line]:
    """Return the ratios in float32, where arms compute in it, and in any precision."""
    precisions = [FLOAT32] if any(arm.precision == FLOAT32 for arm in arms) else []
    found = [compare_fastest(shape, lines, arms, p) for p in (*precisions, None)]
    return [ratio for ratio in found if ratio is not None]


def format_table(lines: Sequence[Line], arms: Sequence[Arm], rounds: int) -> str:
    """Return a row for each arm: ms of a step in each round, and how much faster jaxlm is.

    The last column divides the tokens/s of the fastest jaxlm arm of the same precision by those of
    the row.
    """
    head = ["arm", *(f"ms, round {number}" for number in range(1, rounds + 1))]
    cells = [[*head, "sequences", "tokens/s", "TFLOP/s", "jaxlm / it"]]
    for arm in arms:
        rows = [line for line in lines if line["arm"] == arm.name]
        by_round = {line["round"]: line for line in rows}
        times = [step_time(by_round.get(number)) for number in range(1, rounds + 1)]
        tokens_per_second = arm_speed(lines, arm)
        if tokens_per_second is None:
            cells.append([arm.name, *times, "-", "-", "-", "-"])
            continue

        last = [line for line in rows if line["status"] == "ok"][-1]
        flops_per_token = last["flops_per_step"] / last["tokens_per_step"]
        ours = fastest(lines, arms, "jaxlm", arm.precision) if arm.library == "torch" else None
        our_speed = None if ours is None else arm_speed(lines, ours)
        cells.append(
            [
                arm.name,
                *times,
                str(last["batch_size"]),
                f"{tokens_per_second:,.0f}",
                f"{1e-12 * flops_per_token * tokens_per_second:.3f}",
                "" if our_speed is None else f"{our_speed / tokens_per_second:.2f}",
            ]
        )
    return align_columns(cells)


def step_time(line: Line | None) -> str:
    """Return the milliseconds of a step, or why there are none."""
    if line is None:
        return "-"
    return f"{line['median_ms']:.1f}" if line["status"] == "ok" else line["status"]


def format_ratio(ratio: Line) -> str:
    """Return a ratio as a sentence."""
    precision = "in any precision" if ratio["precision"] == "any" else f"in {ratio['precision']}"
    rounds = ", ".join(f"{value:.2f}" for value in ratio["rounds"])
    return (
        f"jaxlm / torch {precision}: {ratio['ratio']:.2f} (by round {rounds}; "
        f"{ratio['jaxlm']!r} / {ratio['torch']!r})"
    )


def format_versions(lines: Sequence[Line]) -> str:
    """Return the versions of both sides, as far as there are figures."""
    shown: dict[str, str] = {}
    for line in lines:
        for package, number in line.get("versions", {}).items():
            if package in ("jaxlm", "jax", "torch", "transformers", "cuda", "python"):
                shown[package] = number
    return ", ".join(f"{package} {number}" for package, number in shown.items())
