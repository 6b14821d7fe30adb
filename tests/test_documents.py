"""The documents tell the truth: links, files, commands, the tree, and every snippet."""

import ast
import importlib
import json
import re
import shlex
from dataclasses import replace

import pytest
from support import tiny
from test_structure import ROOT, tracked

from jaxlm import config, prepare
from jaxlm.config import UserError

README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DOCUMENTS = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
README_LINES = 200
# Commands whose arguments are parsed; those of plan have subcommands in modules of their own.
PARSED = ("bench", "convert", "evaluate", "generate", "predict", "prepare", "train")


def tree_of(text):
    """Paths in a page's tree: the fenced block that begins with a folder, two spaces a level."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if re.match(r"\S+/(\s|$)", block):
            yield from tree_paths(block)


def tree_paths(block):
    parents = []
    for line in filter(str.strip, block.splitlines()):
        depth = (len(line) - len(line.lstrip(" "))) // 2
        name = re.split(r" {2,}", line.strip())[0]
        parents[depth:] = [name.rstrip("/")]
        yield "/".join(parents)


def test_the_tree_is_read_as_it_is_written():
    tree = "jaxlm/   the package\n  config/\n    load.py   files\n  step.py  a step\nconfigs/\n"
    text = f"words\n```\n{tree}```\n```\nother\n```\n"
    assert list(tree_of(text)) == [
        "jaxlm",
        "jaxlm/config",
        "jaxlm/config/load.py",
        "jaxlm/step.py",
        "configs",
    ]


def test_the_architecture_page_names_every_file():
    listed = list(tree_of(ARCHITECTURE.read_text()))
    assert [path for path in listed if not (ROOT / path).exists()] == []
    assert [path for path in listed if listed.count(path) > 1] == []

    modules = {
        name
        for name in tracked()
        if name.startswith("jaxlm/") and name.endswith(".py") and not name.endswith("__init__.py")
    }
    assert {path for path in listed if path.endswith(".py")} >= modules


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= README_LINES


def anchors(text):
    """The names that GitHub gives to the headings of a document."""
    headings = re.findall(
        r"^#+ +(.+)$",
        re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL),
        re.MULTILINE,
    )
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def broken_links(document):
    text = document.read_text()
    for target in re.findall(r"\]\(<?([^)>\s]+)>?[^)]*\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = document.parent / path if path else document
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            yield target


def missing_names(document):
    """Files and modules that the commands and the `code` of a document name."""
    text = document.read_text()
    named = re.findall(r"--config[ =]([\w./-]+\.\w+)", text)
    named += re.findall(r"(?<![\w/.])((?:configs|jaxlm|launch|tests)/[\w./-]+\.\w+)", text)
    yield from (
        name for name in named if not name.startswith("runs/") and not (ROOT / name).exists()
    )
    for module in re.findall(r"-m (jaxlm(?:\.\w+)+)", text):
        path = ROOT / module.replace(".", "/")
        if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists():
            yield module


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_the_documents_name_exists(document):
    assert list(broken_links(document)) == []
    assert list(missing_names(document)) == []


def test_a_broken_document_is_noticed(tmp_path):
    document = tmp_path / "page.md"
    links = "[a](#one-two) [b](#three) [c](no.md) [d](https://x.org/y)"
    document.write_text(f"# One two\n{links}\n`--config configs/no.py` python -m jaxlm.no\n")
    assert list(broken_links(document)) == ["#three", "no.md"]
    assert set(missing_names(document)) == {"configs/no.py", "jaxlm.no"}


# Snippets

# Files that only a user has: the quickstart stands for them.
FILES_OF_A_USER = re.compile(r"FILE$|my\.py$|^runs/")


def blocks(document, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


def snippets(language):
    """(document, number, text) of every block of a language, named for pytest."""
    for document in DOCUMENTS:
        if document.exists():
            for number, text in enumerate(blocks(document, language)):
                yield pytest.param(text, id=f"{document.name}-{number}")


@pytest.mark.parametrize("snippet", list(snippets("python")))
def test_python_snippets_load(snippet, tmp_path):
    """A config is loaded as a recipe; the imports of other snippets, and names in them, exist."""
    if "config = Config(" in snippet:
        (tmp_path / "snippet.py").write_text(snippet)
        assert isinstance(config.load(tmp_path / "snippet.py"), config.Config)
        return

    tree, modules = ast.parse(snippet), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxlm"):
            for alias in node.names:
                found = getattr(importlib.import_module(node.module), alias.name, None)
                modules[alias.name] = found or importlib.import_module(
                    f"{node.module}.{alias.name}"
                )
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in modules:
            assert hasattr(modules[ast.unparse(node.value)], node.attr), ast.unparse(node)


def commands(text):
    """The arguments of every `-m jaxlm.COMMAND` of a shell block, continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for place, word in enumerate(words):
            if word == "-m" and words[place + 1].startswith("jaxlm."):
                end = words.index("&&", place) if "&&" in words[place:] else len(words)
                yield words[place + 1], words[place + 2 : end]
            elif re.search(r"(^|/)launch/(local|slurm)\.sh$", word):
                yield "jaxlm.train", [w for w in words[place + 1 :] if not w.isdigit()]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Runs that stand for the base of a user's run, by family."""
    folders = {}
    for family, run_config in tiny.FAMILIES.items():
        folders[family] = tmp_path_factory.mktemp("bases") / family
        (folders[family] / "checkpoints").mkdir(parents=True)
        model = replace(run_config.model, context_length=1024)
        text = json.dumps(config.to_dict(replace(run_config, model=model)))
        (folders[family] / "config.json").write_text(text)
        (folders[family] / "tokenizer.json").write_text("{}")
    return folders


@pytest.mark.parametrize("snippet", list(snippets("sh")))
def test_the_configs_of_commands_load(snippet, bases):
    """Every `--config FILE key=value` is loaded with its edits."""
    for module, arguments in commands(snippet):
        if module != "jaxlm.train":
            continue
        path = arguments[arguments.index("--config") + 1]
        edits = [word for word in arguments if re.fullmatch(r"[a-z_]+(\.\w+)*=.*", word)]
        # A base with this word in its name is an encoder.
        base = bases["encoder" if any("encoder" in edit for edit in edits) else "decoder"]
        edits = [f"base={base}" if edit.startswith("base=") else edit for edit in edits]
        data = arguments[arguments.index("--data") + 1] if "--data" in arguments else None
        if FILES_OF_A_USER.search(path):
            path = "configs/quickstart.py"
        config.load(ROOT / path, edits, data)


def parse_command(module, arguments):
    """Parse the arguments of a command as it would; a mistake is an error or an exit."""
    name = module.removeprefix("jaxlm.")
    command = importlib.import_module(module)
    if name == "prepare" and arguments[0] in prepare.MODULES:
        return prepare.build_module_parser(arguments[0]).parse_args(arguments[1:])
    if name == "prepare" and arguments[0] == "show":
        return command.build_show_parser().parse_intermixed_args(arguments[1:])
    parser = getattr(command, f"build_{name}_parser")()
    parse = parser.parse_args if name == "convert" else parser.parse_intermixed_args
    return parse(arguments)


@pytest.mark.parametrize("snippet", list(snippets("sh")))
def test_the_arguments_of_commands_are_known(snippet):
    for module, arguments in commands(snippet):
        if module.removeprefix("jaxlm.") in PARSED:
            parse_command(module, arguments)


def test_a_wrong_argument_is_noticed():
    for text in (
        "python -m jaxlm.evaluate runs/a --againts runs/b",
        "python -m jaxlm.prepare docstrings",
        "python -m jaxlm.convert extend runs/a",
    ):
        ((module, arguments),) = commands(text)
        with pytest.raises((SystemExit, UserError)):
            parse_command(module, arguments)


INLINE_KEY = re.compile(r"`([a-z]+(?:\.[a-z_0-9]+)+)(?:=[^`]*)?`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_settings_named_in_the_text_exist(document):
    """`parallel.zero=3`, `training.steps`: the key is one of the config's."""
    keys = set(config.all_keys())
    unknown = []
    for key in INLINE_KEY.findall(document.read_text()):
        in_config = key.partition(".")[0] in keys and not key.endswith(
            (".py", ".json", ".md", ".model")
        )
        if in_config and key not in keys and not key.startswith("data.sources."):
            unknown.append(key)
    assert unknown == []
