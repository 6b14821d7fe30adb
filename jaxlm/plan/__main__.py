"""python -m jaxlm.plan budget | memory | compile | fit | sweep | transfer: plan before spending."""

import importlib
from collections.abc import Callable, Sequence

from jaxlm import runtime

COMMANDS: dict[str, str] = {
    "budget": "what a compute budget buys, and what a model costs",
    "memory": "bytes on each GPU by what they are for, and what fits",
    "compile": "compile the training step for GPUs that are not there",
    "fit": "fit scaling laws to trained runs, and predict larger ones",
    "sweep": "write and train a ladder of runs for them",
    "transfer": "compare learning rates at several widths",
}
HELP = """usage: python -m jaxlm.plan COMMAND ...

commands (each has --help):
{commands}"""


def main(argv: Sequence[str]) -> int:
    """Run the command named first with the other arguments, or list the commands."""

    def find(name: str) -> Callable[[Sequence[str]], int]:
        return importlib.import_module(f"jaxlm.plan.{name}_command").main

    return runtime.call_command(
        argv, program="python -m jaxlm.plan ", commands=COMMANDS, text=HELP, find=find
    )


if __name__ == "__main__":
    runtime.run(main)
