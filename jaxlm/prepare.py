"""python -m jaxlm.prepare --config FILE [key=value ...]: turn raw text into a token store.

`jaxlm.train` prepares what is missing by itself; this command does so alone, without jax, and
reports what the store holds.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from jaxlm import config, runtime
from jaxlm.config import UserError
from jaxlm.files import write_output

EXAMPLE = """examples:
  python -m jaxlm.prepare --config configs/quickstart.py
  python -m jaxlm.prepare --config configs/quickstart.py --data 'c4/en/*.json.gz' \\
      data.on_error=skip --json report.json

The store is shared by all runs of the same text, split and tokenizer. docs/data.md lists the
formats that are read, jaxlm/config/data.py the keys."""


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_intermixed_args(argv)
    runtime.check_output_file("--json", args.json)
    run_config = config.load(args.config, args.edits, args.data)

    from jaxlm import data

    store = data.prepare(
        run_config.data,
        run_config.tokenizer,
        run_config.tokenizer_vocabulary_size,
        lambda line: print(line, flush=True),
        needs=run_config.objective.needs,
    )
    report = data.describe_store(store)
    print(data.format_report(report))

    if args.json is not None:
        try:
            write_output(Path(args.json), json.dumps(report, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"--json: {args.json}: {error.strerror}") from error
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = runtime.Parser(
        prog="python -m jaxlm.prepare",
        description="Read the sources of a config, train or load its tokenizer, store the tokens.",
        epilog=EXAMPLE,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="a Python file with `config = Config(...)`, or a run's config.json",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="prepare this file, folder or glob instead of the config's sources",
    )
    parser.add_argument("--json", metavar="FILE", help="write the report")
    parser.add_argument(
        "edits",
        nargs="*",
        metavar="key=value",
        help="changes to the config, such as data.on_error=skip",
    )
    return parser


if __name__ == "__main__":
    runtime.run(main)
