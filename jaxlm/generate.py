"""python -m jaxlm.generate RUN|HF_DIR --prompt TEXT: continue, fill or embed texts, or chat."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxlm import config, runtime
from jaxlm.chat import load_template
from jaxlm.config import UserError
from jaxlm.directories import check_model_directory
from jaxlm.input_text import check_spelling, parse_json_line, read_input

DESCRIPTION = """Run prompts through a model: a decoder continues a text, an encoder-decoder fills
its gaps or rewrites it, an encoder says what may stand for each mask. With --embed: a vector for
each text. With --chat: a conversation on the terminal."""

EXAMPLES = """examples:
  python -m jaxlm.generate runs/quickstart --prompt 'Once upon a time'
  python -m jaxlm.generate runs/quickstart --prompt 'Once upon a time' --temperature 0.8 --samples 3
  python -m jaxlm.generate gpt2/ --prompts prompts.txt --stop 'THE END' --json texts.json
  python -m jaxlm.generate bart/ --prompt 'It was the <mask> of times.' --beams 4
  python -m jaxlm.generate t5/ --prompt 'It was the <extra_id_0> of times.'
  python -m jaxlm.generate bert/ --prompt 'It was the [MASK] of times.' --top 5
  python -m jaxlm.generate bert/ --prompts texts.jsonl --embed --pool mean --out vectors.npy
  python -m jaxlm.generate runs/assistant --chat --system 'Answer in one sentence.'
  fortune | python -m jaxlm.generate runs/quickstart --prompt -

The likeliest token is taken each time (greedy), unless --temperature is above 0, or --top-k,
--top-p, --min-p or several --samples ask for sampling: then the temperature is 1. The same seed
gives the same texts, whatever the batch size. --chat takes a message a line, and the lines /reset
(forget the conversation) and /quit; Ctrl-C ends an answer."""

PROMPT_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")

# Options that apply to only some uses of a model.
TEXT_OPTIONS = (
    "max_new_tokens",
    "min_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "beams",
    "length_penalty",
    "early_stopping",
    "stop",
    "samples",
    "seed",
    "no_stream",
)
LARGEST_INTEGER = 2**31 - 1  # of an int32
MOST_TOKENS, MOST_ROWS = 1 << 20, 1 << 16  # above, mistakes are likelier than such machines
MOST_PROMPT_BYTES = 1 << 28  # of a file or stdin, which may have no end
MOST_LENGTH_PENALTY = 30  # as in decoding.beam

# A conversation has one answer at a time, which is shown while it is written.
NOT_CHAT = ("samples", "beams", "length_penalty", "early_stopping")
OPTIONS_BY_USE = {
    "writes": TEXT_OPTIONS,
    "fills masks": ("top",),
    "embeds": ("pool", "out"),
    "chats": (*(name for name in TEXT_OPTIONS if name not in NOT_CHAT), "system"),
}


def main(argv: Sequence[str]) -> int:
    args = build_generate_parser().parse_args(argv)
    check_arguments(args)
    prompts = [] if args.chat else read_prompts(args)
    check_model_directory(args.model)
    template = load_template(None, args.model) if args.chat else None

    # jax is imported after the platform is set up.
    runtime.configure(config.RuntimeConfig(devices=args.devices))
    from jaxlm.decoding import run_prompts
    from jaxlm.decoding.conversation import run_chat
    from jaxlm.load_model import load_model

    loaded = load_model(
        Path(args.model),
        step=args.step,
        ema=args.ema,
        compute=args.compute,
        devices=args.devices or 1,
    )
    loaded.require_tokens()
    family = loaded.model.config.family
    use = "embeds" if args.embed else "fills masks" if family == "encoder" else "writes"
    if template is not None:
        if family == "encoder":
            raise UserError(f"--chat: {args.model} is an encoder, which {use}")
        use = "chats"
    check_use(args, use)
    # Where the terminal lacks a character, show a question mark.
    getattr(sys.stdout, "reconfigure", lambda **_: None)(errors="replace")

    started = time.perf_counter()
    with runtime.memory_errors("lower --batch-size, --beams or --max-new-tokens"):
        if template is not None:
            run_chat(loaded, template, args)
            return 0
        if use == "writes":
            for note in loaded.special.notes:
                print(f"note: {note}", file=sys.stderr)
            decoding_config = run_prompts.decoding_config(args)
            stream = sys.stdout.isatty() and not args.no_stream
            results = run_prompts.print_completions(loaded, prompts, decoding_config, stream)
        elif use == "fills masks":
            results = run_prompts.print_filled_masks(
                loaded, prompts, top=args.top or 5, batch_size=args.batch_size
            )
        else:
            results = run_prompts.print_embeddings(
                loaded, prompts, pool=args.pool or "mean", batch_size=args.batch_size, out=args.out
            )
    seconds = time.perf_counter() - started  # with compilation, without loading

    if args.json is not None:
        document = {
            "model": args.model,
            "step": loaded.step,
            "family": family,
            "seed": args.seed or 0,
            "seconds": round(seconds, 3),
            "results": results,
        }
        runtime.write_json(args.json, document)
    return 0


# --- arguments ---


def bounded(
    number: type, least: float = float("-inf"), most: float = float("inf")
) -> Callable[[str], Any]:
    """Return an argument's type: a finite number between two bounds."""

    def parse(text: str) -> Any:
        try:
            value = number(text)
        except ValueError:
            value = None
        if value is not None and least <= value <= most and abs(value) != float("inf"):
            return value

        bounds = [("at least", least), ("at most", most)]
        unsaid = (float("-inf"), float("inf"), LARGEST_INTEGER)
        limits = [f"{word} {bound}" for word, bound in bounds if bound not in unsaid]
        name = "an integer" if number is int else "a number"
        raise argparse.ArgumentTypeError(
            " ".join(["must be", name, " and ".join(limits)]).rstrip() + f", got {text!r}"
        )

    return parse


COUNT, POSITIVE = bounded(int, 0, LARGEST_INTEGER), bounded(int, 1, LARGEST_INTEGER)
SEED = bounded(int, 0, 2**32 - 1)
TOKENS, ROWS = bounded(int, 1, MOST_TOKENS), bounded(int, 1, MOST_ROWS)
TEMPERATURE, SHARE, PENALTY = bounded(float, 0), bounded(float, 0, 1), bounded(float, 1e-6)
LENGTH_PENALTY = bounded(float, -MOST_LENGTH_PENALTY, MOST_LENGTH_PENALTY)


def build_generate_parser() -> runtime.Parser:
    """Return the parser of the command's arguments."""
    parser = runtime.Parser(
        prog="python -m jaxlm.generate", description=DESCRIPTION, epilog=EXAMPLES
    )

    def add(group: Any, name: str, metavar: str, kind: Callable[[str], Any], help: str) -> None:
        group.add_argument(name, metavar=metavar, type=kind, help=help)

    model_help = "a run directory, or a directory of Hugging Face files"
    prompt_help = "a prompt (repeatable); - reads it from stdin"
    prompts_help = 'a prompt a line, or .jsonl with "prompt" or "text"; - reads lines from stdin'
    add(parser, "model", "RUN|HF_DIR", str, model_help)
    parser.add_argument("--prompt", metavar="TEXT", action="append", help=prompt_help)
    add(parser, "--prompts", "FILE", str, prompts_help)
    add(parser, "--batch-size", "N", ROWS, "texts at once (default 8)")
    add(parser, "--json", "FILE", str, "write the results as JSON too")
    add(parser, "--step", "N", COUNT, "a run's checkpoint (default: the newest)")
    average = "use a run's average of the weights (optimizer.ema_decay)"
    parser.add_argument("--ema", action="store_true", help=average)
    add(parser, "--devices", "N", POSITIVE, "devices to use (default 1)")
    dtypes = ("float32", "bfloat16")
    parser.add_argument("--compute", choices=dtypes, help="number format (default float32)")
    parser.set_defaults(batch_size=8, compute="float32")

    texts = parser.add_argument_group("decoders and encoder-decoders")
    stopping_help = "beams: stop with N finished beams; never: only when no other can win"
    stop_help = "end before this text (repeatable)"
    stream_help = "print a text when it is complete, on a terminal too"
    add(texts, "--max-new-tokens", "N", TOKENS, "most tokens (default 128, --chat 512)")
    add(texts, "--min-new-tokens", "N", COUNT, "tokens before the text may end (default 0)")
    add(texts, "--temperature", "T", TEMPERATURE, "0: the likeliest token; above: sampling")
    add(texts, "--top-k", "K", COUNT, "sample from the K likeliest tokens (0: from all)")
    add(texts, "--top-p", "P", SHARE, "... from the likeliest whose probabilities reach P")
    add(texts, "--min-p", "P", SHARE, "... from those with P times the likeliest's probability")
    add(texts, "--repetition-penalty", "X", PENALTY, "above 1: tokens repeat less (default 1)")
    add(texts, "--beams", "N", ROWS, "beam search of this width instead")
    add(texts, "--length-penalty", "X", LENGTH_PENALTY, "beams: divide by length ** X (default 1)")
    texts.add_argument("--early-stopping", choices=("false", "true", "never"), help=stopping_help)
    texts.add_argument("--stop", metavar="TEXT", action="append", help=stop_help)
    add(texts, "--samples", "N", ROWS, "texts for each prompt (default 1)")
    add(texts, "--seed", "N", SEED, "of the sampling (default 0)")
    texts.add_argument("--no-stream", action="store_true", help=stream_help)

    parser.add_argument("--chat", action="store_true", help="answer what is typed, in turn")
    add(texts, "--system", "TEXT", str, "what the model is told before the conversation")

    vectors = parser.add_argument_group("encoders, vectors")
    embed_help = "a vector for each text, from an encoder or a decoder"
    pool_help = "which token's features, or their mean (default)"
    add(vectors, "--top", "N", POSITIVE, "candidates for each mask (default 5)")
    vectors.add_argument("--embed", action="store_true", help=embed_help)
    vectors.add_argument("--pool", choices=("mean", "first", "last"), help=pool_help)
    add(vectors, "--out", "FILE", str, "write the vectors there: .npy, else JSON lines")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for options that contradict each other."""
    if args.chat:
        check_chat_arguments(args)
    elif not args.prompt and args.prompts is None:
        raise UserError(
            "--prompt TEXT, or --prompts FILE, is needed (see python -m jaxlm.generate --help)"
        )
    sampling = [name for name in ("top_k", "top_p", "min_p") if getattr(args, name)]
    if (args.samples or 1) > 1:
        sampling.append("samples")

    if args.beams is None:
        for name in ("length_penalty", "early_stopping"):
            if getattr(args, name) is not None:
                raise UserError(f"{option_name(name)} needs --beams")
    elif sampling or args.temperature:
        name = option_name((sampling or ["temperature"])[0])
        raise UserError(f"{name} is for sampling and does not go with --beams")
    elif args.stop:
        raise UserError("--stop does not go with --beams")

    if args.temperature == 0 and sampling:
        raise UserError(
            f"{option_name(sampling[0])} needs a --temperature above 0: at 0 the likeliest token "
            "is taken each time"
        )
    if args.stop and "" in args.stop:
        raise UserError("--stop: an empty text would end everything at once")
    for text in args.stop or []:
        check_spelling(text, "--stop", "holds bytes that are not UTF-8")
    most = args.max_new_tokens or 128
    if (args.min_new_tokens or 0) > most:
        raise UserError(f"--min-new-tokens {args.min_new_tokens} is above --max-new-tokens {most}")
    runtime.check_output_file("--json", args.json)
    runtime.check_output_file("--out", args.out)
    if args.json and args.out and Path(args.json).resolve() == Path(args.out).resolve():
        raise UserError(f"--json and --out: {args.json}: name two files")


def check_chat_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for options that a conversation does not have."""
    for name in ("prompt", "prompts", "json", "embed"):
        if getattr(args, name):
            raise UserError(f"{option_name(name)} does not go with --chat")
    if args.system is not None:
        check_spelling(args.system, "--system", "holds bytes that are not UTF-8")


def check_use(args: argparse.Namespace, use: str) -> None:
    """Raise UserError for an option that does not apply to this use of the model."""
    context = "--chat" if args.chat else "--embed" if args.embed else f"{args.model}, which {use}"
    for name in sorted(name for names in OPTIONS_BY_USE.values() for name in names):
        if name not in OPTIONS_BY_USE[use] and getattr(args, name) not in (None, False):
            raise UserError(f"{option_name(name)} is not used with {context}")


def option_name(name: str) -> str:
    """Return --top-k for top_k."""
    return f"--{name.replace('_', '-')}"


# --- prompts ---


def read_prompts(args: argparse.Namespace) -> list[str]:
    """Return the prompts of --prompt, then those of --prompts; UserError if there are none."""
    if [*(args.prompt or []), args.prompts].count("-") > 1:
        raise UserError("-: stdin can be read only once")
    prompts = []
    for prompt in args.prompt or []:
        if prompt == "-":
            prompts.append(drop_line_end(read_input("-", "--prompt", MOST_PROMPT_BYTES)))
        else:
            check_spelling(prompt, "--prompt", "holds bytes that are not UTF-8")
            prompts.append(prompt)
    if args.prompts is not None:
        prompts += read_prompts_file(args.prompts)
    return prompts


def read_prompts_file(name: str) -> list[str]:
    """Return the prompts of a file: one a line, or those of JSON lines.

    A blank line is an empty prompt, so that the results match the lines; in JSON lines it is left
    out. Both are said on stderr.
    """
    is_json = Path(name).suffix.lower() in PROMPT_JSON_SUFFIXES
    text = read_input(name, "--prompts", MOST_PROMPT_BYTES)
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if not lines[-1]:
        del lines[-1]
    blank = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if len(blank) == len(lines):
        raise UserError(f"--prompts: {name}: holds no prompts")

    if blank:
        place = f"{name}:{blank[0]}{' and others' if len(blank) > 1 else ''}"
        treatment = "is left out" if is_json else "is an empty prompt"
        print(f"note: {place}: a blank line {treatment}", file=sys.stderr)
    if not is_json:
        return lines
    return [
        parse_json_prompt(line, f"{name}:{number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def drop_line_end(text: str) -> str:
    """Return the text without the line end that `echo` adds."""
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def parse_json_prompt(line: str, place: str) -> str:
    """Return the string at "prompt" or "text" of a JSON object; `place` is its file:line."""
    record = parse_json_line(line, place)
    for key in ("prompt", "text"):
        if isinstance(record, dict) and isinstance(record.get(key), str):
            check_spelling(record[key], place)
            return record[key]
    raise UserError(f'{place}: has no "prompt" or "text" with a string')


if __name__ == "__main__":
    runtime.run(main)
