"""python -m jaxlm.predict RUN|HF_DIR --texts FILE: label texts, with probabilities."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxlm import config, runtime
from jaxlm.config import UserError
from jaxlm.directories import check_model_directory, is_run

DESCRIPTION = """Label texts with a model that has a classification head: a label for each text, or
for each of its words, with the probabilities of all labels; or numbers."""

EXAMPLES = """examples:
  python -m jaxlm.predict runs/spam --texts messages.txt
  python -m jaxlm.predict runs/spam --best --texts messages.jsonl --json labels.json
  python -m jaxlm.predict bert-classifier/ --texts reviews.csv --text-key review
  python -m jaxlm.predict runs/entailment --texts pairs.jsonl --text-key premise --pair-key \
hypothesis
  echo 'You have won a prize' | python -m jaxlm.predict runs/spam --texts -

FILE has a text on each line. In JSON lines (.jsonl) and in tables (.csv, .tsv) it is at the key
"text", its second text at "pair" where there is one, the words of a text to be labelled one by one
at "tokens". Standard input (-) is JSON lines if its first line is an object."""


def main(argv: Sequence[str]) -> int:
    args = build_predict_parser().parse_args(argv)
    if args.best and not is_run(Path(args.model)):
        check_model_directory(args.model)
        raise UserError(f"{args.model}: --best: only a run has checkpoints to choose from")
    check_model_directory(args.model)
    runtime.check_output_file("--json", args.json)

    from jaxlm.classification import inputs

    lines = inputs.read_lines(args.texts)

    # jax is imported after the platform is set up.
    runtime.configure(config.RuntimeConfig(devices=args.devices))
    from jaxlm.classification import report
    from jaxlm.classification.classifier import TextClassifier
    from jaxlm.load_model import find_best_step, load_model

    path = Path(args.model)
    step = find_best_step(path) if args.best else args.step
    loaded = load_model(path, step=step, compute=args.compute, devices=args.devices or 1)
    classifier = TextClassifier(loaded, batch_size=args.batch_size, length=args.length)
    keys = inputs.InputKeys(args.text_key, args.pair_key, args.tokens_key)
    texts = inputs.build_inputs(lines, keys, of_tokens=classifier.config.kind == "token")
    # Where the terminal lacks a character, show a question mark.
    getattr(sys.stdout, "reconfigure", lambda **_: None)(errors="replace")

    with runtime.memory_errors("lower --batch-size or --length"):
        scores = classifier(texts)
    results = [
        report.build_result(text, each.scores, is_cut=each.is_cut, classifier=classifier.config)
        for text, each in zip(texts, scores, strict=True)
    ]
    print(report.format_results(texts, results, classifier.config))
    if note := report.describe_cuts(texts, results, classifier.length):
        print(f"note: {note}", file=sys.stderr)

    if args.json is not None:
        document = {"model": args.model, "step": loaded.step, "results": results}
        runtime.write_json(args.json, document)
    return 0


def build_predict_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = runtime.Parser(
        prog="python -m jaxlm.predict", description=DESCRIPTION, epilog=EXAMPLES
    )
    add = parser.add_argument
    add("model", metavar="RUN|HF_DIR", help="a run directory, or one of Hugging Face files")
    add("--texts", metavar="FILE", required=True, help="the texts; - reads them from stdin")
    add("--text-key", metavar="KEY", default="text", help="key of the text (default text)")
    add("--pair-key", metavar="KEY", help="key of the second text (default pair, where it is)")
    add("--tokens-key", metavar="KEY", default="tokens", help="key of the words (default tokens)")
    add("--json", metavar="FILE", help="write the results as JSON too")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--best", action="store_true", help="a run's best checkpoint, by its figure")
    which.add_argument("--step", metavar="N", type=parse_step, help="its step (the newest)")
    add("--batch-size", metavar="N", type=positive, default=32, help="texts at once (default 32)")
    add("--length", metavar="N", type=positive, help="tokens that are read (default: as trained)")
    add("--compute", choices=("float32", "bfloat16"), default="float32", help="number format")
    add("--devices", metavar="N", type=positive, help="devices to use (default 1)")
    return parser


def positive(text: str) -> int:
    """Return a whole number from 1 to 2**20; argparse turns the error into ours."""
    return parse_whole(text, least=1)


def parse_step(text: str) -> int:
    """Return a whole number from 0 on; argparse turns the error into ours."""
    return parse_whole(text, least=0)


def parse_whole(text: str, *, least: int) -> int:
    """Return a whole number within bounds."""
    if not (text.isascii() and text.isdigit() and least <= int(text) <= 1 << 20):
        reason = f"must be an integer from {least} to {1 << 20}, got {text[:40]!r}"
        raise argparse.ArgumentTypeError(reason)
    return int(text)


if __name__ == "__main__":
    runtime.run(main)
