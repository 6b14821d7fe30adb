"""python -m jaxlm: name the commands."""

import importlib
import sys
from collections.abc import Sequence

from jaxlm import runtime
from jaxlm.config import UserError
from jaxlm.config.fields import suggestion

COMMANDS = {
    "prepare": "turn raw text into a token store, and report what it holds",
    "train": "train a language model, or resume a run",
    "generate": "write texts, fill masks, or make vectors",
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
    width = max(map(len, COMMANDS))
    lines = [f"  python -m jaxlm.{name:<{width}}  {use}" for name, use in COMMANDS.items()]
    text = HELP.format(commands="\n".join(lines))
    if argv and argv[0] in ("-h", "--help", "help"):
        print(text)
        return 0
    if not argv:
        print(text, file=sys.stderr)
        return UserError.exit_code

    name = argv[0]
    if name not in COMMANDS:
        hint = suggestion(name, COMMANDS) or f" (there are: {', '.join(COMMANDS)})"
        raise UserError(f"there is no command {name!r}{hint}; see python -m jaxlm --help")
    return importlib.import_module(command_module(name)).main(argv[1:])


def command_module(name: str) -> str:
    """Return the module of a command: `plan` is a package of several."""
    return "jaxlm.plan.__main__" if name == "plan" else f"jaxlm.{name}"


if __name__ == "__main__":
    runtime.run(main)
