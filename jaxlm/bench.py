"""python -m jaxlm.bench --config FILE [key=value ...]: measure how fast a config trains.

This is the command alone; `benchmark/` does the work. It is imported once the platform is set up,
as in `train.py`.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm import config, data, runtime
from jaxlm.benchmark.start_up import IMPORT, StartUp
from jaxlm.config import ConfigError, UserError

if TYPE_CHECKING:
    from jaxlm.benchmark.figures import Figures
    from jaxlm.benchmark.measure import Options

BENCH_EXAMPLES = """examples:
  python -m jaxlm.bench --config configs/quickstart.py
  python -m jaxlm.bench --config configs/gpt2_124m.py --synthetic training.batch_size=64 --json -
  python -m jaxlm.bench --config configs/quickstart.py --profile trace --devices 2

It prints the time to the first step, the time of a step, tokens/s, FLOPs, MFU, memory, and the
share of the step by part. A second process first measures a start without a compilation cache; its
cache, which is removed afterwards, is the one that this process starts from. Nothing is written but
the token store, as in training, and what --json and --profile name. docs/performance.md explains
the figures."""

MOST_STEPS = 100_000


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    start_up = StartUp()
    args = build_bench_parser().parse_intermixed_args(argv)
    if args.json != "-":
        runtime.check_output_file("--json", args.json)
    check_profile_folder(args.profile)
    run_config = config.load(args.config, all_edits(args), args.data)
    if runtime.detect_cluster(run_config.runtime).processes > 1:
        raise UserError("bench measures one process: set runtime.processes=1")

    # Only the figures may be on stdout where they are JSON.
    quiet = args.json == "-" or args.start_only is not None
    with contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext():
        figures = run(run_config, args, argv, start_up)
    if figures is None:
        return 0

    from jaxlm.benchmark.figures import build_document
    from jaxlm.benchmark.report import format_figures

    document = build_document(figures)
    if args.json == "-":
        print(json.dumps(document, indent=2, allow_nan=False))
        return 0
    print(f"\n{format_figures(figures)}")
    if args.json is not None:
        runtime.write_json(args.json, document)
    return 0


def all_edits(args: argparse.Namespace) -> list[str]:
    """Return the edits of the config, with that of --devices."""
    return [*args.edits, *([f"runtime.devices={args.devices}"] if args.devices else [])]


def run(
    run_config: config.Config, args: argparse.Namespace, argv: Sequence[str], start_up: StartUp
) -> "Figures | None":
    """Return the figures; None in a process that measures its start alone."""
    run_config = check_config(run_config, start_up, needs_data=not args.synthetic)
    store = None if args.synthetic else prepare_store(run_config, args.keep, start_up)

    with cold_start(args, argv) as (cache, cold_seconds):
        if cache is not None:
            run_config = dataclasses.replace(
                run_config, runtime=dataclasses.replace(run_config.runtime, compilation_cache=cache)
            )
        runtime.configure(run_config.runtime, trains=True)
        with start_up.measure(IMPORT):
            from jaxlm.benchmark import measure

        with runtime.memory_errors(runtime.memory_advice(args.config, all_edits(args))):
            if args.start_only is not None:
                measure.start(measure.settle_batch_size(run_config), store, start_up)
                Path(args.start_only).write_text(json.dumps(start_up.seconds))
                return None
            figures = measure.measure(run_config, store, build_options(args), start_up)
        return figures._replace(cold_start_up=cold_seconds)


def check_config(
    run_config: config.Config, start_up: StartUp, *, needs_data: bool
) -> config.Config:
    """Return the config with the precision and devices that suit this CPU, if it asks for them.

    Raises ConfigError where it can't be trained, or its data is missing, before jax is imported.
    """
    with start_up.measure(IMPORT):
        from jaxlm import run_checks

    run_checks.check_trainable(run_config)
    run_checks.check_sample(run_config)
    if needs_data:
        try:
            data.check_files(run_config.data)
        except ConfigError as error:
            hint = "--synthetic measures on random text instead"
            raise ConfigError(error.path, f"{error.reason} ({hint})") from error

    run_config = runtime.settle_cpu(run_config)
    devices = runtime.count_devices(run_config.runtime, processes=1)
    if devices is not None:
        # Where the batch size changes in training, the last one is measured.
        last = max((step for step, _ in run_config.training.batch_schedule), default=0)
        run_checks.check_mesh(run_config, devices, first_step=last)
    return run_config


def prepare_store(run_config: config.Config, keep: str | None, start_up: StartUp) -> "data.Store":
    """Return the token store of a config, prepared if it is not there yet.

    `keep` names the function that chooses documents. The time of a preparation is not counted.
    """
    with start_up.measure(IMPORT):
        from jaxlm.data.rules import load_predicate

    return data.prepare(
        run_config.data,
        run_config.tokenizer,
        run_config.tokenizer_vocabulary_size,
        lambda line: print(line, flush=True),
        needs=run_config.objective.needs,
        examples=data.example_spec(run_config),
        predicate=None if keep is None else load_predicate(keep),
    )


@contextlib.contextmanager
def cold_start(
    args: argparse.Namespace, argv: Sequence[str]
) -> Iterator[tuple[str | None, dict[str, float]]]:
    """Measure the start of another process without a compilation cache.

    Yields the folder of the cache that it has filled, and the seconds of its parts; (None, {})
    where this is not asked for. The process ends before this one uses a device.
    """
    if args.no_cold_start or args.start_only is not None:
        yield None, {}
        return

    with tempfile.TemporaryDirectory(prefix="jaxlm-bench-") as folder:
        cache, seconds = Path(folder) / "cache", Path(folder) / "seconds.json"
        edit = f"runtime.compilation_cache={cache}"
        command = [sys.executable, "-m", "jaxlm.bench", *argv, "--start-only", str(seconds), edit]
        print("measuring a start without a compilation cache", flush=True)
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=child_paths()
        )
        if done.returncode:
            # Its last line is the error that this process would end with.
            line = (done.stderr.strip().splitlines() or ["ended without a message"])[-1]
            message = line.removeprefix("error: ")
            if done.returncode != UserError.exit_code:
                message = f"the process of the cold start ended with {done.returncode}: {message}"
            raise UserError(message)
        yield str(cache), json.loads(seconds.read_text())


def child_paths() -> dict[str, str]:
    """Return the environment of a process that imports the same jaxlm as this one."""
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def check_profile_folder(path: str | None) -> None:
    """Raise UserError for a folder that a trace can't be written to."""
    if path is None:
        return
    folder = Path(path)
    try:
        if not path or (folder.exists() and not folder.is_dir()):
            raise UserError(f"--profile: {path!r} is no folder")
        if not folder.exists() and not folder.parent.is_dir():
            raise UserError(f"--profile: {folder.parent}: no such folder")
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL
        raise UserError(f"--profile: {getattr(error, 'strerror', error)}") from error


def build_options(args: argparse.Namespace) -> "Options":
    """Return how the arguments want the config measured."""
    from jaxlm.benchmark.measure import Options

    profile = None if args.profile is None else Path(args.profile)
    return Options(steps=args.steps, warm_up=args.warm_up, profile=profile)


def build_bench_parser() -> runtime.Parser:
    """Return the parser of the command's arguments."""
    parser = runtime.Parser(
        prog="python -m jaxlm.bench",
        description="Measure how fast a config trains here, and what its step waits for.",
        epilog=BENCH_EXAMPLES,
    )
    runtime.add_config_arguments(parser, data_use="read", example="training.batch_size=16")
    runtime.add_keep_argument(parser)
    add = parser.add_argument
    add("--devices", metavar="N", help="the same as runtime.devices=N")
    add("--steps", type=count_of_steps, default=20, metavar="N", help="steps that are timed (20)")
    add(
        "--warm-up",
        type=count_of_steps,
        default=3,
        metavar="N",
        help="steps before them, beside the first (3)",
    )
    add("--synthetic", action="store_true", help="random text cut by the objective: needs no data")
    add(
        "--no-cold-start",
        action="store_true",
        help="no second process; start with training's cache",
    )
    add("--profile", metavar="DIR", help="keep the trace there, for TensorBoard and Perfetto")
    add("--json", metavar="FILE", help="write the figures, with all their digits (-: to stdout)")
    add("--start-only", metavar="FILE", help=argparse.SUPPRESS)  # of the second process
    return parser


def count_of_steps(text: str) -> int:
    """Return a number of steps."""
    number = int(text) if text.isdecimal() and text.isascii() and len(text) < 12 else 0
    if not 1 <= number <= MOST_STEPS:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 1 to {MOST_STEPS:,}, got {text!r}"
        )
    return number


if __name__ == "__main__":
    runtime.run(main)
