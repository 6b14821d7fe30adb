"""python -m jaxlm.plan compile --config FILE --target h100:64: compile a step for GPUs not here.

This is the command alone. What compiles is imported once the platform is set up, as in `train.py`.
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence

from jaxlm import config, hardware, run_checks, runtime
from jaxlm.config import Config, UserError
from jaxlm.hardware import Cluster
from jaxlm.plan.set_up import leave_gpus_alone
from jaxlm.plan.step_sweep import SWEPT, SweepValues, list_variants, parse_values
from jaxlm.runtime.platform import set_jax_option

COMPILE_EXAMPLES = """examples:
  python -m jaxlm.plan compile --config configs/llama2_7b.py --target h100:64
  python -m jaxlm.plan compile --config configs/gpt2_124m.py --target rtx4090 \\
      training.batch_size=8 training.microbatches=1 --price 0.4 --json step.json
  python -m jaxlm.plan compile --config configs/llama_1b.py --target a100:2x8 --sweep \\
      --zero 1,3 --tensor 1,2 --remat none,full

It needs no GPU and no data: pip install "jaxlm[cuda]". docs/planning.md explains the figures."""

PLUGIN = "jax_cuda13_plugin"
MOST_PRICE = 1e6


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = build_compile_parser().parse_intermixed_args(argv)
    runtime.check_output_file("--json", args.json)
    values = read_sweep_values(args)
    cluster = hardware.parse_cluster(args.target, args.hardware)
    run_config = config.load(args.config, args.edits, args.data)
    if args.sweep:
        return sweep(run_config, cluster, values, args.json, args.price)
    return rehearse(run_config, cluster, args.json, args.price)


def rehearse(
    run_config: Config, cluster: Cluster, json: str | None = None, price: float | None = None
) -> int:
    """Compile the step of a config for a cluster, print its figures and return the exit code.

    `json` is the file to write them to, `price` that of a GPU-hour. Raises UserError before jax is
    imported where the config does not fit the cluster.
    """
    check_fit(run_config, cluster)
    prepare_jax(run_config)
    announce(f"compiling the step for {cluster.gpus} x {cluster.accelerator.name}")

    from jaxlm.plan.compile_report import format_plan
    from jaxlm.plan.compile_step import compile_step
    from jaxlm.plan.step_plan import build_step_document, plan_step

    plan = plan_step(compile_step(run_config, cluster), price)
    print(format_plan(plan))
    if json is not None:
        runtime.write_json(json, build_step_document(plan))
    return 0


def sweep(
    run_config: Config,
    cluster: Cluster,
    values: SweepValues,
    json: str | None = None,
    price: float | None = None,
) -> int:
    """Compile the variants of a config for a cluster, print a table and return the exit code."""
    run_checks.check_trainable(run_config)
    variants = list_variants(run_config, cluster, values)
    prepare_jax(run_config)
    announce(f"compiling {len(variants)} steps for {cluster.gpus} x {cluster.accelerator.name}")

    from jaxlm.plan.compile_sweep import build_sweep_document, compile_variants, format_sweep

    results = compile_variants(variants, cluster, price)
    print(format_sweep(results))
    if json is not None:
        runtime.write_json(json, build_sweep_document(results))
    return 0


def check_fit(run_config: Config, cluster: Cluster) -> None:
    """Raise UserError for a config that can't be trained on a cluster. Imports no jax."""
    run_checks.check_trainable(run_config)
    run_checks.check_sample(run_config)
    run_checks.check_mesh(run_config, cluster.gpus, first_step=0)


def prepare_jax(run_config: Config) -> None:
    """Set jax up to compile for GPUs that it does not use. Raises UserError without the plugin."""
    if importlib.util.find_spec(PLUGIN) is None:
        raise UserError(
            'compiling for GPUs takes the CUDA plugin of jax: pip install "jaxlm[cuda]"'
        )

    leave_gpus_alone(run_config.runtime)
    # A program from a cache has no memory analysis.
    set_jax_option("jax_enable_compilation_cache", False)


def announce(line: str) -> None:
    """Print what takes a while to stderr."""
    print(line, file=sys.stderr, flush=True)


def read_sweep_values(args: argparse.Namespace) -> SweepValues:
    """Return the values of --zero, --tensor, --microbatches and --remat.

    Raises UserError for wrong ones, and for any without --sweep.
    """
    given = {name: getattr(args, name) for name in SWEPT if getattr(args, name) is not None}
    if given and not args.sweep:
        raise UserError(f"--{next(iter(given))}: lists values for --sweep, which is not there")
    return SweepValues(**{name: parse_values(name, text) for name, text in given.items()})


def price_of(text: str) -> float:
    """Return the price of a GPU-hour."""
    try:
        price = float(text)
    except ValueError:
        price = -1.0
    if not 0 <= price <= MOST_PRICE:
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, got {text!r}")
    return price


def build_compile_parser() -> runtime.Parser:
    """Return the parser of the command's arguments."""
    parser = runtime.Parser(
        prog="python -m jaxlm.plan compile",
        description="Compile the training step of a config for GPUs that are not there, and print "
        "its memory, collectives, time and price.",
        epilog=COMPILE_EXAMPLES,
    )
    runtime.add_config_arguments(
        parser, data_use="no data is read; training would take", example="parallel.zero=3"
    )
    add = parser.add_argument
    add("--target", required=True, metavar="GPUS", help="h100:64, h100:8x8 (nodes x GPUs), 8xh100")
    add("--price", type=price_of, metavar="P", help="of a GPU-hour, for the cost of the run")
    add("--hardware", metavar="FILE", help="JSON with more GPUs, or other links (docs/planning.md)")
    add("--json", metavar="FILE", help="write the figures, with all their digits")
    add("--sweep", action="store_true", help="a table of variants, sorted by tokens/s")
    for name, use in SWEPT.items():
        add(f"--{name}", metavar="LIST", help=f"{use} of the sweep, such as {SWEPT_EXAMPLES[name]}")
    return parser


SWEPT_EXAMPLES = {"zero": "0,3", "tensor": "1,2", "microbatches": "1,8", "remat": "none,full"}
