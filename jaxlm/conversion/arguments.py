"""The arguments of the command `convert`. Imports no jax."""

import argparse
import math
import re
from pathlib import Path
from typing import Any

from jaxlm import runtime
from jaxlm.config.fields import shorten
from jaxlm.conversion.extend_command import add_extend_parser

CONVERT_EXAMPLES = """examples:
  python -m jaxlm.convert import gpt2/ runs/gpt2
  python -m jaxlm.train --config runs/gpt2/config.json --data 'books/*.txt' training.steps=2000

  python -m jaxlm.convert import bert/ runs/bert optimizer.learning_rate=5e-5 \\
      data.sequence_length=256
  python -m jaxlm.convert export runs/quickstart quickstart-hf
  python -m jaxlm.convert export runs/llama llama-hf --step 20000 --dtype bfloat16 \\
      --max-shard-size 2GB --archive
  python -m jaxlm.convert quantize runs/llama llama-int8 --bits 8
  python -m jaxlm.convert extend runs/quickstart runs/peps --from-text 'peps/*.rst' --count 500
  python -m jaxlm.convert extend gpt2/ runs/chat --special '<|im_start|>' '<|im_end|>'
  python -m jaxlm.convert export runs/lora lora-peft --adapter
  python -m jaxlm.convert import lora-peft runs/lora2 base=runs/gpt2

HF_DIR is a folder with config.json, safetensors and tokenizer.json or, for some models, vocab.json
and merges.txt, vocab.txt, spiece.model or tokenizer.model, or an adapter of PEFT
(adapter_config.json). RUN is a run_directory.
transformers loads what is exported."""

MAX_LEVELS = 200  # of folders in a path; each is made by a call within the last one's
COMMANDS = ("import", "export", "quantize", "extend")
BYTES_PER_UNIT = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BYTES_PER_UNIT |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def build_convert_parser() -> runtime.Parser:
    """Return the parser of the commands."""
    parser = runtime.Parser(
        prog="python -m jaxlm.convert",
        description="Import a model from Hugging Face transformers, export one for it, or round "
        "the weights of one.",
        epilog=CONVERT_EXAMPLES,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))

    importing = commands.add_parser(
        "import",
        description="Make a run directory from which training continues.",
        epilog=CONVERT_EXAMPLES,
        help="HF_DIR RUN: make a run directory of a Hugging Face directory",
    )
    importing.add_argument(
        "directory",
        type=parse_path,
        metavar="HF_DIR",
        help="config.json, model.safetensors (or shards) and the files of its tokenizer",
    )
    importing.add_argument("run", type=parse_path, metavar="RUN", help="the run directory to make")
    importing.add_argument(
        "edits",
        nargs="*",
        metavar="key=value",
        help="changes to the run's config, such as optimizer.learning_rate=5e-5",
    )

    exporting = commands.add_parser(
        "export",
        description="Write a run's model for transformers.",
        epilog=CONVERT_EXAMPLES,
        help="RUN OUT: write a run's model for transformers",
    )
    exporting.add_argument("run", type=parse_path, metavar="RUN", help="the run directory")
    exporting.add_argument("out", type=parse_path, metavar="OUT", help="the folder to make")
    checkpoint = exporting.add_mutually_exclusive_group()
    checkpoint.add_argument(
        "--step", type=int, metavar="N", help="the checkpoint to take (the newest)"
    )
    checkpoint.add_argument(
        "--best",
        action="store_true",
        help="take the best checkpoint, by checkpoint.best (the lowest eval/loss)",
    )
    exporting.add_argument(
        "--ema",
        action="store_true",
        help="take the average of the weights that a run with optimizer.ema_decay keeps",
    )
    exporting.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the weights (float32)",
    )
    exporting.add_argument(
        "--max-shard-size",
        type=parse_size,
        default="5GB",
        metavar="SIZE",
        help="of a file of weights: 5GB, 500MB, 2GiB (5GB)",
    )
    exporting.add_argument(
        "--archive",
        action="store_true",
        help="also write OUT/model.tar.gz, as SageMaker's Hugging Face containers read it",
    )
    exporting.add_argument(
        "--bits",
        type=int,
        choices=(8, 4),
        help="round the matrices of the blocks, which transformers reads with compressed-tensors",
    )
    exporting.add_argument(
        "--group", type=int, choices=(32, 64), help="inputs that share a scale, at 4 bits (32)"
    )
    exporting.add_argument(
        "--adapter",
        action="store_true",
        help="write the adapters alone, as PEFT loads them onto the exported base",
    )
    add_quantize_parser(commands)
    add_extend_parser(commands, parse_path, CONVERT_EXAMPLES)
    return parser


def add_quantize_parser(commands: Any) -> None:
    """Add the parser of `quantize` to the commands."""
    rounding = commands.add_parser(
        "quantize",
        description="Round a model's matrices to 8 or 4 bits. generate, evaluate and harness read "
        "the result, and keep it rounded in memory.",
        epilog=CONVERT_EXAMPLES,
        help="RUN|HF_DIR OUT: round a model's weights to 8 or 4 bits",
    )
    rounding.add_argument(
        "directory", type=parse_path, metavar="RUN|HF_DIR", help="a run, or a Hugging Face model"
    )
    rounding.add_argument("out", type=parse_path, metavar="OUT", help="the folder to make")
    rounding.add_argument(
        "--bits", type=int, choices=(8, 4), required=True, help="of a weight's level"
    )
    rounding.add_argument(
        "--group",
        type=int,
        choices=(32, 64),
        help="inputs that share a scale, at 4 bits (32); at 8 bits all inputs of a channel do",
    )
    rounding.add_argument(
        "--step", type=int, metavar="N", help="the checkpoint of a run to take (the newest)"
    )
    rounding.add_argument(
        "--ema",
        action="store_true",
        help="take a run's average of the weights (optimizer.ema_decay)",
    )


def parse_size(text: str) -> int:
    """Return a size in bytes: 500MB is 500,000,000. argparse turns the error into ours."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?i?B|)", text)
    size = float(match[1]) * BYTES_PER_UNIT.get(match[2], 0) if match else 0.0
    if not 1 <= size < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 5GB or 500MB")
    return int(size)


def parse_path(text: str) -> Path:
    """Return a path, which need not exist; argparse turns the error into ours."""
    path = Path(text)
    try:
        text.encode()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # said later, in the words of the command
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{shorten(text)}: {error.strerror}") from error
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8") from error
    if not text or len(path.parts) > MAX_LEVELS:
        raise argparse.ArgumentTypeError(f"{shorten(text)} is not the path of a folder")
    return path
