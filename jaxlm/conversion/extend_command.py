"""The command `jaxlm.convert extend`: more tokens for a model. Starts without jax."""

import argparse
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlm import config, runtime
from jaxlm.config import UserError
from jaxlm.config.fields import shorten

MOST_WORDS = 50_000  # of a text that become tokens
MOST_SHOWN = 8  # of them


def add_extend_parser(commands: Any, parse_path: Callable[[str], Path], example: str) -> None:
    """Add the parser of `extend` to the commands of `jaxlm.convert`."""
    extending = commands.add_parser(
        "extend",
        description="Make a run directory of a model whose tokenizer has more tokens. The rows of "
        "a new token are the mean of those of the pieces that the tokenizer made of it.",
        epilog=example,
        help="RUN|HF_DIR OUT: make a run directory whose tokenizer has more tokens",
    )
    add = extending.add_argument
    add("directory", type=parse_path, metavar="RUN|HF_DIR", help="a run, or a Hugging Face model")
    add("out", type=parse_path, metavar="OUT", help="the run directory to make")
    add(
        "--special",
        nargs="+",
        default=[],
        metavar="TOKEN",
        help="special tokens, such as those of a chat template; no document is read as these",
    )
    add(
        "--tokens",
        type=parse_path,
        metavar="FILE",
        help="a token on each line; a space before it is part of it",
    )
    add(
        "--from-text",
        action="append",
        default=[],
        metavar="PATH",
        help="take the words of a file, folder or glob that save the most tokens; may be repeated",
    )
    add("--count", type=parse_count, default=500, metavar="N", help="words of --from-text (500)")
    add("--text-key", default="text", metavar="KEY", help="the key, or column, of the text (text)")
    add("--step", type=int, metavar="N", help="the checkpoint of a run to take (the newest)")
    add("--ema", action="store_true", help="take a run's average of the weights")
    add("--json", metavar="FILE", help="write the new tokens with their ids")


def parse_count(text: str) -> int:
    """Return a number of tokens. argparse turns the error into ours."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= MOST_WORDS:
        raise argparse.ArgumentTypeError(f"must be from 1 to {MOST_WORDS:,}, got {shorten(text)}")
    return int(text)


def run_extend_command(args: argparse.Namespace) -> int:
    """Run the command `extend`; return its exit code."""
    if not (args.special or args.tokens or args.from_text):
        raise UserError("extend needs new tokens: --special, --tokens or --from-text")
    runtime.check_output_file("--json", args.json)
    sources = [
        config.SourceConfig(name=path, path=path, text_key=args.text_key) for path in args.from_text
    ]
    runtime.configure(config.RuntimeConfig(platform="cpu"))
    from jaxlm.conversion.extend_model import TokenRequest, collect_tokens, extend_model

    request = TokenRequest(args.special, args.tokens, sources, args.count)
    collected = collect_tokens(args.directory, request)
    if collected.bytes_per_token is not None:
        old, new = collected.bytes_per_token
        names = ", ".join(repr(token.content) for token in collected.proposed[:MOST_SHOWN])
        print(
            f"words: {names} ...\nbytes per token of the text: {old:.3f} -> {new:.3f}", flush=True
        )
    extended = extend_model(
        args.directory, args.out, collected.tokens, step=args.step, ema=args.ema
    )
    for note in extended.notes:
        print(f"note: {note}", flush=True)
    for warning in extended.warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)

    size = extended.config.model.vocabulary_size
    run_config = shlex.quote(str(args.out / "config.json"))
    print(
        f"{args.out}: {len(extended.ids):,} new tokens, vocabulary {extended.old_size:,} -> "
        f"{size:,}. Train it with\n"
        f"  python -m jaxlm.train --config {run_config} --data TEXT training.steps=N",
        flush=True,
    )
    if args.json is not None:
        proposed = {token.content: token._asdict() for token in collected.proposed}
        rows = [
            {"content": name, "id": number} | proposed.get(name, {})
            for name, number in extended.ids.items()
        ]
        document = {"vocabulary_size": size, "tokens": rows}
        runtime.write_json(args.json, document)
    return 0
