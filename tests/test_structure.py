"""The shape of the package: who imports whom, how long things get, how docstrings open."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxlm"

# Imports go down these levels. A name is a module, or a folder ("room") whose modules may import
# each other.
LEVELS = {
    "config": 0,
    "types": 0,
    "base_identity": 2,
    "communication": 2,
    "accelerators": 0,
    "flops": 1,
    "hardware": 1,
    "nn": 1,
    "parameter_names": 1,
    "precision": 1,
    "quantization": 1,
    "losses": 1,
    "loss_scaling": 2,
    "detection": 2,
    "preference": 2,
    "mesh_execution": 2,
    "models": 2,
    "objectives": 2,
    "optim": 2,
    "sharding": 2,
    "benchmark": 3,
    "card": 3,
    "chat": 3,
    "checkpoint": 3,
    "classification": 3,
    "conversion": 3,
    "throughput": 3,
    "data": 3,
    "decoding": 3,
    "evaluation": 3,
    "interop": 3,
    "monitor": 3,
    "plan": 3,
    "runtime": 3,
    "columns": 1,
    "counter_rng": 1,
    "directories": 1,
    "files": 1,
    "input_text": 1,
    "markdown": 1,
    "progress": 1,
    "run_weights": 3,
    "start": 3,
    "state": 3,
    "reference": 3,
    "run": 3,
    "run_checks": 3,
    "cooldown": 3,
    "step": 3,
    "trainer": 3,
    "training_loop": 3,
    "load_model": 3,
    "__main__": 4,
    "bench": 4,
    "convert": 4,
    "evaluate": 4,
    "generate": 4,
    "harness": 4,
    "predict": 4,
    "prepare": 4,
    "train": 4,
}

# Functions of one room that another of the same level calls, each for a reason. Classes need none:
# a type may be imported by its neighbours.
SIDEWAYS = {
    ("benchmark", "data"): "a config is measured as it is trained, by all of these",
    ("benchmark", "run"): "as above",
    ("benchmark", "run_checks"): "as above",
    ("benchmark", "runtime"): "as above",
    ("benchmark", "state"): "as above",
    ("benchmark", "trainer"): "as above",
    ("classification", "data"): "texts become tokens as those of a source do",
    ("classification", "decoding"): "the shapes of batches, and the check that scores are finite",
    ("conversion", "card"): "an export has a model card",
    ("conversion", "chat"): "the chat template that an import is told to have",
    ("conversion", "checkpoint"): "a run is read, or made",
    ("conversion", "data"): "the tokenizer of a run",
    ("conversion", "interop"): "the files of Hugging Face",
    ("conversion", "load_model"): "the model of a run",
    ("conversion", "runtime"): "the lock of a run directory",
    ("data", "chat"): "conversations become text by chat templates",
    ("conversion", "run_weights"): "what a run has on file about its base",
    ("evaluation", "card"): "the ticks and texts of a picture",
    ("evaluation", "checkpoint"): "the store that a run was trained on",
    ("evaluation", "data"): "windows of a store, documents of a source",
    ("evaluation", "decoding"): "the check that a model's scores are finite",
    ("evaluation", "load_model"): "the harness loads the model that it is asked about",
    ("evaluation", "runtime"): "as above",
    ("evaluation", "step"): "a batch is scored by the step's own function",
    ("interop", "data"): "the files of tokenizers beside a model",
    ("load_model", "checkpoint"): "a model is put together from all of these",
    ("load_model", "data"): "as above",
    ("load_model", "interop"): "as above",
    ("load_model", "runtime"): "as above",
    ("mesh_execution", "sharding"): "it runs on the mesh and by the tables that stand there",
    ("nn", "quantization"): "layers multiply by rounded weights, which trees of parameters hold",
    ("plan", "card"): "the lengths of samples and the losses of a run, the ticks of a plot",
    ("plan", "data"): "the files that a ladder is to be trained on",
    ("plan", "run_checks"): "a ladder is refused as its runs would be",
    ("plan", "benchmark"): "the samples of a config, as its objective cuts them",
    ("plan", "run"): "the step of a run is compiled, put together from all of these",
    ("plan", "runtime"): "as above",
    ("plan", "state"): "as above",
    ("plan", "step"): "as above",
    ("plan", "trainer"): "the store and the stream of a recipe whose rates are compared",
    ("reference", "evaluation"): "the pairs of a store are scored in batches of an evaluation",
    ("run_checks", "evaluation"): "the figures that a classifier has",
    ("run", "run_checks"): "what a command checks before jax holds with the devices that are there",
    ("run", "runtime"): "the devices of a run",
    ("run", "state"): "bytes of the state on each device",
    ("run", "step"): "the step that the parts of a run make",
    ("base_identity", "sharding"): "each process reads the hash of weights",
    ("load_model", "run_weights"): "the weights of a run's checkpoint, and of its base",
    ("run_weights", "checkpoint"): "a base is a run",
    ("run_weights", "run"): "the optimizer whose state has averages of the weights",
    ("start", "run_weights"): "the weights of a base, and the part of a state that is saved",
    ("start", "state"): "the states that a run starts from",
    ("training_loop", "run_weights"): "the part of a state that is saved",
    ("trainer", "run_weights"): "as above",
    ("step", "state"): "a step maps a state to the next",
    ("run_checks", "chat"): "whether the chat template of a config is there",
    ("trainer", "card"): "the trainer tells the story of a run: it calls all of these",
    ("trainer", "chat"): "as above",
    ("trainer", "checkpoint"): "as above",
    ("trainer", "data"): "as above",
    ("trainer", "evaluation"): "as above",
    ("trainer", "decoding"): "as above",
    ("trainer", "interop"): "what a run keeps of an import goes on to the runs that start from it",
    ("trainer", "reference"): "as above",
    ("trainer", "run"): "as above",
    ("trainer", "run_checks"): "as above",
    ("trainer", "runtime"): "as above",
    ("trainer", "start"): "as above",
    ("trainer", "training_loop"): "as above",
    ("training_loop", "data"): "the batches of the steps",
    ("training_loop", "run"): "the loop calls the step of a run",
    ("training_loop", "runtime"): "the memory that this process may keep",
    ("training_loop", "throughput"): "metrics are checked before they are recorded",
}

# The one place of each library, so that it can be replaced there.
ONLY_IN = {
    "flax": {"nn", "models"},
    "fsspec": {"data"},
    "grain": {"data"},
    "huggingface_hub": {"card"},
    "jinja2": {"chat"},
    "lm_eval": {"harness"},
    "orbax": {"checkpoint"},
    "tensorboard": {"monitor"},
    "tokenizers": {"data", "interop"},
    "safetensors": {"data", "interop", "reference"},
    # Left to the tests, which compare with them.
    "torch": set(),
    "transformers": set(),
    # Reading them runs code.
    "cloudpickle": set(),
    "dill": set(),
    "joblib": set(),
    "marshal": set(),
    "pickle": set(),
    "shelve": set(),
    # Training needs no network.
    "http": set(),
    "requests": set(),
    "socketserver": set(),
    "urllib": set(),
}

WITHOUT_JAX = {
    "accelerators",
    "card",
    "chat",
    "communication",
    "config",
    "data",
    "flops",
    "hardware",
    "objectives",
    "runtime",
    "counter_rng",
    "directories",
    "files",
    "progress",
    "run_checks",
    "cooldown",
    "types",
}  # when imported, like every command
FORBIDDEN_CALLS = {"__import__", "eval", "exec"}
TOP_LEVEL = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "configs",
    "docs",
    "jaxlm",
    "launch",
    "pyproject.toml",
    "tests",
}

FILE_LINES, FUNCTION_LINES, COLUMNS = 400, 100, 100
SHORT_FUNCTION, DENSE_SHARE = 15, 0.3  # lines; share of the longer ones without a blank line


def sources(folder=PACKAGE):
    return sorted(folder.rglob("*.py"))


@cache
def parsed(path):
    return ast.parse(path.read_text())


def place(path):
    return path.relative_to(ROOT).as_posix()


def room(path):
    """'nn' for jaxlm/nn/block.py, 'step' for jaxlm/step.py; None for jaxlm/__init__.py."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return None if first == "__init__" else first


def imported(node):
    """The dotted names that an import may stand for: `from jaxlm import config` is jaxlm.config."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert isinstance(node, ast.ImportFrom)
    assert node.module is not None and node.level == 0, "imports are absolute"
    return [f"{node.module}.{alias.name}" for alias in node.names]


def imports(path):
    """(dotted name, line) of every import of a file, also inside functions."""
    nodes = [
        node for node in ast.walk(parsed(path)) if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    return [(name, node.lineno) for node in nodes for name in imported(node)]


def functions(path):
    """Every function of a file; one inside another counts for both."""
    return [
        node
        for node in ast.walk(parsed(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def length(node):
    return node.end_lineno - node.lineno + 1


def tracked():
    """Paths that git tracks; the test is skipped outside a checkout."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs git")
    if listed.returncode or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def test_every_module_has_a_level():
    assert {room(path) for path in sources()} - {None} == set(LEVELS)


def is_type(name):
    """True for a class, by the case of its name: `LoadedModel`, not `load_model` or `ROOT`."""
    last = name.rpartition(".")[2]
    return last[0].isupper() and not last.isupper()


def test_imports_go_down():
    wrong, sideways = [], set()
    for path in sources():
        here = room(path)
        for name, line in imports(path):
            package, _, rest = name.partition(".")
            there = rest.partition(".")[0]
            if package != "jaxlm" or here == there:
                continue

            if here in LEVELS and there in LEVELS and LEVELS[there] == LEVELS[here]:
                if not is_type(name):
                    sideways.add((here, there))
            elif here not in LEVELS or LEVELS.get(there, 99) > LEVELS[here]:
                wrong.append(f"{place(path)}:{line}: {name}")

    assert wrong == []
    assert sideways == set(SIDEWAYS)


def test_each_library_has_its_place():
    found = [(path, name, line) for path in sources() for name, line in imports(path)]
    wrong = [
        f"{place(path)}:{line}: {name}"
        for path, name, line in found
        if room(path) not in ONLY_IN.get(name.partition(".")[0], {room(path)})
    ]
    assert wrong == []


def test_no_code_is_made_or_loaded_from_data():
    wrong = []
    for path in sources():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call):
                called = isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS
                pickled = any(
                    keyword.arg in ("allow_pickle", "trust_remote_code")
                    for keyword in node.keywords
                )
                wrong += [f"{place(path)}:{node.lineno}"] if called or pickled else []
    assert wrong == []


def at_import(node):
    """Statements that run at import: not those in functions or under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        types_only = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not types_only and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from at_import(child)


def test_modules_that_come_before_jax_do_not_import_it():
    wrong = []
    for path in sources():
        nodes = [
            node
            for node in at_import(parsed(path))
            if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        names = [name.partition(".")[0] for node in nodes for name in imported(node)]
        before_jax = room(path) in WITHOUT_JAX or LEVELS.get(room(path) or "") == 4
        if before_jax and {
            "jax",
            "flax",
            "optax",
            "orbax",
        } & set(names):
            wrong.append(place(path))
    assert wrong == []


def test_commands_start_without_jax_and_imports_change_nothing():
    program = """
import importlib, os, pkgutil, sys
before = dict(os.environ)
import jaxlm, jaxlm.config, jaxlm.train
assert "jax" not in sys.modules
import jaxlm.data
assert "jax" not in sys.modules
for module in pkgutil.walk_packages(jaxlm.__path__, "jaxlm."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from jax._src.xla_bridge import backends_are_initialized
assert not backends_are_initialized()
assert os.environ == before, set(os.environ.items()) ^ set(before.items())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_files_and_functions_stay_short():
    files = sources() + sources(ROOT / "configs")
    long = [place(path) for path in files if len(path.read_text().splitlines()) > FILE_LINES]
    long += [
        f"{place(path)}: {function.name}"
        for path in files
        for function in functions(path)
        if length(function) > FUNCTION_LINES
    ]
    assert long == []


def test_lines_have_at_most_100_columns():
    wide = []
    for name in tracked():
        if not name.endswith((".py", ".toml", ".sh", ".yaml")) and not name.startswith(".ci/"):
            continue
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
            if len(line) > COLUMNS and "http" not in line:
                wide.append(f"{name}:{number}")
    assert wide == []


def has_blank_line(path, function):
    """Whether the statements of a function, its docstring aside, are parted by a blank line."""
    first = function.body[0]
    start = first.end_lineno if ast.get_docstring(function) else function.lineno
    body = path.read_text().splitlines()[start : function.end_lineno]
    return any(not line.strip() for line in body)


def test_functions_show_their_steps_by_blank_lines():
    long = [
        (path, function)
        for path in sources()
        for function in functions(path)
        if length(function) >= SHORT_FUNCTION
    ]
    dense = [f"{place(path)}: {f.name}" for path, f in long if not has_blank_line(path, f)]
    assert len(dense) < DENSE_SHARE * len(long), dense


def docstrings(path):
    """(line, text) of every docstring of a file."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def test_docstrings_open_with_a_statement():
    fragments = [
        f"{place(path)}:{line}: {text.splitlines()[0]}"
        for path in sources()
        for line, text in docstrings(path)
        if re.match(r"(Of|With|As|That|Those|What|Where)\b", text)
    ]
    assert fragments == []


def top_level_names(path):
    """Names that a module defines: functions, classes and constants."""
    for node in parsed(path).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def test_a_name_means_one_thing():
    modules = {}
    for path in sources():
        for name in top_level_names(path):
            modules.setdefault(name, []).append(place(path))
    often = {name: found for name, found in modules.items() if len(found) > 3}
    # `main` is what a command starts with; `build` is completed by the name of its module;
    # `__getattr__` loads a package's names when they are asked for.
    assert set(often) <= {"__all__", "__getattr__", "main", "build"}, often


def test_config_values_are_not_called_settings():
    wrong = []
    for path in sources():
        for node in ast.walk(parsed(path)):
            name = getattr(node, "id", None) or getattr(node, "arg", None)
            if name == "settings":
                wrong.append(place(path))
    assert wrong == []


def test_families_are_thin_files_over_layers_that_know_none():
    families = [
        PACKAGE / "models" / f"{name}.py" for name in ("decoder", "encoder", "encoder_decoder")
    ]
    assert [place(path) for path in families if len(path.read_text().splitlines()) > 150] == []
    knowing = [
        path
        for path in sources()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and node.attr == "family"
    ]
    assert {place(path) for path in knowing if room(path) in ("nn", "models")} <= {
        "jaxlm/models/__init__.py"
    }


def test_every_module_says_what_it_is_for():
    assert [place(path) for path in sources() if not ast.get_docstring(parsed(path))] == []


def test_nothing_is_left_to_do():
    marker = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
    left = [name for name in tracked() if marker.search((ROOT / name).read_text(errors="replace"))]
    assert left == []


def test_the_top_level_is_short():
    names = {name.partition("/")[0] for name in tracked()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL
