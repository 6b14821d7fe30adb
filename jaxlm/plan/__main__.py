"""python -m jaxlm.plan budget | memory | compile | fit | sweep: plan before spending."""

import importlib
import sys
from collections.abc import Sequence

from jaxlm import runtime
from jaxlm.config import UserError
from jaxlm.config.fields import suggestion

COMMANDS: dict[str, str] = {
    "budget": "what a compute budget buys, and what a model costs",
    "memory": "bytes on each GPU by what they are for, and what fits",
    "compile": "compile the training step for GPUs that are not there",
    "fit": "fit scaling laws to trained runs, and predict larger ones",
    "sweep": "write and train a ladder of runs for them",
}
HELP = """usage: python -m jaxlm.plan COMMAND ...

commands (each has --help):
{commands}"""


def main(argv: Sequence[str]) -> int:
    """Run the command named first with the other arguments, or list the commands."""
    width = max(map(len, COMMANDS), default=0)
    lines = [f"  python -m jaxlm.plan {name:<{width}}  {use}" for name, use in COMMANDS.items()]
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
        raise UserError(f"there is no command {name!r}{hint}; see python -m jaxlm.plan --help")
    command = importlib.import_module(f"jaxlm.plan.{name}_command")
    return command.main(argv[1:])


if __name__ == "__main__":
    runtime.run(main)
