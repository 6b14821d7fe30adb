"""python -m jaxlm.prepare --config FILE [key=value ...]: turn raw text into a token store.

`jaxlm.train` prepares what is missing by itself; this command does so alone, without jax, and
reports what the store holds.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlm import config, runtime
from jaxlm.config import UserError
from jaxlm.files import expand_home, write_output

EXAMPLE = """examples:
  python -m jaxlm.prepare --config configs/quickstart.py
  python -m jaxlm.prepare --config configs/quickstart.py --data 'c4/en/*.json.gz' \\
      data.on_error=skip --json report.json

The store is shared by all runs of the same text, split and tokenizer. Its folder gets the report as
report.md, report.html and report.json. docs/data.md lists the formats that are read,
jaxlm/config/data.py the keys."""


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = build_prepare_parser().parse_intermixed_args(argv)
    runtime.check_output_file("--json", args.json)
    if args.report is not None:
        check_report_folder(args.report)
    run_config = config.load(args.config, args.edits, args.data)

    from jaxlm import data

    store = prepare_store(run_config)
    report = data.describe_store(store)
    print(data.format_report(report))

    if args.json is not None:
        runtime.write_json(args.json, report)
    write_report(report, store.path, args.report)
    return 0


def prepare_store(run_config: config.Config) -> Any:
    """Return the store of a config, built if it is not there yet."""
    from jaxlm import data

    return data.prepare(
        run_config.data,
        run_config.tokenizer,
        run_config.tokenizer_vocabulary_size,
        lambda line: print(line, flush=True),
        needs=run_config.objective.needs,
    )


def check_report_folder(path: str) -> None:
    """Raise UserError for a folder that the report can't be written to later."""
    folder = expand_home(path)
    try:
        if not path or (folder.exists() and not folder.is_dir()):
            raise UserError(f"--report: {path!r} is no folder")
        if not folder.exists() and not folder.parent.is_dir():
            raise UserError(f"--report: {folder.parent}: no such folder")
        writable = folder if folder.exists() else folder.parent
    except (OSError, ValueError) as error:  # a name that is too long, or has a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--report: {path}: {reason}") from error
    if not os.access(writable, os.W_OK):
        raise UserError(f"--report: {path}: Permission denied")


def write_report(report: dict[str, Any], store: Path, requested: str | None) -> None:
    """Write report.md, report.html and report.json to the folder that `--report` names.

    Without one they go to the store; where that can't be written, a line says so.
    """
    from jaxlm import data

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
    return parser


if __name__ == "__main__":
    runtime.run(main)
