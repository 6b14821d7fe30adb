"""python -m jaxlm.prepare --config FILE [key=value ...]: turn raw text into a token store.

`jaxlm.train` prepares what is missing by itself; this command does so alone, without jax, and
reports what the store holds. `prepare show` prints a sample as the model sees it.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm import config, data, runtime
from jaxlm.config import UserError
from jaxlm.files import expand_home, write_output

if TYPE_CHECKING:
    from jaxlm.data import Store
    from jaxlm.data.building.stages import Part
    from jaxlm.data.rules import Predicate
    from jaxlm.data.show import Place
    from jaxlm.types import Batch

EXAMPLE = """examples:
  python -m jaxlm.prepare --config configs/quickstart.py
  python -m jaxlm.prepare --config configs/quickstart.py --data 'c4/en/*.json.gz' \\
      data.on_error=skip --json report.json

  python -m jaxlm.prepare --config configs/quickstart.py --dry-run
  python -m jaxlm.prepare show --config configs/quickstart.py --sample 17

The store is shared by all runs of the same text, split and tokenizer. Its folder gets the report as
report.md, report.html and report.json. Where there are several sources, a table says what
training.steps read of each. docs/data.md lists the formats, jaxlm/config/data.py the keys."""

SHOW_EXAMPLE = """examples:
  python -m jaxlm.prepare show --config configs/quickstart.py --sample 17
  python -m jaxlm.prepare show --config runs/t5/config.json --sample 0 --split validation --table
  python -m jaxlm.prepare show stores/0123456789abcdef --sample 3

With a config, sample N is that of the run: tokens, targets, weights and masks, and the place in the
store that it was cut from. Of a store alone, sample N is document N. Spaces are shown as ·, line
breaks as \\n, bytes that are no whole character as <e6 97>."""

LARGEST_SAMPLE_MEGABYTES = 1e9
LARGEST_SAMPLE = (1 << 62) - 1


def main(argv: Sequence[str]) -> int:
    """Run the command, or the one that is named first, and return its exit code."""
    if argv and argv[0] == "show":
        return show(argv[1:])
    return run_module(argv[0], argv[1:]) if argv and argv[0] in MODULES else prepare(argv)


def prepare(argv: Sequence[str]) -> int:
    """Build the store of a config and report what it holds."""
    args = build_prepare_parser().parse_intermixed_args(argv)
    # A name of a file need not be UTF-8.
    getattr(sys.stdout, "reconfigure", lambda **_: None)(errors="backslashreplace")
    runtime.check_output_file("--json", args.json)
    if args.report is not None:
        check_report_folder(args.report)
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers: {args.workers}: must be at least 1")
    if not 0 < args.sample_megabytes <= LARGEST_SAMPLE_MEGABYTES:
        raise UserError(f"--sample-megabytes: {args.sample_megabytes:g}: must be above 0")
    run_config = config.load(args.config, args.edits, args.data)
    data.check_files(run_config.data)
    if args.dry_run:
        return estimate(run_config, args)

    if args.stage is not None or args.part is not None:
        return prepare_part(run_config, args)

    from jaxlm.data.run_mixture import format_run_mixture

    store = prepare_store(run_config, args.workers, load_predicate(args.keep))
    report = data.describe_store(store)
    print(data.format_report(report))
    # Printed alone: the report belongs to the store, which runs share.
    if mixture := format_run_mixture(run_config, store):
        print(f"\n{mixture}\n")

    if args.json is not None:
        runtime.write_json(args.json, report)
    write_report(report, store.path, args.report)
    return 0


def estimate(run_config: config.Config, args: Any) -> int:
    """Print what a preparation would yield, how large the store would be, and how long it takes."""
    from jaxlm.data.dry_run import estimate_preparation, format_estimate

    facts = estimate_preparation(
        run_config.data,
        run_config.tokenizer,
        run_config.tokenizer_vocabulary_size,
        run_config.objective.needs,
        args.sample_megabytes,
        load_predicate(args.keep),
        data.example_spec(run_config),
    )
    print(format_estimate(facts))
    if args.json is not None:
        runtime.write_json(args.json, facts)
    return 0


def prepare_part(run_config: config.Config, args: Any) -> int:
    """Do the part of a stage that this machine is to do."""
    from jaxlm.data.preparation import prepare_stage

    if args.stage is None:
        raise UserError("--part: is the share of a --stage")
    prepare_stage(
        run_config.data,
        run_config.tokenizer,
        run_config.tokenizer_vocabulary_size,
        lambda line: print(line, flush=True),
        stage=args.stage,
        part=parse_part(args.part),
        needs=run_config.objective.needs,
        examples=data.example_spec(run_config),
        workers=args.workers,
        predicate=load_predicate(args.keep),
    )
    return 0


def parse_part(text: str | None) -> "Part":
    """Return the part that "I/N" means: the I-th of N."""
    from jaxlm.data.building.stages import Part

    if text is None:
        return Part()
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"--part: {text}: must be I/N with I from 1 to N, such as 3/16")
    return Part(int(number), int(count))


def load_predicate(spec: str | None) -> "Predicate | None":
    """Return the function that `--keep` names."""
    from jaxlm.data import rules

    return None if spec is None else rules.load_predicate(spec)


def prepare_store(
    run_config: config.Config, workers: int | None = None, predicate: "Predicate | None" = None
) -> "Store":
    """Return the store of a config, built if it is not there yet."""
    return data.prepare(
        run_config.data,
        run_config.tokenizer,
        run_config.tokenizer_vocabulary_size,
        lambda line: print(line, flush=True),
        needs=run_config.objective.needs,
        examples=data.example_spec(run_config),
        workers=workers,
        predicate=predicate,
    )


def check_report_folder(path: str) -> None:
    """Raise UserError for a folder that the report can't be written to later."""
    folder = expand_home(path)
    try:
        if not path or "\0" in path or (folder.exists() and not folder.is_dir()):
            raise UserError(f"--report: {path!r} is no folder")
        if not folder.exists() and not folder.parent.is_dir():
            raise UserError(f"--report: {folder.parent}: no such folder")
        writable = folder if folder.exists() else folder.parent
    except OSError as error:  # a name that is too long
        raise UserError(f"--report: {path}: {error.strerror}") from error
    if not os.access(writable, os.W_OK):
        raise UserError(f"--report: {path}: Permission denied")


def write_report(report: dict[str, Any], store: Path, requested: str | None) -> None:
    """Write report.md, report.html and report.json to the folder that `--report` names.

    Without one they go to the store; where that can't be written, a line says so.
    """
    folder = store if requested is None else expand_home(requested)
    pages = {"report.md": data.build_markdown(report), "report.html": data.build_page(report)}
    try:
        folder.mkdir(exist_ok=True)
        for name, page in pages.items():
            write_output(folder / name, page)
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror}"
        if requested is not None:
            raise UserError(f"--report: {reason}") from error
        print(f"warning: no report: {reason}; --report DIR names another folder")
        return

    runtime.write_json(str(folder / "report.json"), report)
    print(f"report: {folder / 'report.html'}")


def build_prepare_parser() -> runtime.Parser:
    """Return the parser of the command's arguments."""
    parser = runtime.Parser(
        prog="python -m jaxlm.prepare",
        description="Read the sources of a config, train or load its tokenizer, store the tokens.",
        epilog=EXAMPLE,
    )
    runtime.add_config_arguments(parser, data_use="prepare", example="data.on_error=skip")
    parser.add_argument("--json", metavar="FILE", help="write the report's facts")
    parser.add_argument(
        "--report",
        metavar="DIR",
        help="write report.md, report.html and report.json there (the folder of the store)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="predict yield, size and time from a sample of the files, and leave nothing behind",
    )
    parser.add_argument(
        "--sample-megabytes",
        type=float,
        default=16.0,
        metavar="N",
        help="MB of the files that a dry run reads (16)",
    )
    runtime.add_keep_argument(parser)
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that share the work (one for each core)"
    )
    parser.add_argument(
        "--stage",
        choices=("files", "read", "tokenizer", "tokens"),
        help="do one stage alone, which several machines can share (launch/prepare_slurm.sh)",
    )
    parser.add_argument("--part", metavar="I/N", help="of a stage: the I-th of N parts")
    return parser


# --- show ---


def show(argv: Sequence[str]) -> int:
    """Print a sample of a run, or a document of a store, token by token."""
    args = build_show_parser().parse_intermixed_args(argv)
    check_show_arguments(args)
    runtime.check_output_file("--json", args.json)
    # Where the terminal lacks a character, show a question mark.
    getattr(sys.stdout, "reconfigure", lambda **_: None)(errors="replace")

    run_config = None
    if args.config is not None:
        from jaxlm import run_checks

        run_config = config.load(args.config, args.items, args.data)
        data.check_files(run_config.data)
        run_checks.check_sample(run_config)

    from jaxlm.data import show as samples

    if run_config is None:
        store = data.open_store(expand_home(args.items[0]))
        array, place = samples.locate_document(store, args.split, args.sample)
        names = samples.TokenNames(store.tokenizer)
        texts = samples.read_document(store, args.split, array, place)
        sides = {name: samples.describe_tokens(names, ids) for name, ids in texts.items()}
    else:
        store = prepare_store(run_config)
        batch, place = read_sample(run_config, store, args.split, args.sample)
        names, labels = samples.TokenNames(store.tokenizer), run_config.model.classifier.labels
        sides = samples.describe_batch(names, batch, labels)

    print(f"sample {args.sample:,}: {samples.format_place(place)}")
    for name, rows in sides.items():
        as_table = args.table or len(rows) <= samples.LONGEST_TABLE
        print(f"\n{name}, {len(rows):,} tokens")
        print("\n".join(samples.format_side(rows, as_table=as_table)))

    if args.json is not None:
        runtime.write_json(args.json, {"sample": args.sample, **place._asdict(), "sides": sides})
    return 0


def read_sample(
    run_config: config.Config, store: "Store", split: str, sample: int
) -> "tuple[Batch, Place]":
    """Return the batch of one sample of a run, and where in the store it comes from.

    In the validation split samples are all windows in a row, of which an evaluation reads some.
    """
    import numpy as np

    from jaxlm import objectives
    from jaxlm.data.mixture_plan import batch_schedule, plan_mixture
    from jaxlm.data.show import locate_sample
    from jaxlm.data.stream import open_stream, source_sizes
    from jaxlm.evaluation.validation import EvaluationWindows

    length = run_config.data.sequence_length
    objective = objectives.build(
        run_config.objective, length, store.tokenizer.vocabulary, run_config.model
    )
    if split == "train":
        schedule = batch_schedule(run_config)
        stream = open_stream(store, run_config.data, objective, schedule, run_config.seed)
        sizes = source_sizes(stream, store, run_config.data)
        stream.set_mixture(plan_mixture(run_config, sizes))
        samples = np.array([sample])
        batch, (source, start) = stream.make_batch(samples), stream.locate(samples)[:, 0].tolist()
        return batch, locate_sample(store, split, source, start, objective, stream)

    draws = run_config.evaluation.draws
    windows = EvaluationWindows(store.validation, objective, 1, draws, run_config.seed)
    if sample >= len(windows):
        raise UserError(f"--sample: {sample}: the validation split has {len(windows):,} samples")
    number = sample % windows.windows
    source = int(np.searchsorted(windows.ends, number, side="right"))
    start = (number - [0, *windows.ends.tolist()][source]) * objective.stride
    return windows[sample], locate_sample(store, split, source, start, objective)


def check_show_arguments(args: Any) -> None:
    """Raise UserError unless a store or a config is named, and a sample that there may be."""
    if args.config is None:
        if len(args.items) != 1:
            raise UserError("name the folder of one store, or a config by --config FILE")
        if args.data is not None:
            raise UserError("--data changes a config, but there is no --config")
        if not expand_home(args.items[0]).is_dir():
            raise UserError(f"{args.items[0]}: no such folder of a store")
    if not 0 <= args.sample <= LARGEST_SAMPLE:
        raise UserError(f"--sample: {args.sample}: must be between 0 and {LARGEST_SAMPLE}")


def build_show_parser() -> runtime.Parser:
    """Return the parser of the arguments of `show`."""
    parser = runtime.Parser(
        prog="python -m jaxlm.prepare show",
        description="Print a sample as the model sees it: tokens, targets, weights and masks.",
        epilog=SHOW_EXAMPLE,
    )
    parser.add_argument(
        "items",
        nargs="*",
        metavar="STORE|key=value",
        help="the folder of a store; with --config, changes to the config",
    )
    parser.add_argument("--config", metavar="FILE", help="the config of a run")
    parser.add_argument("--data", metavar="PATH", help="as in python -m jaxlm.prepare")
    parser.add_argument(
        "--sample", type=int, required=True, metavar="N", help="the number of the sample, from 0"
    )
    parser.add_argument(
        "--split", choices=("train", "validation"), default="train", help="the split (train)"
    )
    parser.add_argument(
        "--table", action="store_true", help="a line for each token, however long the sample is"
    )
    parser.add_argument("--json", metavar="FILE", help="write the sample as data")
    return parser


# --- commands of the data package ---

# Modules that describe a command and have its arguments, by its name.
MODULES = {
    "classifier": "jaxlm.data.rules.classifier_command",
    "docstrings": "jaxlm.data.docstrings",
}


def run_module(name: str, argv: Sequence[str]) -> int:
    """Run a command of MODULES."""
    args = build_module_parser(name).parse_args(argv)
    return importlib.import_module(MODULES[name]).run_command(args)


def build_module_parser(name: str) -> runtime.Parser:
    """Return the parser of a command of MODULES."""
    module = importlib.import_module(MODULES[name])
    prog = f"python -m jaxlm.prepare {name}"
    parser = runtime.Parser(prog=prog, description=module.PURPOSE, epilog=module.USAGE)
    module.add_arguments(parser)
    return parser


if __name__ == "__main__":
    runtime.run(main)
