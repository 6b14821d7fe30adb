"""python -m jaxlm.plan sweep --config FILE --out DIR --budgets C,C,...: write a ladder of runs.

This is the command alone; `sweep.py` plans and writes the runs, `sweep_run.py` trains them.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm import config, runtime
from jaxlm.config import UserError
from jaxlm.plan.budget_command import quantity

if TYPE_CHECKING:
    from jaxlm.plan.sweep import LadderRun

SWEEP_EXAMPLES = """examples:
  python -m jaxlm.plan sweep --config configs/quickstart.py --out ladders/quickstart \\
      --sizes 4 --budgets 3e12,1e13,3e13 --data 'books/*.txt' --run
  python -m jaxlm.plan sweep --config configs/gpt2_124m.py --out ladders/gpt2 \\
      --widths 256,384,512,768 --budgets 1e17,3e17,1e18
  python -m jaxlm.plan sweep --config configs/t5_base.py --out ladders/t5 --ladder size \\
      --widths 128,256,384,512 --tokens-per-parameter 20

The first makes an isoFLOP ladder: each size is trained with each budget. Each run has a folder with
a config.json, which `python -m jaxlm.train --config` takes, too. With --run they are trained here,
one after the other; the same command goes on where it was stopped. Then
`python -m jaxlm.plan fit DIR` reads the losses. docs/planning.md has the rules by which layers,
learning rate and batch size are scaled."""

MOST_RUNS = 1000


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = build_sweep_parser().parse_intermixed_args(argv)
    check_ladder(args)
    runtime.check_output_file("--json", args.json)
    run_config = config.load(args.config, args.edits, args.data)
    out = Path(args.out)

    from jaxlm import data, run_checks
    from jaxlm.plan import scaling_laws, sweep

    scaling_laws.check_scaling_law(run_config)
    run_checks.check_trainable(run_config)
    run_checks.check_sample(run_config)
    if args.run:
        data.check_files(run_config.data)
    common: dict[str, Any] = {"evaluation_tokens": args.evaluation_tokens}
    common["tokens_per_parameter"] = args.tokens_per_parameter
    if args.ladder == "size":
        runs = sweep.plan_sizes(run_config, args.widths, **common)
    else:
        runs = sweep.plan_isoflop(
            run_config, args.budgets, widths=args.widths or (), sizes=args.sizes or 4, **common
        )

    sweep.write_ladder(out, runs, args.config)
    print(format_ladder(out, runs), flush=True)
    if args.json is not None:
        runtime.write_json(args.json, {"runs": [sweep.describe_run(run) for run in runs]})

    code = 0
    if args.run:
        from jaxlm.plan.sweep_run import train_ladder

        code = train_ladder(out, runs)
    print(next_command(out, argv, code, is_trained=args.run))
    return code


def check_ladder(args: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together."""
    if args.ladder == "size":
        if not args.widths:
            raise UserError("--ladder size needs --widths")
        if args.budgets:
            raise UserError("--budgets: a size ladder has those of --tokens-per-parameter")
    elif not args.budgets:
        raise UserError("--budgets: an isoFLOP ladder needs them, such as 1e15,3e15,1e16")
    if args.widths and args.sizes:
        raise UserError("--sizes and --widths: give one of the two")

    count = len(args.widths or range(args.sizes or 4)) * len(args.budgets or [0])
    if count > MOST_RUNS:
        raise UserError(f"the ladder has {count} runs: at most {MOST_RUNS} are written")


def format_ladder(out: Path, runs: Sequence["LadderRun"]) -> str:
    """Return the table of the runs, and what they take together."""
    from jaxlm.card.loss_plot import short_number
    from jaxlm.columns import align_columns
    from jaxlm.plan.scaled_config import describe_changes

    titles = ["width", "layers", "heads", "batch", "steps", "warmup", "learning rate"]
    rows = [["run", "parameters", "tokens", "FLOPs", *titles]]
    for run in runs:
        *numbers, rate = describe_changes(run.config).values()
        counts = [short_number(run.parameters), short_number(run.tokens), f"{run.flops:.3g}"]
        rows.append([run.name, *counts, *map(str, numbers), f"{rate:.3g}"])

    total = sum(run.flops for run in runs)
    return (
        f"{align_columns(rows)}\n{out}: {len(runs)} runs, {total:.3g} FLOPs together, "
        f"up to {short_number(max(run.tokens for run in runs))} tokens of text"
    )


def next_command(out: Path, argv: Sequence[str], code: int, *, is_trained: bool) -> str:
    """Return the line that says how to go on."""
    folder = shlex.quote(str(out))
    if code == runtime.STOPPED:
        return f"go on with\n  {shlex.join(['python', '-m', 'jaxlm.plan', 'sweep', *argv])}"
    if is_trained:
        return f"fit with\n  python -m jaxlm.plan fit {folder} --picture {folder}/fit.svg"
    return (
        "train them with --run, or each with\n"
        f"  python -m jaxlm.train --config {folder}/RUN/config.json"
    )


def build_sweep_parser() -> runtime.Parser:
    """Return the parser of the command's arguments."""
    parser = runtime.Parser(
        prog="python -m jaxlm.plan sweep",
        description="Write, and with --run train, a ladder of runs for scaling laws.",
        epilog=SWEEP_EXAMPLES,
    )
    runtime.add_config_arguments(parser, data_use="train on", example="training.batch_size=16")
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="the folder of the runs")
    add(
        "--ladder",
        choices=("isoflop", "size"),
        default="isoflop",
        help="isoflop: each size with each budget; size: each size once, tokens in proportion",
    )
    add(
        "--budgets",
        type=number_list,
        metavar="C,C,...",
        help="training FLOPs, such as 1e15,3e15,1e16",
    )
    add("--sizes", type=size_count, metavar="N", help="so many around each budget's optimum (4)")
    add("--widths", type=width_list, metavar="W,W,...", help="instead: the widths of the models")
    add(
        "--tokens-per-parameter",
        type=quantity,
        default=20.0,
        metavar="R",
        help="size ladder: of each run; isoFLOP: where the sizes have their middle (20)",
    )
    add(
        "--evaluation-tokens",
        type=token_count,
        default=2**17,
        metavar="N",
        help="tokens that the evaluation at the end reads (131072)",
    )
    add("--run", action="store_true", help="train the runs that are not finished")
    add("--json", metavar="FILE", help="write the runs and their scaled values")
    return parser


def number_list(text: str) -> list[float]:
    """Return finite numbers above 0."""
    return [quantity(part) for part in text.split(",")]


def width_list(text: str) -> list[int]:
    """Return whole numbers above 0."""
    return [whole_number(part, 1, 2**17) for part in text.split(",")]


def size_count(text: str) -> int:
    """Return a number of sizes. A parabola needs three."""
    return whole_number(text, 3, 64)


def token_count(text: str) -> int:
    """Return a number of tokens."""
    return whole_number(text, 1, 2**40)


def whole_number(text: str, low: int, high: int) -> int:
    """Return a whole number within its bounds."""
    number = quantity(text)
    if not number.is_integer() or not low <= number <= high:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from {low} to {high:,}, got {text!r}"
        )
    return int(number)
