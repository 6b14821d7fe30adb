"""python -m jaxlm: name the commands."""

import importlib
from collections.abc import Callable, Sequence

from jaxlm import runtime

COMMANDS = {
    "prepare": "turn raw text into a token store, and report what it holds",
    "train": "train a language model, or resume a run",
    "generate": "write texts, fill masks, or make vectors",
    "predict": "label texts, with probabilities",
    "evaluate": "measure loss, perplexity and bits per byte",
    "convert": "import from Hugging Face transformers, and export for it",
    "plan": "budgets, memory, a step compiled for GPUs that are not there, scaling laws",
    "bench": "measure how fast a config trains, and what its step waits for",
    "harness": "run tasks of the lm-evaluation-harness",
}
HELP = """usage: python -m jaxlm.COMMAND ...

commands (each has --help):
{commands}

A first run:
  python -m jaxlm.train --config configs/quickstart.py"""


def main(argv: Sequence[str]) -> int:
    """Run the command named first with the other arguments, or list the commands."""

    def find(name: str) -> Callable[[Sequence[str]], int]:
        return importlib.import_module(command_module(name)).main

    return runtime.call_command(
        argv, program="python -m jaxlm.", commands=COMMANDS, text=HELP, find=find
    )


def command_module(name: str) -> str:
    """Return the module of a command: `plan` is a package of several."""
    return "jaxlm.plan.__main__" if name == "plan" else f"jaxlm.{name}"


if __name__ == "__main__":
    runtime.run(main)
