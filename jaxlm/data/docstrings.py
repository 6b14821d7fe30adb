"""Make instructions of Python's own library: python -m jaxlm.prepare docstrings.

The question is a function, the answer the first paragraph of its docstring. The library is parsed,
never imported.
"""

import argparse
import ast
import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxlm.config import SourceConfig, UserError
from jaxlm.data.listing import list_files, stdlib_folder
from jaxlm.files import expand_home, output_writer

PURPOSE = (
    "Write JSON lines of instruction, input and output: functions of Python's own library, and "
    "what their docstrings say about them. For objective.kind=instruction; with --preferences for "
    "objective.kind=preference: prompt, chosen and rejected."
)
USAGE = """examples:
  python -m jaxlm.prepare docstrings docstrings.jsonl
  python -m jaxlm.prepare docstrings preferences.jsonl --preferences"""
INSTRUCTION = "Write the docstring of this Python function."
LONGEST_SOURCE, LONGEST_ANSWER, SHORTEST_ANSWER = 400, 300, 12  # characters
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class DocumentedFunction(NamedTuple):
    """A function of a module."""

    place: str  # module file, and the line
    source: str  # without its docstring
    answer: str  # the first paragraph of the docstring, on one line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument("out", metavar="OUT.jsonl", help="the file to write")
    parser.add_argument(
        "--longest",
        type=int,
        default=LONGEST_SOURCE,
        metavar="N",
        help=f"characters of a function ({LONGEST_SOURCE})",
    )
    parser.add_argument(
        "--preferences",
        action="store_true",
        help="write the docstring of another function too, as the worse answer",
    )


def run_command(args: argparse.Namespace) -> int:
    """Write the file and print how many records it has; return the exit code."""
    out = expand_home(args.out)
    if not out.parent.is_dir():
        raise UserError(f"{args.out}: no such folder")
    if args.longest < 1:
        raise UserError(f"--longest: must be at least 1, got {args.longest}")
    functions = list(read_functions(args.longest))
    build = build_preferences if args.preferences else build_instructions
    try:
        with output_writer(out) as file:
            for record in build(functions):
                file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise UserError(f"{args.out}: {error.strerror}") from error

    print(f"{args.out}: {len(functions):,} functions with their docstrings")
    return 0


def build_instructions(functions: Sequence[DocumentedFunction]) -> Iterator[dict[str, str]]:
    """Yield a record for each function, in the form of Alpaca."""
    for function in functions:
        yield {
            "instruction": INSTRUCTION,
            "input": function.source,
            "output": function.answer,
            "place": function.place,
        }


def build_preferences(functions: Sequence[DocumentedFunction]) -> Iterator[dict[str, str]]:
    """Yield a record for each function: its docstring, and that of a function far from it.

    A function without another one whose answer differs is left out.
    """
    half = len(functions) // 2
    for number, function in enumerate(functions):
        others = (functions[(number + half + step) % len(functions)] for step in range(half))
        rejected = next((o.answer for o in others if o.answer != function.answer), None)
        if rejected is not None:
            yield {
                "prompt": f"{INSTRUCTION}\n\n{function.source}",
                "chosen": function.answer,
                "rejected": rejected,
                "place": function.place,
            }


def read_functions(longest: int) -> Iterator[DocumentedFunction]:
    """Yield the documented functions of the library in the order of its files, each once.

    Functions of more than `longest` characters are left out.
    """
    seen: set[tuple[str, str]] = set()
    for path in list_files(SourceConfig(name="python_stdlib", format="python_stdlib")):
        try:
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (OSError, ValueError, SyntaxError):  # of a test of broken files, say
            continue
        name = Path(path).relative_to(stdlib_folder()).as_posix()
        for node in ast.walk(tree):
            if not isinstance(node, FUNCTIONS):
                continue
            function = read_function(node, text, name)
            if function is None or len(function.source) > longest:
                continue
            key = function.source, function.answer
            if key not in seen:
                seen.add(key)
                yield function


def read_function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, text: str, name: str
) -> DocumentedFunction | None:
    """Return a function without its docstring; None where it has none that is of use."""
    docstring = ast.get_docstring(node)
    if docstring is None or len(node.body) < 2:
        return None
    answer = " ".join(docstring.strip().split("\n\n")[0].split())
    if not SHORTEST_ANSWER <= len(answer) <= LONGEST_ANSWER:
        return None

    lines = text.splitlines()
    first, after = node.body[0], node.body[1]
    decorated = min([node.lineno, *(item.lineno for item in node.decorator_list)])
    if first.lineno <= node.lineno or after.lineno <= (first.end_lineno or 0):
        return None  # on one line with another statement
    before = lines[decorated - 1 : first.lineno - 1]
    body = lines[first.end_lineno : node.end_lineno]
    source = inspect.cleandoc("\n" + "\n".join([*before, *body]))
    return DocumentedFunction(f"{name}:{node.lineno}", source, answer)
