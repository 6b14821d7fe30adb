"""Instructions made of Python's own library."""

import ast
import inspect
import json

import pytest

from jaxlm import prepare, runtime
from jaxlm.data import docstrings

MODULE = '''
import functools


@functools.cache
def area(width, height):
    """Return the area of
    a rectangle.

    In square metres.
    """
    # The product.
    return width * height


class Shape:
    async def draw(self):
        """Draw the shape on a screen, line by line."""
        for line in self.lines:
            await line


def undocumented(x):
    return x


def short(x):
    """No."""
    return x


def one_line(x): """A docstring on the line of its function."""; return x


def only_documented():
    """This function has nothing beside its docstring."""
'''


@pytest.fixture
def library(tmp_path, monkeypatch):
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "shapes.py").write_text(MODULE)
    (folder / "copy.py").write_text(MODULE.replace("def undocumented", "def other"))
    (folder / "broken.py").write_text("def (:\n")
    monkeypatch.setattr(docstrings, "list_files", lambda source: sorted(folder.glob("*.py")))
    monkeypatch.setattr(docstrings, "stdlib_folder", lambda: folder)
    return folder


def written(path, *options):
    arguments = ["docstrings", str(path), *options]
    assert runtime.command(prepare.main, arguments) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_record_is_a_function_without_its_docstring(library, tmp_path):
    """Each once, in the order of the files."""
    area, draw = written(tmp_path / "out.jsonl")
    assert area["input"].splitlines() == [
        "@functools.cache",
        "def area(width, height):",
        "    # The product.",
        "    return width * height",
    ]
    assert area["output"] == "Return the area of a rectangle."
    assert (area["place"], draw["place"]) == ("copy.py:6", "copy.py:17")
    assert draw["input"].startswith("async def draw(self):\n    for line")


def test_the_longest_functions_are_left_out(library, tmp_path):
    (draw,) = written(tmp_path / "out.jsonl", "--longest", "80")
    assert draw["output"] == "Draw the shape on a screen, line by line."


def test_preferences_have_the_answer_of_another_function(library, tmp_path):
    records = written(tmp_path / "out.jsonl", "--preferences")
    assert [record["rejected"] for record in records] == [
        record["chosen"] for record in reversed(records)
    ]
    assert records[0]["prompt"].startswith(docstrings.INSTRUCTION)


@pytest.mark.slow
def test_records_of_the_real_library_are_its_functions(tmp_path, monkeypatch):
    modules = [inspect.getsourcefile(module) for module in (ast, inspect, json)]
    monkeypatch.setattr(
        docstrings, "list_files", lambda source: [docstrings.Path(path) for path in modules]
    )
    records = written(tmp_path / "out.jsonl")
    assert len(records) > 20
    for record in records:
        (node,) = ast.parse(record["input"]).body
        name, line = record["place"].split(":")
        text = (docstrings.stdlib_folder() / name).read_text()
        original = next(
            item
            for item in ast.walk(ast.parse(text))
            if isinstance(item, docstrings.FUNCTIONS) and item.lineno == int(line)
        )
        paragraph = ast.get_docstring(original).split("\n\n")[0]
        assert record["output"] == " ".join(paragraph.split())
        assert ast.dump(node.args) == ast.dump(original.args)
        assert [ast.dump(item) for item in node.body] == [
            ast.dump(item) for item in original.body[1:]
        ]


def test_mistakes_are_refused_in_one_line(tmp_path, capsys):
    for arguments, message in (
        ([str(tmp_path / "none" / "out.jsonl")], "no such folder"),
        ([str(tmp_path / "out.jsonl"), "--longest", "0"], "--longest: must be at least 1"),
    ):
        assert runtime.command(prepare.main, ["docstrings", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
