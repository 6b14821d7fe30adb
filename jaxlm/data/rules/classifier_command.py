"""Train a quality classifier: python -m jaxlm.prepare classifier GOOD BAD OUT.safetensors."""

import argparse
from collections.abc import Iterator

from jaxlm.config import SourceConfig, UserError
from jaxlm.data.documents import SourceKeys
from jaxlm.data.rules.classifier import train_classifier
from jaxlm.data.sources import read_documents
from jaxlm.files import expand_home

PURPOSE = "Train a quality classifier on good and bad documents, for data.curation.classifier."
USAGE = "example:\n  python -m jaxlm.prepare classifier good/ bad/ quality.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument("good", metavar="GOOD", help="file, folder or glob of good documents")
    parser.add_argument("bad", metavar="BAD", help="file, folder or glob of bad documents")
    parser.add_argument("out", metavar="OUT.safetensors", help="the file to write")


def run_command(args: argparse.Namespace) -> int:
    """Train on two sources, write the classifier and print its accuracy; return the exit code."""
    out = expand_home(args.out)
    if not out.parent.is_dir():
        raise UserError(f"{args.out}: no such folder")
    classifier = train_classifier(read_texts(args.good, "GOOD"), read_texts(args.bad, "BAD"))
    try:
        classifier.save(out)
    except OSError as error:
        raise UserError(f"{args.out}: {error.strerror}") from error

    report = classifier.report
    print(
        f"{args.out}: trained on {report['good']:,} good and {report['bad']:,} bad documents; "
        f"of {report['held_out']:,} others {report['accuracy_good']:.1%} of the good and "
        f"{report['accuracy_bad']:.1%} of the bad ones are told right"
    )
    return 0


def read_texts(path: str, key: str) -> Iterator[str]:
    """Yield the texts of a file, folder or glob. Raises UserError."""
    source = SourceConfig(name=key, path=path)
    for document in read_documents(source, SourceKeys(key, None)):
        yield "\n".join(document.texts)
