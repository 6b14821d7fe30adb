"""python -m jaxlm.prepare --config FILE [key=value ...]: turn raw text into a token store.

`jaxlm.train` prepares what is missing by itself; this command does so alone, without jax, and
reports what the store holds.
"""

from collections.abc import Sequence

from jaxlm import config, runtime

EXAMPLE = """examples:
  python -m jaxlm.prepare --config configs/quickstart.py
  python -m jaxlm.prepare --config configs/quickstart.py --data 'c4/en/*.json.gz' \\
      data.on_error=skip --json report.json

The store is shared by all runs of the same text, split and tokenizer. docs/data.md lists the
formats that are read, jaxlm/config/data.py the keys."""


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = build_prepare_parser().parse_intermixed_args(argv)
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
        runtime.write_json(args.json, report)
    return 0


def build_prepare_parser() -> runtime.Parser:
    """Return the parser of the command's arguments."""
    parser = runtime.Parser(
        prog="python -m jaxlm.prepare",
        description="Read the sources of a config, train or load its tokenizer, store the tokens.",
        epilog=EXAMPLE,
    )
    runtime.add_config_arguments(parser, data_use="prepare", example="data.on_error=skip")
    parser.add_argument("--json", metavar="FILE", help="write the report")
    return parser


if __name__ == "__main__":
    runtime.run(main)
