"""python -m jaxlm.plan memory: the bytes that a training step takes on each GPU, and what fits.

This is the command alone. What traces a step is imported once the platform is set up, as in
`train.py`.
"""

import argparse
import math
import re
import sys
from collections.abc import Sequence

from jaxlm import config, hardware, run_checks, runtime
from jaxlm.config import Config, UserError
from jaxlm.hardware import Cluster
from jaxlm.plan.memory_report import format_state, state_document
from jaxlm.plan.set_up import leave_gpus_alone
from jaxlm.plan.state_bytes import STAGES, BytesPerParameter

MEMORY_EXAMPLES = """examples:
  python -m jaxlm.plan memory --config configs/llama_1b.py --gpu h100 --gpus 8
  python -m jaxlm.plan memory --config configs/gpt2_124m.py --gpu rtx4090 --gpus 1 \\
      parallel.zero=0 training.microbatches=40 --lengths 1024,4096
  python -m jaxlm.plan memory --parameters 7.5e9 --gpus 64 --zero 1 --bytes 2,2,12 --gpu a100

It needs no GPU, no data and no CUDA: the step is traced, not compiled. docs/planning.md explains
the figures and compares them with the compiler's."""

DEFAULT_GPU, DEFAULT_GPUS = "h100", 8
MOST_PARAMETERS = 1e15
MOST_LENGTHS = 8


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = build_memory_parser().parse_intermixed_args(argv)
    runtime.check_output_file("--json", args.json)
    check_modes(args)
    cluster = read_cluster(args)
    hardware.usable_memory(cluster.accelerator)  # a wrong share of memory is known at once

    if args.parameters is not None:
        zero, each = args.zero or 0, args.bytes or BytesPerParameter()
        check_stage(zero, cluster.gpus)
        print(format_state(args.parameters, cluster, zero, each))
        document = state_document(args.parameters, cluster, zero, each)
    else:
        run_config = config.load(args.config, args.edits, args.data)
        document = plan_config(run_config, cluster, args.lengths or ())
    if args.json is not None:
        runtime.write_json(args.json, document)
    return 0


def plan_config(run_config: Config, cluster: Cluster, lengths: Sequence[int]) -> dict:
    """Print the report on a config and return it as plain data.

    Raises UserError before jax is imported where the config does not fit the cluster.
    """
    run_checks.check_trainable(run_config)
    run_checks.check_sample(run_config)
    run_checks.check_mesh(run_config, cluster.gpus, first_step=0)
    leave_gpus_alone(run_config.runtime)
    print(f"tracing the step for {cluster.gpus} x {cluster.accelerator.name}", file=sys.stderr)

    from jaxlm.plan.memory_plan import build_memory_document, format_plan, plan_memory

    plan = plan_memory(run_config, cluster, lengths)
    print(format_plan(plan))
    return build_memory_document(plan)


def check_modes(args: argparse.Namespace) -> None:
    """Raise UserError where the arguments of a config and of bare parameters are mixed."""
    if (args.config is None) == (args.parameters is None):
        raise UserError("give either --config FILE or --parameters N")
    alone = {"--zero": args.zero, "--bytes": args.bytes}
    with_config = {"--data": args.data, "--lengths": args.lengths, "key=value": args.edits or None}
    wrong, other = (alone, "--parameters") if args.config else (with_config, "--config")
    for name, value in wrong.items():
        if value is not None:
            hint = "; with a config it is parallel.zero=N" if name == "--zero" else ""
            raise UserError(f"{name}: goes with {other}{hint}")


def read_cluster(args: argparse.Namespace) -> Cluster:
    """Return the cluster that --gpu and --gpus name."""
    has_count = re.search(r":|^\d+x", args.gpu) is not None
    if has_count and args.gpus is not None:
        raise UserError(f"--gpus: {args.gpu!r} says already how many there are")
    cluster = hardware.parse_cluster(args.gpu, args.hardware)
    return cluster if has_count else cluster._replace(gpus=args.gpus or DEFAULT_GPUS)


def check_stage(zero: int, gpus: int) -> None:
    """Raise UserError for a stage that has nothing to split."""
    if zero > 0 and gpus == 1:
        raise UserError(f"--zero: stage {zero} splits the state over several GPUs, got --gpus 1")


# Values of arguments


def parameter_count(text: str) -> float:
    """Return a number of parameters: 7.5e9, 7.5B or 124M."""
    units = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    factor = units.get(text[-1:].upper(), 1.0)
    try:
        number = float(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        number = math.nan
    if not 1 <= number <= MOST_PARAMETERS:
        raise argparse.ArgumentTypeError(f"must be a number like 7.5e9 or 7.5B, got {text!r}")
    return number


def gpu_count(text: str) -> int:
    """Return a number of GPUs."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= hardware.MOST_GPUS:
        limit = f"{hardware.MOST_GPUS:,}"
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {limit}, got {text!r}")
    return int(text)


def stage(text: str) -> int:
    """Return a ZeRO stage."""
    if text not in map(str, STAGES):
        raise argparse.ArgumentTypeError(f"must be 0, 1, 2 or 3, got {text!r}")
    return int(text)


def bytes_per_parameter(text: str) -> BytesPerParameter:
    """Return the bytes per parameter of weights, gradients and optimizer: '2,2,12'."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(0 <= number <= 64 for number in numbers) or not sum(numbers):
        reason = "must be three numbers: weights, gradients, optimizer, as 2,2,12"
        raise argparse.ArgumentTypeError(f"{reason}; got {text!r}")
    return BytesPerParameter(*numbers)


def sequence_lengths(text: str) -> tuple[int, ...]:
    """Return the lengths of sequences: '1024,4096'."""
    parts = text.split(",")
    if len(parts) > MOST_LENGTHS or not all(p.isascii() and p.isdigit() and int(p) for p in parts):
        reason = f"must be up to {MOST_LENGTHS} lengths in tokens, as 1024,4096"
        raise argparse.ArgumentTypeError(f"{reason}; got {text!r}")
    return tuple(map(int, parts))


def build_memory_parser() -> runtime.Parser:
    """Return the parser of the command's arguments."""
    parser = runtime.Parser(
        prog="python -m jaxlm.plan memory",
        description="Print the bytes that a training step takes on each GPU, whether that fits, "
        "and what would.",
        epilog=MEMORY_EXAMPLES,
    )
    runtime.add_config_arguments(
        parser, data_use="no data is read; training would take", example="parallel.zero=3"
    )
    for action in parser._actions:
        if "--config" in action.option_strings:
            action.required = False
    parser.add_argument(
        "--parameters",
        type=parameter_count,
        metavar="N",
        help="without a config: the state of a model of so many parameters (7.5e9 or 7.5B)",
    )
    parser.add_argument(
        "--gpu", default=DEFAULT_GPU, metavar="NAME", help="a GPU, or a cluster as h100:8x8"
    )
    parser.add_argument("--gpus", type=gpu_count, metavar="N", help=f"GPUs ({DEFAULT_GPUS})")
    parser.add_argument("--zero", type=stage, metavar="N", help="ZeRO stage, with --parameters (0)")
    parser.add_argument(
        "--bytes",
        type=bytes_per_parameter,
        metavar="W,G,O",
        help="bytes per parameter of weights, gradients and optimizer, with --parameters (4,4,8)",
    )
    parser.add_argument(
        "--lengths",
        type=sequence_lengths,
        metavar="N,N",
        help="sequence lengths to compare, with --config",
    )
    parser.add_argument("--hardware", metavar="FILE", help="JSON with GPUs of your own")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    return parser
