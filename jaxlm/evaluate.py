"""Score a model on texts: loss, perplexity, bits per byte, pseudo-perplexity.

python -m jaxlm.evaluate RUN|HF_DIR [--data PATH]
python -m jaxlm.evaluate RUN|HF_DIR ... --against RUN|HF_DIR --data NAME=PATH ...
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm import runtime
from jaxlm.config import ConfigError, RuntimeConfig, SourceConfig, UserError
from jaxlm.config.urls import hide_credentials, is_url
from jaxlm.directories import check_model_directory, is_run
from jaxlm.files import output_writer

PSEUDO_WINDOWS = 16  # of each source by default: each of their tokens takes a forward pass

EXAMPLES = """examples:
  python -m jaxlm.evaluate runs/quickstart
  python -m jaxlm.evaluate runs/quickstart --data 'books=books/*.txt' --data news=news.jsonl \
--json figures.json
  python -m jaxlm.evaluate gpt2/ --data wiki.test.txt --stride 512
  python -m jaxlm.evaluate bert/ --data reviews.jsonl --text-key review --limit 100
  python -m jaxlm.evaluate runs/plain runs/replay --against runs/books \
--data 'books=held_out/*.txt' --data peps=peps/ --picture domains.svg

RUN is the run_directory of a training, HF_DIR a folder with config.json, model.safetensors and
tokenizer.json. Without --data a run is scored on its own validation split, on the same windows as
in training.

decoders            every token but the first is a target once. Documents are joined as in training,
                    each followed by the end of text. With --per-document each stands alone, after
                    the end (or begin) of text
encoders            loss and accuracy where tokens are hidden as in training, documents joined; and
                    the pseudo-perplexity: every token hidden alone (arXiv 1910.14659), which takes
                    a forward pass for each
encoder-decoders    the loss of the objective that the model was trained with: spans, infilling or
                    pairs

--against compares the bits per byte of decoders, whatever their tokenizers, and the losses of other
models. Its texts should be ones that no model was trained on; without --data they are the
validation split of the first RUN, by source."""


def main(argv: Sequence[str]) -> int:
    args = build_evaluate_parser().parse_intermixed_args(argv)
    sources = parse_sources(args.data, args.text_key, args.format)
    paths = list(args.paths)
    if args.against is not None:
        paths = check_comparison(args, paths, sources)
    elif len(paths) > 1:
        raise UserError(f"{paths[1]}: several models are compared with one: --against {paths[0]}")
    elif args.picture is not None:
        raise UserError("--picture: is drawn with --against")
    if not sources and args.against is None:
        refuse_without_data(args)
    runtime.check_output_file("--json", args.json)
    runtime.check_output_file("--picture", args.picture)
    for path in paths:
        check_model_directory(path)
    check_files(sources)
    # Where the terminal lacks a character, show a question mark.
    getattr(sys.stdout, "reconfigure", lambda **_: None)(errors="replace")
    runtime.configure(RuntimeConfig(devices=args.devices))

    if args.against is not None:
        texts = choose_texts(args, sources)
        args.limit = None
        compare(args, [score_path(args, path, texts) for path in paths])
        return 0

    from jaxlm.evaluation import report

    scored = score_path(args, paths[0], sources)
    rows, total = scored.rows, scored.total
    print(report.format_table([*rows, total] if len(rows) > 1 else rows))
    if args.json is not None:
        document = {**scored.model, **scored.details, "sources": rows, "total": total}
        runtime.write_json(args.json, document)
    return 0


class ScoredModel(NamedTuple):
    """The figures of a model, as JSON data."""

    model: dict[str, Any]  # which one
    tokenizer: str  # its hash
    details: dict[str, Any]  # how it was scored, with the objective
    rows: list[dict[str, Any]]  # of each source
    total: dict[str, Any]


def score_path(args: argparse.Namespace, path: str, sources: tuple[Any, ...]) -> ScoredModel:
    """Load a model and score it on the sources, or a run on its validation split."""
    from jaxlm.evaluation import report, score_model
    from jaxlm.load_model import load_model

    loaded = load_model(
        Path(path),
        step=args.step,
        ema=args.ema,
        compute=args.compute,
        devices=args.devices,
    )
    loaded.require_tokens()
    scorer = score_model.ModelScorer(loaded)
    compute = args.compute or (loaded.config.precision.compute if loaded.config else "float32")
    place = f" after step {loaded.step}" if loaded.step is not None else ""
    place += ", average of the weights" if args.ema else ""
    print(
        f"{path}{place}: {loaded.model.config.family}, "
        f"{loaded.model.parameter_count():,} parameters, {compute}, "
        f"{runtime.describe_devices(scorer.devices)}"
    )

    for note in loaded.special.notes:
        print(f"note: {note}", file=sys.stderr)

    if sources:
        pseudo_windows = args.pseudo_windows
        if pseudo_windows is None:
            pseudo_windows = 0 if args.against is not None else args.limit or PSEUDO_WINDOWS
        options = score_model.EvaluationOptions(
            sources=sources,
            context=args.context,
            stride=args.stride,
            batch_size=args.batch_size,
            limit=args.limit,
            seed=args.seed,
            draws=args.draws,
            per_document=args.per_document,
            pseudo_windows=pseudo_windows,
        )
        score_model.check_options(loaded, options, pseudo_given=args.pseudo_windows is not None)
        with runtime.memory_errors("lower --batch-size or --context"):
            objective, scores, details = score_model.score_sources(loaded, options, scorer)
    else:
        objective, scores, details = score_model.score_validation_split(loaded, scorer)

    model = {
        "model": path,
        "step": loaded.step,
        "ema": args.ema,
        "family": loaded.model.config.family,
        "compute": compute,
    }
    return ScoredModel(
        model,
        loaded.tokenizer.hash,
        {"objective": objective, **details},
        [report.compute_metrics(source, objective) for source in scores],
        report.compute_metrics(report.total_scores(scores), objective),
    )


def check_comparison(
    args: argparse.Namespace, paths: Sequence[str], sources: Sequence[SourceConfig]
) -> list[str]:
    """Return the paths of all models, the base first. UserError for what doesn't go with it."""
    if not sources and not is_run(Path(paths[0])):
        raise UserError(
            f"{paths[0]}: is no run, so it has no validation split of its own: say --data NAME=PATH"
        )
    if args.step is not None:
        raise UserError("--step: is for one model; --against takes the newest checkpoints")
    every = [args.against, *paths]
    for path in every:
        if every.count(path) > 1:
            raise UserError(f"{path}: is compared with itself; --against names the model before")
    return every


def choose_texts(args: argparse.Namespace, sources: Sequence[SourceConfig]) -> tuple[Any, ...]:
    """Return the texts on which models are compared.

    Without --data they are those of the validation split of the first model, by source. Models with
    different tokenizers read the same text, so that --limit counts documents.
    """
    from jaxlm.evaluation.held_out import held_out_sources

    if not sources:
        return tuple(held_out_sources(Path(args.paths[0]), args.limit))
    return tuple(replace(source, documents=args.limit) for source in sources)


def compare(args: argparse.Namespace, scored: Sequence[ScoredModel]) -> None:
    """Print, draw and write how models differ from the first one in each domain."""
    from jaxlm.evaluation import comparison, comparison_plot

    base, *models = (
        comparison.ModelFigures(
            one.model["model"], one.details["objective"], one.tokenizer, one.rows
        )
        for one in scored
    )
    figure = comparison.choose_figure(base, models)
    changes = comparison.compare_models(base, models)
    print(comparison.format_comparison(changes, base.name, figure))
    if args.picture is not None:
        picture = comparison_plot.draw_comparison(changes, base.name, figure)
        try:
            with output_writer(Path(args.picture)) as file:
                file.write(picture.encode())
        except OSError as error:
            raise UserError(f"--picture: {args.picture}: {error.strerror}") from error
    if args.json is not None:
        document = {
            "against": base.name,
            "figure": figure,
            "changes": comparison.changes_as_data(changes),
            "models": [{**one.model, **one.details, "sources": one.rows} for one in scored],
        }
        runtime.write_json(args.json, document)


def build_evaluate_parser() -> runtime.Parser:
    parser = runtime.Parser(
        prog="python -m jaxlm.evaluate",
        description="Score a trained model on texts, or a run on its validation split.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("paths", metavar="RUN|HF_DIR", nargs="+", help="the model; several with --against")
    add(
        "--against",
        metavar="RUN|HF_DIR",
        help="the model before: say what was gained and lost against it on each --data",
    )
    add(
        "--data",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="a file, folder or glob of text, JSON lines or tables; may be repeated",
    )
    add("--text-key", default="text", metavar="KEY", help="the key, or column, of the text (text)")
    add(
        "--format",
        choices=("auto", "text", "jsonl", "csv", "tsv", "parquet", "arrow", "warc", "wikipedia"),
        default="auto",
        help="how files are read (auto: by their content; they may be compressed)",
    )

    add(
        "--context",
        type=window_integer,
        metavar="N",
        help="tokens of a window (the model's context_length)",
    )
    add(
        "--stride",
        type=positive_integer,
        metavar="N",
        help="decoders: tokens from one window to the next (the context)",
    )
    add("--per-document", action="store_true", help="no window has tokens of two documents")
    add(
        "--limit",
        type=positive_integer,
        metavar="N",
        help="windows of each source; with --per-document or --against, documents",
    )
    add("--batch-size", type=batch_integer, default=8, metavar="N", help="windows at a time (8)")

    add(
        "--draws",
        type=batch_integer,
        default=1,
        metavar="N",
        help="visits of each text, each hidden anew (1)",
    )
    add(
        "--seed",
        type=nonnegative_integer,
        default=0,
        metavar="N",
        help="decides which tokens are hidden (0)",
    )
    add(
        "--pseudo-windows",
        type=nonnegative_integer,
        metavar="N",
        help="encoders: windows of each source whose tokens are hidden one by one "
        f"(--limit, else {PSEUDO_WINDOWS}); 0: none",
    )

    add("--step", type=nonnegative_integer, metavar="N", help="a run's checkpoint (the newest)")
    add("--ema", action="store_true", help="a run's average of the weights (optimizer.ema_decay)")
    add(
        "--devices",
        type=positive_integer,
        default=1,
        metavar="N",
        help="devices that the model is split over (1)",
    )
    add(
        "--compute",
        choices=("float32", "bfloat16"),
        help="dtype of the matrix products (as the run was trained; float32 of an HF_DIR)",
    )
    add("--json", metavar="FILE", help="write the figures, with all their digits")
    add("--picture", metavar="FILE", help="with --against: draw the figures as an SVG")
    return parser


def positive_integer(text: str) -> int:
    return parse_integer(text, least=1)


def nonnegative_integer(text: str) -> int:
    return parse_integer(text, least=0)


def batch_integer(text: str) -> int:
    return parse_integer(text, least=1, most=1 << 16)


def window_integer(text: str) -> int:
    return parse_integer(text, least=1, most=1 << 20)


def parse_integer(text: str, least: int, most: int = (1 << 31) - 1) -> int:
    # No number in bounds has more digits, and Python refuses to convert very many.
    number = int(text) if re.fullmatch(r"[0-9]{1,12}", text) else -1
    if not least <= number <= most:
        bounds = f"at least {least}" if number < least else f"at most {most}"
        raise argparse.ArgumentTypeError(f"must be a whole number of {bounds}, got {text!r}")
    return number


def parse_sources(data: Sequence[str], text_key: str, text_format: Any) -> tuple[SourceConfig, ...]:
    """Return the sources of `--data [NAME=]PATH`; without a name the path is the name."""
    sources: dict[str, SourceConfig] = {}
    for text in data:
        match = re.fullmatch(r"(?:([\w. -]+)=)?(.+)", text, re.DOTALL)
        if match is None:
            raise UserError("--data: needs a file, folder or glob, got an empty string")

        # A file may be called NAME=PATH itself.
        name, path = (text, text) if os.path.lexists(text) else (match[1] or match[2], match[2])
        name = hide_credentials(name.encode(errors="replace").decode())
        if name in sources:
            raise UserError(
                f"--data: {name!r} stands for two sources; name them: "
                f"--data NAME={hide_credentials(path)}"
            )
        try:
            source = SourceConfig(name=name, path=path, text_key=text_key, format=text_format)
        except ConfigError as error:
            raise UserError(
                f"--data {name}: {error.path.rpartition('.')[2]} {error.reason}"
            ) from error
        sources[name] = source
    return tuple(sources.values())


def check_files(sources: Sequence[SourceConfig]) -> None:
    """Raise UserError for a source on this machine that names no files."""
    if not sources:
        return
    from jaxlm.data.documents import COMMAND_OPTIONS
    from jaxlm.data.listing import list_files

    for source in sources:
        if not is_url(str(source.path)):
            list_files(source, COMMAND_OPTIONS)


def refuse_without_data(args: argparse.Namespace) -> None:
    """Raise UserError for arguments that say how --data is read."""
    for name in ("context", "stride", "limit", "per_document", "pseudo_windows"):
        if getattr(args, name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{option}: is only used with --data; a run's validation split is scored as in "
                "training"
            )


if __name__ == "__main__":
    runtime.run(main)
