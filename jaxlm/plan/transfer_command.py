"""python -m jaxlm.plan transfer --config FILE --widths W,W,...: the best rate at each width.

This is the command alone. What trains is imported once the platform is set up, as in `train.py`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jaxlm import config, runtime
from jaxlm.config import Config, ConfigError, UserError
from jaxlm.files import write_atomically
from jaxlm.plan.sweep_command import whole_number, width_list

TRANSFER_EXAMPLES = """examples:
  python -m jaxlm.plan transfer --config configs/nanogpt_shakespeare.py --data input.txt \\
      --widths 64,128,256,512 model.parametrization=mup model.mup_base_width=128 \\
      training.steps=100 --compare --picture transfer.svg

Each width is trained with each rate, here, on the same batches. Nothing is kept but what --json and
--picture name. docs/scaling.md explains the results."""

MOST_RATES = 64


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = build_transfer_parser().parse_intermixed_args(argv)
    runtime.check_output_file("--json", args.json)
    runtime.check_output_file("--picture", args.picture)
    run_config = config.load(args.config, args.edits, args.data)
    configs = list_configs(run_config, args.widths, compare=args.compare)

    from jaxlm import data

    data.check_files(run_config.data)
    runtime.configure(run_config.runtime, trains=True)

    from jaxlm import trainer
    from jaxlm.columns import align_columns
    from jaxlm.plan import transfer
    from jaxlm.plan.transfer_plot import draw_transfer

    rates = transfer.list_rates(run_config.optimizer.learning_rate, args.rates)
    store = trainer.prepare_store(run_config, None)
    results = []
    for one in configs:
        results.append(
            transfer.train_rates(one, store, rates, lambda line: print(line, flush=True))
        )
        if args.json is not None:
            runtime.write_json(args.json, transfer.describe_transfer(results))
    print(align_columns(transfer.format_transfer(results)))
    if args.picture is not None:
        write_atomically(Path(args.picture), draw_transfer(results))
    return 0


def list_configs(run_config: Config, widths: Sequence[int], *, compare: bool) -> list[Config]:
    """Return the configs that are trained. Raises UserError where one is not possible."""
    from jaxlm import run_checks
    from jaxlm.plan.scaled_config import scale_width

    if run_config.precision.compute == "float16":
        reason = "plan transfer has no loss scaling: compare rates in 'bfloat16' or 'float32'"
        raise ConfigError("precision.compute", reason)
    bases = [run_config]
    if compare:
        if run_config.model.parametrization == "standard":
            raise UserError("--compare: the recipe has model.parametrization='standard' itself")
        model = replace(run_config.model, parametrization="standard", mup_base_width=None)
        bases.append(replace(run_config, model=model))

    configs = [scale_width(base, width) for base in bases for width in sorted(widths)]
    for one in configs:
        run_checks.check_trainable(one)
        run_checks.check_sample(one)
    return configs


def build_transfer_parser() -> runtime.Parser:
    """Return the parser of the command's arguments."""
    parser = runtime.Parser(
        prog="python -m jaxlm.plan transfer",
        description="Train a recipe at several widths and learning rates, and compare the rates.",
        epilog=TRANSFER_EXAMPLES,
    )
    runtime.add_config_arguments(parser, data_use="train on", example="training.steps=100")
    add = parser.add_argument
    add("--widths", type=width_list, required=True, metavar="W,W,...", help="of the models")
    add(
        "--rates",
        type=rate_count,
        default=7,
        metavar="N",
        help="so many around optimizer.learning_rate, each twice the one before (7)",
    )
    add("--compare", action="store_true", help="also with the standard parametrization")
    add("--json", metavar="FILE", help="write the losses")
    add("--picture", metavar="FILE", help="draw the losses over the rates as an SVG")
    return parser


def rate_count(text: str) -> int:
    """Return a number of learning rates."""
    return whole_number(text, 1, MOST_RATES)
