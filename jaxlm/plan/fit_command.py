"""python -m jaxlm.plan fit RUNS ...: fit scaling laws to trained runs, and predict larger ones.

This is the command alone; `parametric_fit.py`, `isoflop.py` and `prediction.py` do the work.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm import runtime
from jaxlm.config import UserError
from jaxlm.files import write_output
from jaxlm.plan.budget_command import quantity

if TYPE_CHECKING:
    from jaxlm.plan.fit_report import Results

FIT_EXAMPLES = """examples:
  python -m jaxlm.plan fit runs.csv
  python -m jaxlm.plan fit ladders/quickstart --predict-flops 1e15 --picture fit.svg
  python -m jaxlm.plan fit runs.csv --predict-parameters 7e9 --predict-tokens 1.4e11 --json fit.json

A CSV has the columns parameters, loss, and tokens or flops (or both); name may be there. A
directory is a run, or holds runs, as `python -m jaxlm.plan sweep` makes them: their final eval/loss
counts, and their tokens and FLOPs are counted exactly. docs/planning.md explains the figures."""

MOST_RESAMPLES = 100_000


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = build_fit_parser().parse_args(argv)
    check_pairs(args.predict_parameters, args.predict_tokens)
    for option, path in (("--json", args.json), ("--picture", args.picture)):
        runtime.check_output_file(option, path)

    from jaxlm.plan import fit_report, fit_tables

    results = fit_report.fit_runs(
        args.runs,
        predict_flops=args.predict_flops,
        predict_pairs=list(zip(args.predict_parameters, args.predict_tokens, strict=True)),
        hold_out=args.hold_out,
        drop_outliers=args.drop_outliers,
        resamples=args.resamples,
        seed=args.seed,
    )
    print(fit_tables.format_results(results))
    if args.picture is not None:
        write_picture(args.picture, results)
    if args.json is not None:
        runtime.write_json(args.json, fit_report.build_fit_document(results))
    return 0


def write_picture(path: str, results: "Results") -> None:
    """Write the SVG of the fit. Raises UserError where that is not possible."""
    from jaxlm.plan.fit_plot import draw_fit

    picture = draw_fit(
        results.runs, results.fit, results.isoflop, results.predictions, results.held_out
    )
    try:
        write_output(Path(path), picture)
    except OSError as error:
        raise UserError(f"--picture: {path}: {error.strerror}") from error


def check_pairs(parameters: Sequence[float], tokens: Sequence[float]) -> None:
    """Raise UserError unless each --predict-parameters has its --predict-tokens."""
    if len(parameters) != len(tokens):
        given = f"got {len(parameters)} and {len(tokens)}"
        raise UserError(f"--predict-parameters and --predict-tokens go together: {given}")


def build_fit_parser() -> runtime.Parser:
    """Return the parser of the command's arguments."""
    parser = runtime.Parser(
        prog="python -m jaxlm.plan fit",
        description="Fit scaling laws to trained runs, with intervals, and predict larger ones.",
        epilog=FIT_EXAMPLES,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUNS", help="a CSV, a run directory, or a folder of runs")
    add(
        "--predict-flops",
        type=quantity,
        action="append",
        default=[],
        metavar="C",
        help="predict the compute-optimal run of this budget (may be repeated)",
    )
    add(
        "--predict-parameters",
        type=quantity,
        action="append",
        default=[],
        metavar="N",
        help="predict the loss of a model with N parameters ...",
    )
    add(
        "--predict-tokens",
        type=quantity,
        action="append",
        default=[],
        metavar="D",
        help="... that reads D tokens",
    )
    add(
        "--hold-out",
        action="append",
        default=[],
        metavar="NAME",
        help="keep this run out of the fit and compare its loss with the prediction",
    )
    add("--drop-outliers", action="store_true", help="fit again without the runs named as outliers")
    add(
        "--resamples",
        type=resample_count,
        default=500,
        metavar="N",
        help="resamples of the bootstrap (500)",
    )
    add("--seed", type=seed_number, default=0, metavar="N", help="seed of the bootstrap (0)")
    add("--picture", metavar="FILE.svg", help="draw the runs, the law and the predictions")
    add("--json", metavar="FILE", help="write the figures, with all their digits")
    return parser


def resample_count(text: str) -> int:
    """Return a number of resamples that gives an interval."""
    number = whole_number(text)
    if not 100 <= number <= MOST_RESAMPLES:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 100 to {MOST_RESAMPLES:,}, got {text!r}"
        )
    return number


def seed_number(text: str) -> int:
    """Return a seed."""
    number = whole_number(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text!r}")
    return number


def whole_number(text: str) -> int:
    """Return a whole number of few digits; -1 for anything else."""
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 12 else -1
