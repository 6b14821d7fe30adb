"""python -m jaxlm.plan budget: what a compute budget buys, and what a model costs."""

import argparse
import json
import math
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxlm import config, runtime
from jaxlm.config import UserError
from jaxlm.config.model import Family

if TYPE_CHECKING:
    from jaxlm.plan.question import Question

BUDGET_EXAMPLES = """examples:
  python -m jaxlm.plan budget --flops 5.76e23
  python -m jaxlm.plan budget --gpus 8xh100 --days 7 --mfu 0.4 --price 2.50
  python -m jaxlm.plan budget --pf-days 10 --data-tokens 5B --vocabulary-size 50257
  python -m jaxlm.plan budget --parameters 7B --tokens 2T --gpus 64xh100
  python -m jaxlm.plan budget --loss 2.2 --parameters 3B
  python -m jaxlm.plan budget --flops 1e20 --family encoder
  python -m jaxlm.plan budget --config configs/llama_1b.py --gpus 8xh100 --price 2.50

Numbers may be written as 5.76e23, 1,000,000 or 1.4T (K, M, B, T). A budget is --flops, --pf-days,
or --gpus with --days; with it, --parameters or --tokens fixes one of the two. Without one,
--parameters, --tokens and --loss ask what a model takes: any one of them, or two. --gpus then tells
how long; --gpus NAME with --days how many GPUs; --gpus 8xNAME with --days which MFU.
docs/planning.md explains the laws."""

CONFIG_DECIDES = (
    *("flops", "pf_days", "parameters", "tokens", "loss"),
    *("family", "vocabulary_size", "sequence_length"),
)
FAMILIES: dict[str, Family] = {
    "decoder": "decoder",
    "encoder": "encoder",
    "encoder-decoder": "encoder_decoder",
    "encoder_decoder": "encoder_decoder",
}
SUFFIXES = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
LARGEST = 1e35  # beyond every question, and far within float64


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = build_budget_parser().parse_intermixed_args(argv)
    if args.json != "-":
        runtime.check_output_file("--json", args.json)
    question, traced = build_question(args), None
    if args.config is not None:
        question, traced = ask_about_config(args, question)
    elif args.edits:
        raise UserError(f"{args.edits[0]!r}: edits need --config, whose values they change")

    from jaxlm.plan.budget import plan_budget
    from jaxlm.plan.budget_report import build_plan_document, format_plan

    plan = plan_budget(question)
    document = build_plan_document(plan)
    if traced is not None:
        document["traced_flops_per_token"] = traced
    if args.json == "-":
        print(json.dumps(document, indent=2, allow_nan=False))
        return 0
    print(format_plan(plan))
    if args.json is not None:
        runtime.write_json(args.json, document)
    return 0


def build_question(args: argparse.Namespace) -> "Question":
    """Return the question that the arguments ask. Raises UserError for unknown GPUs."""
    from jaxlm import hardware
    from jaxlm.plan.budget import PETAFLOP_DAY
    from jaxlm.plan.question import Question

    accelerator = gpus = None
    if args.gpus is not None:
        cluster = hardware.parse_cluster(args.gpus, args.hardware)
        accelerator = cluster.accelerator
        # A name alone is one GPU to `parse_cluster`. Here it leaves their number open.
        gpus = cluster.gpus if re.match(r"\d+x", args.gpus) or ":" in args.gpus else None
    elif args.hardware is not None:
        raise UserError("--hardware: needs --gpus, which names an entry of the file")

    flops = args.flops if args.pf_days is None else args.pf_days * PETAFLOP_DAY
    return Question(
        flops=flops,
        parameters=args.parameters,
        tokens=args.tokens,
        loss=args.loss,
        data_tokens=args.data_tokens,
        family=FAMILIES[args.family or "decoder"],
        vocabulary_size=args.vocabulary_size or 32_768,
        sequence_length=args.sequence_length,
        recompute=args.recompute,
        approach=args.approach,
        accelerator=accelerator,
        gpus=gpus,
        days=args.days,
        mfu=args.mfu,
        price=args.price,
    )


def ask_about_config(args: argparse.Namespace, question: "Question") -> tuple["Question", float]:
    """Return the question what a config costs, and the FLOPs per token of its traced step."""
    for name in CONFIG_DECIDES:
        if getattr(args, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')}: --config decides it; leave one of them out"
            )
    run_config = config.load(args.config, args.edits)

    # Only shapes are looked at: a GPU of this machine is left alone.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from jaxlm.plan.recipe_question import ask_about

    return ask_about(run_config, question)


def build_budget_parser() -> runtime.Parser:
    """Return the parser of the command's arguments."""
    parser = runtime.Parser(
        prog="python -m jaxlm.plan budget",
        description="Say what a compute budget buys, or what a model or a loss takes.",
        epilog=BUDGET_EXAMPLES,
    )
    add = parser.add_argument
    add("edits", nargs="*", metavar="key=value", help="of the config: training.steps=1000")
    add("--config", metavar="FILE", help="what the training of this config costs")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--flops", type=quantity, metavar="N", help="FLOPs of the whole training")
    budget.add_argument("--pf-days", type=quantity, metavar="N", help="petaFLOP/s-days, 8.64e19")
    add("--parameters", type=quantity, metavar="N", help="of the model, its vocabulary included")
    add("--tokens", type=quantity, metavar="N", help="that the model reads, epochs included")
    add("--loss", type=quantity, metavar="X", help="nats per token to be reached")
    add("--data-tokens", type=quantity, metavar="N", help="distinct tokens that there are")

    add(
        "--family",
        choices=list(FAMILIES),
        metavar="F",
        help="decoder|encoder|encoder-decoder (decoder)",
    )
    add("--vocabulary-size", type=size, metavar="N", help="of the shape (32768)")
    add(
        "--sequence-length",
        type=size,
        metavar="N",
        help="tokens of a sample (decoders 2048, others 512)",
    )
    add(
        "--approach",
        choices=("1", "2", "3", "refit"),
        default="refit",
        metavar="A",
        help="1|2|3|refit: the law whose optimum gets a shape (refit)",
    )
    add("--recompute", action="store_true", help="the forward pass is computed again (remat)")

    add("--gpus", metavar="8xh100", help="GPUs: h100:64, h100:8x8 (nodes x GPUs), or a name alone")
    add("--days", type=quantity, metavar="N", help="that they run")
    add(
        "--mfu",
        type=share,
        metavar="X",
        help="share of their peak that all FLOPs reach, recomputed ones included (0.4)",
    )
    add("--price", type=quantity, metavar="X", help="of a GPU-hour, in any currency")
    add("--hardware", metavar="FILE", help="JSON file with GPUs of your own")
    add("--json", metavar="FILE", help="write the plan, with all its digits (-: to stdout)")
    return parser


def quantity(text: str) -> float:
    """Return a positive number such as 5.76e23, 1,000,000 or 1.4T."""
    match = re.fullmatch(r"(\d[\d,_]{0,60}\.?\d{0,60}(?:[eE][+-]?\d{1,3})?)([KMBT]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"must be a number above 0, such as 5.76e23 or 1.4T, got {text!r}"
        )
    value = float(re.sub("[,_]", "", match[1])) * SUFFIXES[match[2]]
    if not 0 < value <= LARGEST:
        bound = "above 0" if value <= 0 else f"at most {LARGEST:g}"
        raise argparse.ArgumentTypeError(f"must be {bound}, got {text!r}")
    return value


def share(text: str) -> float:
    """Return a share of 1, above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text!r}")
    return value


def size(text: str) -> int:
    """Return a whole number from 1 to 2^24."""
    value = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if not 1 <= value <= 1 << 24:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 1 to {1 << 24:,}, got {text!r}"
        )
    return value
