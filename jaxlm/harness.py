"""Run tasks of the lm-evaluation-harness with models of jaxlm.

    python -m jaxlm.harness run --model_args path=RUN|HF_DIR --tasks TASK

The harness (the package lm_eval) finds models in a registry that only code can add to. This command
adds "jaxlm" and passes its arguments on to `lm_eval`. lm_eval is not imported before, and jax only
when lm_eval makes the model.
"""

import argparse
import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from jaxlm import runtime
from jaxlm.config import UserError
from jaxlm.config.fields import suggestion
from jaxlm.directories import check_model_directory

NAME = "jaxlm"
MODEL_ARGUMENTS = ("step", "ema", "compute", "max_length", "devices")  # beside the path
LM_EVAL_COMMANDS = ("run", "ls", "validate")
LM_EVAL_ARGUMENTS = ("max_batch_size", "device")  # lm_eval passes them to every model

HELP = """usage: python -m jaxlm.harness run --model_args path=RUN|HF_DIR[,KEY=VALUE...] \
--tasks TASK [arguments of lm_eval run]

Run tasks of the lm-evaluation-harness (lm_eval) with a decoder of jaxlm. --model is jaxlm unless it
is given.

keys of --model_args:
  path=DIR              the run_directory of a training, or a Hugging Face folder
  step=N                a run's checkpoint (the newest)
  ema=true              a run's average of the weights (optimizer.ema_decay)
  compute=DTYPE         float32 or bfloat16 (float32)
  max_length=N          tokens that are read at once (the model's context_length)
  devices=N             devices that the model is split over (1)

examples:
  python -m jaxlm.harness run --model_args path=runs/quickstart --tasks my_task \
--include_path tasks/ --batch_size 8
  python -m jaxlm.harness run --model_args path=gpt2/ --tasks lambada_openai --output_path results/
  python -m jaxlm.harness ls tasks

In Python: jaxlm.harness.register(), then
lm_eval.simple_evaluate(model="jaxlm", model_args="path=runs/quickstart", tasks=[...]).
Tasks on disk need no network; most others download their data. It needs lm_eval:
pip install "jaxlm[eval]"."""


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0
    arguments = list(argv)
    if arguments[0].startswith("-"):  # `run` is the default of lm_eval too
        arguments.insert(0, "run")
    if arguments[0] not in LM_EVAL_COMMANDS and (
        hint := suggestion(arguments[0], LM_EVAL_COMMANDS)
    ):
        raise UserError(f"there is no command {arguments[0]!r}{hint} (see jaxlm.harness --help)")
    names = {argument.partition("=")[0] for argument in arguments}
    if arguments[0] == "run" and not names & {"--model", "-M"}:
        check_model_arguments(arguments)
        arguments[1:1] = ["--model", NAME]

    register()
    from lm_eval.__main__ import cli_evaluate  # type: ignore[import-not-found]

    original_argv, sys.argv = sys.argv, ["lm_eval", *arguments]
    try:
        with one_line_errors():
            cli_evaluate()
    except UserError:
        raise
    except Exception as error:
        if str(error).startswith(("Tasks not found", "No tasks specified")):
            raise UserError(f"--tasks: {error}") from error
        if runs_in_jaxlm(error):
            raise
        # A task, a file or a value that lm_eval can't use.
        raise UserError(f"lm_eval: {type(error).__name__}: {error}") from error
    finally:
        sys.argv = original_argv
    return 0


def check_model_arguments(arguments: Sequence[str]) -> None:
    """Raise UserError for unknown keys of --model_args, and for a path of no model."""
    values: list[str] = []
    is_wanted = False
    for argument in arguments:
        if argument.startswith("-"):
            option, _, value = argument.partition("=")
            is_wanted = option in ("--model_args", "-a")
        else:
            value = argument
        values += value.split(",") if is_wanted else []

    pairs = [value.partition("=") for value in values if "=" in value]
    model_arguments = {name: value for name, _, value in pairs}
    path = model_arguments.pop("path", "")
    check_names(name for name in model_arguments if name not in LM_EVAL_ARGUMENTS)
    if path:
        check_model_directory(path)


def check_names(names: Iterable[str]) -> None:
    """Raise UserError for a model argument that there is not, `path` aside."""
    for name in names:
        if name not in MODEL_ARGUMENTS:
            known = ", ".join(("path", *MODEL_ARGUMENTS))
            raise UserError(f"--model_args: {name!r} is not known; known: {known}")


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Let parsers of arguments raise UserError while the block runs, instead of their usage."""

    def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        raise UserError(f"{message} (see {parser.prog} --help)")

    parser_class: Any = argparse.ArgumentParser
    original, parser_class.error = parser_class.error, refuse
    try:
        yield
    finally:
        parser_class.error = original


def runs_in_jaxlm(error: BaseException) -> bool:
    """Return whether an error comes from code of jaxlm that lm_eval has called."""
    package = Path(__file__).parent
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    return any(file.is_relative_to(package) and file != Path(__file__) for file in files)


def register() -> None:
    """Make "jaxlm" a model of lm_eval in this process.

    Raises UserError where lm_eval is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError('lm_eval is not installed: pip install "jaxlm[eval]"')
    from lm_eval.api.registry import model_registry  # type: ignore[import-not-found]

    if NAME not in model_registry:
        # A name, not the class: lm_eval looks for mistakes in tasks before it needs the model.
        model_registry.register(NAME, target="jaxlm.harness:JaxLM")


def __getattr__(name: str) -> Any:
    """Make `JaxLM` when it is asked for: its base class is lm_eval's."""
    if name == "JaxLM":
        return model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def model_class() -> type:
    """Return the class that lm_eval makes its model of."""
    from lm_eval.api.model import TemplateLM  # type: ignore[import-not-found]

    from jaxlm.evaluation.harness_model import HarnessModel

    class JaxLM(HarnessModel, TemplateLM):
        """A decoder of jaxlm.

        It inherits how contexts and continuations are cut into tokens, as lm_eval's own models do.
        """

        def __init__(self, path: str = "", batch_size: int | str = 1, **arguments: Any):
            TemplateLM.__init__(self)
            for name in LM_EVAL_ARGUMENTS:
                arguments.pop(name, None)
            check_names(arguments)
            self.load(path, batch_size, **arguments)

    return JaxLM


if __name__ == "__main__":
    runtime.run(main)
