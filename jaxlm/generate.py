"""python -m jaxlm.generate RUN|HF_DIR --prompt TEXT: goes on with a text, fills its gaps, or makes a vector of it.

jax is imported inside the functions, after `runtime.configure` has set what must be set before it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm import config, runtime
from jaxlm.config import UserError

if TYPE_CHECKING:
    from jaxlm.decoding.generation import GenerationSettings, Written
    from jaxlm.load_model import LoadedModel

DESCRIPTION = """What a model makes of a text: a decoder goes on with it, an encoder-decoder fills its gaps or rewrites it, an encoder says
what may stand for each mask. With --embed: a vector for each text."""

EXAMPLES = """examples:
  python -m jaxlm.generate runs/quickstart --prompt 'Once upon a time'
  python -m jaxlm.generate runs/quickstart --prompt 'Once upon a time' --temperature 0.8 --top-p 0.95 --samples 3 --seed 1
  python -m jaxlm.generate gpt2/ --prompts prompts.txt --max-new-tokens 64 --stop 'THE END' --json texts.json
  python -m jaxlm.generate bart/ --prompt 'It was the <mask> of times.' --beams 4
  python -m jaxlm.generate t5/ --prompt 'It was the <extra_id_0> of times.'
  python -m jaxlm.generate bert/ --prompt 'It was the [MASK] of times.' --top 5
  python -m jaxlm.generate bert/ --prompts texts.jsonl --embed --pool mean --out vectors.npy
  fortune | python -m jaxlm.generate runs/quickstart --prompt -

The likeliest token is taken each time (greedy), unless --temperature is above 0, or --top-k, --top-p, --min-p or several --samples
ask for sampling: then the temperature is 1. The same seed gives the same texts, whatever the batch size."""

# The options that only some uses of a model have.
WRITING = (
    *(
        "max_new_tokens",
        "min_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "beams",
        "length_penalty",
    ),
    *("early_stopping", "stop", "samples", "seed", "no_stream"),
)
OPTIONS = {"writes": WRITING, "fills masks": ("top",), "embeds": ("pool", "out")}
SAMPLING = ("top_k", "top_p", "min_p")
STOPPING = {"false": False, "true": True, "never": "never"}


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    check(args)
    prompts = read_prompts(args)
    runtime.configure(config.RuntimeConfig(devices=args.devices))
    from jaxlm import load_model

    found = load_model.load_model(
        Path(args.model), step=args.step, compute=args.compute, devices=args.devices or 1
    )
    family = found.model.config.family
    use = "embeds" if args.embed else "fills masks" if family == "encoder" else "writes"
    for name in sorted({name for names in OPTIONS.values() for name in names} - set(OPTIONS[use])):
        if getattr(args, name) not in (None, False):
            what = "--embed" if args.embed else f"{args.model}, which {use}"
            raise UserError(f"--{name.replace('_', '-')} is not used with {what}")
    getattr(sys.stdout, "reconfigure", lambda **_: None)(
        errors="replace"
    )  # a terminal that lacks characters gets question marks
    started = time.perf_counter()
    results = {"writes": write, "fills masks": fill, "embeds": embed}[use](found, prompts, args)
    if args.json is not None:
        seconds = time.perf_counter() - started  # compilation included, loading not
        document = {
            "model": args.model,
            "step": found.step,
            "family": family,
            "seed": args.seed or 0,
        }
        document |= {"seconds": round(seconds, 3), "results": results}
        save(args.json, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return 0


def parser() -> runtime.Parser:
    made = runtime.Parser(prog="python -m jaxlm.generate", description=DESCRIPTION, epilog=EXAMPLES)
    made.add_argument(
        "model", metavar="RUN|HF_DIR", help="a run directory, or a directory of Hugging Face files"
    )
    made.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        help="a prompt (repeatable); - reads it from stdin",
    )
    made.add_argument(
        "--prompts",
        metavar="FILE",
        help='a prompt a line, or .jsonl with "prompt" or "text"; - reads lines from stdin',
    )
    made.add_argument(
        "--batch-size",
        metavar="N",
        type=number(int, 1),
        default=8,
        help="texts at once (default 8)",
    )
    made.add_argument("--json", metavar="FILE", help="write the results as JSON too")
    made.add_argument(
        "--step", metavar="N", type=number(int, 0), help="a run's checkpoint (default: the newest)"
    )
    made.add_argument(
        "--devices", metavar="N", type=number(int, 1), help="devices to use (default 1)"
    )
    made.add_argument(
        "--compute",
        choices=("float32", "bfloat16"),
        default="float32",
        help="number format (default float32)",
    )
    writing = made.add_argument_group("decoders and encoder-decoders")
    writing.add_argument(
        "--max-new-tokens", metavar="N", type=number(int, 1), help="tokens at most (default 128)"
    )
    writing.add_argument(
        "--min-new-tokens",
        metavar="N",
        type=number(int, 0),
        help="tokens before the text may end (default 0)",
    )
    writing.add_argument(
        "--temperature",
        metavar="T",
        type=number(float, 0.0),
        help="0: the likeliest token; above, sampling",
    )
    writing.add_argument(
        "--top-k",
        metavar="K",
        type=number(int, 0),
        help="sample from the K likeliest tokens (0: from all)",
    )
    writing.add_argument(
        "--top-p",
        metavar="P",
        type=number(float, 0.0, 1.0),
        help="... from the likeliest that add up to probability P",
    )
    writing.add_argument(
        "--min-p",
        metavar="P",
        type=number(float, 0.0, 1.0),
        help="... from those with P times the likeliest's probability",
    )
    writing.add_argument(
        "--repetition-penalty",
        metavar="X",
        type=number(float, 1e-6),
        help="above 1: tokens come back less (default 1)",
    )
    writing.add_argument(
        "--beams", metavar="N", type=number(int, 1), help="beam search of this width instead"
    )
    writing.add_argument(
        "--length-penalty",
        metavar="X",
        type=number(float),
        help="beams: scores are divided by length ** X (default 1)",
    )
    writing.add_argument(
        "--early-stopping",
        choices=STOPPING,
        help="beams: stop with N ended beams; never: not before none can win",
    )
    writing.add_argument(
        "--stop", metavar="TEXT", action="append", help="end before this text (repeatable)"
    )
    writing.add_argument(
        "--samples", metavar="N", type=number(int, 1), help="texts for each prompt (default 1)"
    )
    writing.add_argument(
        "--seed", metavar="N", type=number(int, 0, 2**32 - 1), help="of the sampling (default 0)"
    )
    writing.add_argument(
        "--no-stream", action="store_true", help="print a text when it is whole, on a terminal too"
    )
    reading = made.add_argument_group("encoders, vectors")
    reading.add_argument(
        "--top", metavar="N", type=number(int, 1), help="candidates for each mask (default 5)"
    )
    reading.add_argument(
        "--embed", action="store_true", help="a vector for each text, of an encoder or a decoder"
    )
    reading.add_argument(
        "--pool",
        choices=("mean", "first", "last"),
        help="which token's features, or their mean (default)",
    )
    reading.add_argument(
        "--out",
        metavar="FILE",
        help="write the vectors there: .npy, or JSON lines (default: to stdout)",
    )
    return made


def number(
    kind: type, least: float = float("-inf"), most: float = float("inf")
) -> Callable[[str], Any]:
    """An argument's type: a finite number between two bounds."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most or abs(value) == float("inf"):
            limits = [
                f"{word} {bound:g}"
                for word, bound in (("at least", least), ("at most", most))
                if abs(bound) != float("inf")
            ]
            raise argparse.ArgumentTypeError(
                f"must be {'an integer' if kind is int else 'a number'} {' and '.join(limits)}, got {text!r}"
            )
        return value

    return read


def check(args: argparse.Namespace) -> None:
    """UserError for options that contradict each other."""
    if not args.prompt and args.prompts is None:
        raise UserError(
            "--prompt TEXT, or --prompts FILE, is needed (see python -m jaxlm.generate --help)"
        )
    sampled = [
        name
        for name in (*SAMPLING, "samples")
        if getattr(args, name) not in (None, 0) and (name, args.samples) != ("samples", 1)
    ]
    if args.beams is None:
        for name in ("length_penalty", "early_stopping"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} needs --beams")
    elif sampled or args.temperature:
        raise UserError(
            f"--{(sampled or ['temperature'])[0].replace('_', '-')} is for sampling and does not go with --beams"
        )
    elif args.stop:
        raise UserError("--stop does not go with --beams")
    if args.temperature == 0 and sampled:
        raise UserError(
            f"--{sampled[0].replace('_', '-')} needs a --temperature above 0: at 0 the likeliest token is taken each time"
        )
    if args.stop and "" in args.stop:
        raise UserError("--stop: an empty text would end everything at once")
    if (args.min_new_tokens or 0) > (args.max_new_tokens or 128):
        raise UserError(
            f"--min-new-tokens {args.min_new_tokens} is above --max-new-tokens {args.max_new_tokens or 128}"
        )
    for name in ("json", "out"):
        path = getattr(args, name)
        if path is not None and not Path(path).parent.is_dir():
            raise UserError(f"--{name}: {Path(path).parent}: no such folder")


def read_prompts(args: argparse.Namespace) -> list[str]:
    prompts = [read_text("-") if prompt == "-" else prompt for prompt in args.prompt or []]
    if args.prompts is not None:
        lines = enumerate(read_text(args.prompts).splitlines(), 1)
        is_json = args.prompts.endswith((".jsonl", ".ndjson"))
        prompts += [
            from_json(line, f"{args.prompts}:{n}") if is_json else line
            for n, line in lines
            if line.strip()
        ]
    if not prompts:
        raise UserError(f"--prompts: {args.prompts}: holds no prompts")
    return prompts


def read_text(name: str) -> str:
    """What a file or, for -, stdin holds."""
    try:
        return (sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()).decode()
    except OSError as error:
        raise UserError(f"--prompts: {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{'stdin' if name == '-' else name}: not UTF-8 (byte {error.start})"
        ) from error


def from_json(line: str, place: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: not JSON: {error}") from error
    found = [
        record[key]
        for key in ("prompt", "text")
        if isinstance(record, dict) and isinstance(record.get(key), str)
    ]
    if not found:
        raise UserError(f'{place}: has no "prompt" or "text" with a text')
    return found[0]


def save(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json: {path}: {error.strerror}") from error


def settings(args: argparse.Namespace) -> "GenerationSettings":
    from jaxlm.decoding.beam import Search
    from jaxlm.decoding.generation import GenerationSettings
    from jaxlm.decoding.sampling import SamplingConfig

    penalty = args.repetition_penalty or 1.0
    samples = any(getattr(args, name) for name in SAMPLING) or (args.samples or 1) > 1
    temperature = float(samples) if args.temperature is None else args.temperature
    choice = SamplingConfig(
        penalty,
        temperature,
        args.top_k or None,
        1.0 if args.top_p is None else args.top_p,
        args.min_p or 0.0,
    )
    search = None
    if args.beams is not None:
        length_penalty = 1.0 if args.length_penalty is None else args.length_penalty
        search = Search(
            args.beams, length_penalty, STOPPING[args.early_stopping or "false"], penalty
        )
    return GenerationSettings(
        choice,
        search,
        args.max_new_tokens or 128,
        args.min_new_tokens or 0,
        tuple(args.stop or ()),
        args.samples or 1,
        args.batch_size,
        args.seed or 0,
    )


def write(found: "LoadedModel", prompts: Sequence[str], args: argparse.Namespace) -> list[dict]:
    """Prints each text, on a terminal as it comes; returns them."""
    from jaxlm.decoding.generation import Generator
    from jaxlm.models import unstacked

    model, options = found.model.config, settings(args)
    generator = Generator(
        found.model, unstacked(found.params), found.tokenizer, found.special, options
    )
    alone = len(prompts) * options.samples == 1
    live = alone and sys.stdout.isatty() and not args.no_stream
    shown = [prompt if model.family == "decoder" else "" for prompt in prompts]
    show, results = Shown(shown), []
    for text in generator(prompts, show.stream if live else None):
        prompt = prompts[text.prompt]
        show(
            text,
            None
            if alone
            else f"prompt {text.prompt + 1}"
            + (f", sample {text.sample + 1}" if options.samples > 1 else ""),
        )
        warn(model, text)
        results.append(
            {
                "prompt": prompt,
                "sample": text.sample,
                "text": text.text,
                "output": text.output,
                "tokens": text.ids.tolist(),
                "prompt_tokens": text.prompt_tokens,
                "finish": text.finish,
            }
        )
    return results


class Shown:
    """Texts on stdout, each behind what is shown of its prompt."""

    def __init__(self, prompts: Sequence[str]):
        self.prompts, self.streamed = prompts, False

    def stream(self, new: str) -> None:
        """Goes on with the only text."""
        print(new if self.streamed else self.prompts[0] + new, end="", flush=True)
        self.streamed = True

    def __call__(self, text: "Written", title: str | None) -> None:
        if self.streamed:
            print(flush=True)
        else:
            heading = f"--- {title} ---\n" if title else ""
            print(f"{heading}{self.prompts[text.prompt]}{text.text}", flush=True)


def warn(model: config.ModelConfig, text: "Written") -> None:
    """Says on stderr where positions ended, or where a text is longer than those that the model was built for."""
    place, tokens = f"prompt {text.prompt + 1}", text.prompt_tokens + len(text.ids)
    if text.finish == "context":
        print(
            f"{place}: the text ends at the model's last position (model.context_length={model.context_length})",
            file=sys.stderr,
        )
    elif (
        model.family == "decoder"
        and model.positions in ("rotary", "sinusoidal")
        and tokens > model.context_length
    ):
        print(
            f"{place}: {tokens} tokens; the model was built for {model.context_length} (model.context_length)",
            file=sys.stderr,
        )


def batches(
    found: "LoadedModel", prompts: Sequence[str], size: int
) -> Iterator[tuple[Sequence[str], list, int]]:
    """(prompts, their token ids, the batch's size) of a model that reads whole texts."""
    from jaxlm.decoding import prompts as reading

    model = found.model.config
    rows = [reading.framed(model, found.tokenizer, found.special, prompt) for prompt in prompts]
    for place, row in enumerate(rows, 1):
        reading.check_length(model, place, len(row))
    size = min(size, len(rows))
    for start in range(0, len(rows), size):
        yield prompts[start : start + size], rows[start : start + size], size


def fill(found: "LoadedModel", prompts: Sequence[str], args: argparse.Namespace) -> list[dict]:
    """Prints each text with its likeliest filling, and the candidates for each mask; returns them."""
    from jaxlm.decoding.candidates import Filler
    from jaxlm.decoding.prompts import ids_of

    masks = ids_of(found.tokenizer, [found.special.mask])
    if not masks:
        raise UserError(f"{args.model}: its tokenizer has no mask token; --embed gives vectors")
    ((name, mask),) = masks.items()
    for place, prompt in enumerate(prompts, 1):
        if name not in prompt:
            raise UserError(
                f"prompt {place}: has no {name}, the mask to be filled; --embed gives vectors"
            )
    results, filler = (
        [],
        Filler(found.model, found.params, mask, args.top or 5, min(args.batch_size, len(prompts))),
    )
    for part, rows, _ in batches(found, prompts, args.batch_size):
        for prompt, row, candidates in zip(part, rows, filler(rows), strict=True):
            results.append({"prompt": prompt, **filled(found, row, candidates)})
            print(results[-1]["text"])
            for at, choices in enumerate(results[-1]["masks"], 1):
                shown = ", ".join(
                    f"{json.dumps(choice['text'], ensure_ascii=False)} {choice['probability']:.4f}"
                    for choice in choices
                )
                print(f"  {name} {at}: {shown}", flush=True)
    return results


def filled(found: "LoadedModel", row: Any, candidates: Sequence[Any]) -> dict:
    """A text with its likeliest filling, and the candidates for each mask, as JSON data."""
    best = row.copy()
    for mask in candidates:
        best[mask.position] = mask.ids[0]
    choices = [
        [
            {
                "token": int(token),
                "text": found.tokenizer.show([token]),
                "probability": float(probability),
            }
            for token, probability in zip(mask.ids, mask.probabilities, strict=True)
        ]
        for mask in candidates
    ]
    return {"text": found.tokenizer.decode(best), "masks": choices}


def embed(found: "LoadedModel", prompts: Sequence[str], args: argparse.Namespace) -> list[dict]:
    """Writes a vector for each text to stdout or to a file; returns what to say of them in the JSON."""
    import numpy as np

    from jaxlm.decoding.candidates import Embedder

    pool, family = args.pool or "mean", found.model.config.family
    if family == "encoder_decoder":
        raise UserError("--embed takes an encoder or a decoder")
    if family == "decoder" and pool == "first":
        raise UserError(
            "--pool first: a decoder's first token sees nothing of the text; mean or last"
        )
    embedder = Embedder(found.model, found.params, pool, min(args.batch_size, len(prompts)))
    vectors = np.concatenate(
        [embedder(rows) for _, rows, _ in batches(found, prompts, args.batch_size)]
    )
    results = [
        {"text": prompt, "vector": vector.tolist()}
        for prompt, vector in zip(prompts, vectors, strict=True)
    ]
    lines = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results)
    try:
        if args.out is None:
            print(lines, end="", flush=True)
        elif args.out.endswith(".npy"):
            with Path(args.out).open("wb") as file:
                np.save(file, vectors)
        else:
            Path(args.out).write_text(lines, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out: {args.out}: {error.strerror}") from error
    return results


if __name__ == "__main__":
    runtime.run(main)
