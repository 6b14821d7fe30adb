"""Configs from files, JSON and edits. Every mistake is one line that names the key or the file."""

import ast
import dataclasses
import json
import os
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxlm
from jaxlm import config
from jaxlm.config import (
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    SourceConfig,
    TrainingConfig,
    fields,
)

PACKAGE = Path(jaxlm.__file__).parent
IMPORTS = "from jaxlm.config import *\n"


def recipe(folder, body="config = Config()\n", name="recipe.py"):
    """Write a recipe whose body begins on line 2."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(IMPORTS + body)
    return path


def saved(folder, document):
    path = folder / "saved.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def mistake(path, edits=(), data=None):
    """Return the one line that loading ends with."""
    with pytest.raises(ConfigError) as caught:
        config.load(path, edits, data)
    line = str(caught.value)
    assert "\n" not in line
    return line


# What is right


def test_defaults_pass_their_own_checks():
    # Defaults are not checked when a section is built, so here they are given as values.
    assert config.apply_edits(Config(), ["seed=0"]) == Config()
    for name in config.__all__:
        if not name.endswith("Config"):
            continue
        cls: Any = getattr(config, name)
        defaults = {
            field.name: field.default
            for field in dataclasses.fields(cls)
            if not fields.is_required(field)
        }
        required: Any = {
            "SourceConfig": {"name": "x", "path": "x"},
            "GroupConfig": {"parameters": "head"},
        }.get(name, {})
        assert cls(**defaults | required) == cls(**required)


def test_a_recipe_builds_on_another_beside_it(tmp_path):
    recipe(tmp_path, "config = Config(model=ModelConfig(layers=2))\n", "base.py")
    path = recipe(
        tmp_path,
        "import dataclasses\nimport base\nconfig = dataclasses.replace(base.config, seed=7)\n",
    )
    assert config.load(path) == Config(
        model=ModelConfig(layers=2), seed=7, run_directory="runs/recipe"
    )


def test_folders_with_the_same_names_do_not_mix(tmp_path):
    search, modules = list(sys.path), set(sys.modules)
    for layers in (2, 3):
        recipe(tmp_path / str(layers), f"LAYERS = {layers}\n", "parts/sizes.py")
        recipe(
            tmp_path / str(layers),
            "from parts.sizes import LAYERS\n"
            f"config = Config(model=ModelConfig(layers={layers}))\n",
            "base.py",
        )
        path = recipe(
            tmp_path / str(layers),
            "import base\nconfig = base.config\nassert config.model.layers == base.LAYERS\n",
        )
        assert config.load(path).model.layers == layers
    assert sys.path == search and set(sys.modules) == modules


def test_libraries_below_the_folder_stay_imported(tmp_path):
    """A virtual environment lies inside many projects; numpy, for one, can't be imported twice."""
    library = tmp_path / ".venv" / "lib" / "some_library.py"
    library.parent.mkdir(parents=True)
    library.write_text("")
    path = recipe(
        tmp_path,
        f"import sys\nsys.path.append({str(library.parent)!r})\n"
        "import some_library\nconfig = Config()\n",
    )
    try:
        config.load(path)
        assert "some_library" in sys.modules
    finally:
        sys.path.remove(str(library.parent))
        sys.modules.pop("some_library", None)


def test_a_recipe_rewritten_at_once_is_read_anew(tmp_path, monkeypatch):
    # Python matches bytecode to its source by size and second of change: here these are equal.
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = recipe(tmp_path, "from base import config\n")
    for layers in (2, 3):
        os.utime(
            recipe(tmp_path, f"config = Config(model=ModelConfig(layers={layers}))\n", "base.py"),
            (1e9, 1e9),
        )
        assert config.load(path).model.layers == layers
        assert config.load(tmp_path / "base.py").model.layers == layers
    assert not sys.dont_write_bytecode


def test_run_directory_defaults_to_the_files_name(tmp_path):
    assert config.load(recipe(tmp_path, name="small.py")).run_directory == "runs/small"
    assert config.load(recipe(tmp_path), ["run_directory=elsewhere"]).run_directory == "elsewhere"
    assert config.load(saved(tmp_path, {"run_directory": "runs/x"})).run_directory == "runs/x"


@pytest.mark.parametrize(
    ("path", "name"), [("books/tales.txt", "tales"), ("books/*.txt", "data"), ("books", "books")]
)
def test_data_replaces_the_sources_alone(tmp_path, path, name):
    start = recipe(
        tmp_path,
        "config = Config(data=DataConfig(sequence_length=64, sources=(\n"
        '    SourceConfig(name="a", path="a"), SourceConfig(name="b", path="b"))))\n',
    )
    assert config.load(start, ["data.store=s"], path).data == DataConfig(
        sequence_length=64, store="s", sources=(SourceConfig(name=name, path=path),)
    )


def test_numbers_and_lists_are_converted_where_nothing_is_lost():
    schedule: Any = [[10, 64]]
    assert OptimizerConfig(learning_rate=1).learning_rate == 1.0 and isinstance(
        OptimizerConfig(learning_rate=1).learning_rate, float
    )
    assert TrainingConfig(batch_schedule=schedule).batch_schedule == ((10, 64),)


EDITS = [
    ("training.steps=1e3", 1000),
    ("training.steps=1_000", 1000),
    ("seed=4294967295", 2**32 - 1),
    ("optimizer.learning_rate=3e-4", 3e-4),
    ("optimizer.learning_rate=1", 1.0),
    ("logging.tensorboard=False", False),
    ("model.gated=true", True),
    ("optimizer.gradient_clip=none", None),
    ("model.kv_heads=4", 4),
    ("model.kv_heads=null", None),
    ("model.norm=rmsnorm", "rmsnorm"),
    ("parallel.zero=3", 3),
    ("parallel.fsdp=-1", -1),
    ("data.store=/a=b", "/a=b"),
    ("evaluation.sample_prompt=none", "none"),
    ("evaluation.sample_prompt=", ""),
    ("data.validation.share=0.1", 0.1),
    ("data.sources.0.weight=2", 2.0),
    ('optimizer.weight_decay_exclude=["bias"]', ("bias",)),
    ("training.batch_schedule=[[10, 64], [20, 128]]", ((10, 64), (20, 128))),
]


@pytest.mark.parametrize(("edit", "expected"), EDITS, ids=[edit for edit, _ in EDITS])
def test_an_edit_is_read_by_the_type_of_its_field(edit, expected):
    value: Any = config.apply_edits(Config(), [edit])
    for part in edit.partition("=")[0].split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    assert value == expected and type(value) is type(expected)


def test_edits_may_replace_sections_and_depend_on_each_other():
    edits = [
        "model.heads=5",
        "model.width=20",
        'data.sources=[{"name": "a", "path": "x"}, {"name": "b", "path": "y"}]',
        "data.sources.1.weight=3",
    ]
    edited = config.apply_edits(Config(), edits)
    assert (edited.model.heads, edited.model.width) == (5, 20)
    assert edited.data.sources == (
        SourceConfig(name="a", path="x"),
        SourceConfig(name="b", path="y", weight=3.0),
    )
    assert config.apply_edits(Config(), ['optimizer={"beta1": 0.5}']).optimizer == OptimizerConfig(
        beta1=0.5
    )


PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
FIELDS = {
    "seed": st.integers(0, 2**32 - 1),
    "optimizer.learning_rate": st.floats(1e-30, 1e30),
    "optimizer.weight_decay_exclude": st.lists(st.text()).map(tuple),
    "optimizer.gradient_clip": st.none() | st.floats(2.0**-126, 1e38),
    "model.kv_heads": st.sampled_from([None, 1, 2, 3, 4, 6, 12]),
    "model.gated": st.booleans(),
    "parallel.zero": st.sampled_from([0, 1, 2, 3]),
    "data.sources": st.lists(
        st.builds(SourceConfig, name=st.text(min_size=1), path=PATHS),
        min_size=1,
        unique_by=lambda s: s.name,
    ).map(tuple),
    "evaluation.sample_prompt": st.text(),
}


def replaced(start, key, value):
    head, _, rest = key.partition(".")
    return dataclasses.replace(
        start, **{head: replaced(getattr(start, head), rest, value) if rest else value}
    )


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional=FIELDS))
def test_saved_json_loads_as_the_same_config(tmp_path_factory, values):
    start = Config(run_directory="runs/x")
    for key, value in values.items():
        start = replaced(start, key, value)
    document = config.to_dict(start) | {"store": {"hash": "abc"}, "versions": {"jax": "0"}}
    assert config.load(saved(tmp_path_factory.getbasetemp(), document)) == start


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-37, 1e38))
def test_a_float_survives_an_edit(value):
    assert (
        config.apply_edits(Config(), [f"optimizer.learning_rate={value!r}"]).optimizer.learning_rate
        == value
    )


# Files with mistakes

BODIES = [  # the body of a recipe (from line 2 on), the line at fault, the reason
    (
        "config = Config(\n    model=ModelConfig(layrs=3),\n)\n",
        3,
        "model.layrs: unknown key (did you mean 'layers'?)",
    ),
    (
        "import dataclasses\nconfig = dataclasses.replace(Config(), seed=-1)\n",
        3,
        "seed: must be at least 0, got -1",
    ),
    ("config = Config(\n", 2, "syntax error: '(' was never closed"),
    (
        "x = 1\nconfig = Config(seed=1 // 0)\n",
        3,
        "ZeroDivisionError: integer division or modulo by zero",
    ),
    (
        "def half():\n    raise ValueError('two\\nlines')\nconfig = half()\n",
        3,
        "ValueError: two lines",
    ),
    ("import no_such_recipe\n", 2, "ModuleNotFoundError: No module named 'no_such_recipe'"),
    (
        "config = Config()\nconfig.seed = 3\n",
        3,
        "FrozenInstanceError: cannot assign to field 'seed'",
    ),
    ("import sys\nsys.exit('stop')\n", 3, "SystemExit: stop"),
    # Names of an older version, and misspelt ones
    (
        "from jaxlm.config import Config, Model\n",
        2,
        "jaxlm.config.Model is called ModelConfig",
    ),
    (
        "from jaxlm import config as c\nconfig = c.Config(data=c.Data())\n",
        3,
        "jaxlm.config.Data is called DataConfig",
    ),
    (
        "from jaxlm.config import ModelConfg\n",
        2,
        "jaxlm.config has no ModelConfg (did you mean 'ModelConfig'?)",
    ),
]


@pytest.mark.parametrize(("body", "line", "reason"), BODIES, ids=[reason for *_, reason in BODIES])
def test_a_recipes_mistake_names_file_and_line(tmp_path, body, line, reason):
    path = recipe(tmp_path, body)
    assert mistake(path) == f"{path}:{line}: {reason}"


def test_files_are_named_as_the_user_named_them(tmp_path, monkeypatch):
    recipe(tmp_path / "configs", "config = Config(seed=-1)\n")
    monkeypatch.chdir(tmp_path)
    assert mistake("configs/recipe.py").startswith("configs/recipe.py:2: seed: ")
    monkeypatch.chdir(tmp_path / "configs")
    assert mistake("recipe.py").startswith("recipe.py:2: seed: ")
    assert mistake("../configs/recipe.py").startswith("../configs/recipe.py:2: seed: ")


@pytest.mark.parametrize(
    ("body", "reason"),
    [("config = Config(seed=-1)\n", "seed: must be"), ("config = (\n", "syntax error")],
)
def test_a_mistake_in_a_recipe_beside_names_that_file(tmp_path, body, reason):
    recipe(tmp_path, body, "base.py")
    path = recipe(tmp_path, "from base import config\n")
    assert mistake(path).startswith(f"{tmp_path / 'base.py'}:2: {reason}")
    assert "base" not in sys.modules


def test_files_that_are_no_config(tmp_path):
    path = recipe(tmp_path, "Config()\n")
    assert mistake(path) == f"{path}: defines no `config`; write: config = Config(...)"
    assert (
        mistake(recipe(tmp_path, "config = ModelConfig()\n"))
        == f"{path}: `config` must be a jaxlm.config.Config, got ModelConfig"
    )
    assert (
        mistake(tmp_path / "recipe.pi")
        == f"{tmp_path}/recipe.pi: no such config file (did you mean '{path}'?)"
    )
    assert mistake(tmp_path / "nowhere" / "recipe.py").endswith("recipe.py: no such config file")
    assert mistake(tmp_path) == f"{tmp_path}: Is a directory"
    (tmp_path / "recipe.yaml").write_text("seed: 1")
    assert mistake(tmp_path / "recipe.yaml").endswith(
        "recipe.yaml: is neither a Python file nor a saved config.json"
    )
    path.write_bytes(b"seed = 1\0")
    assert mistake(path).startswith(f"{path}: syntax error: ")


DOCUMENTS = [
    ('{\n"seed": 1,\n"model" 2}', ":3: is not JSON: "),
    ("[]", ": must be a JSON object with the sections of a config"),
    ('{"model": {"layrs": 3}}', ": model.layrs: unknown key (did you mean 'layers'?)"),
    ('{"model": 3}', ": model: must be an object with the keys of ModelConfig, got 3"),
    ('{"model": {"layers": true}}', ": model.layers: must be a whole number, got True"),
    ('{"optimizer": {"learning_rate": NaN}}', ": optimizer.learning_rate: must be finite, got nan"),
    (
        '{"data": {"sources": [{"name": "a", "path": "x"}, {"path": "y"}]}}',
        ": data.sources.1.name: is required",
    ),
    (
        '{"data": {"sources": [{"name": "a", "path": "x", "wight": 1}]}}',
        ": data.sources.0.wight: unknown key (did you mean 'weight'?)",
    ),
    ('{"data": {"sources": {"name": "a"}}}', ": data.sources: must be a list, got {'name': 'a'}"),
    ('{"seed": ' + "[" * 100_000, ": is not JSON: "),
    ('{"seed": ' + "9" * 5000 + "}", ": is not JSON: "),
    ('{"seed": 1, "seed": 2}', ": is not JSON: the key 'seed' stands twice in one object"),
    ('{"evaluation": {"sample_prompt": "\\ud800"}}', ": evaluation.sample_prompt: must be Unicode"),
]


@pytest.mark.parametrize(
    ("document", "message"), DOCUMENTS, ids=[message for _, message in DOCUMENTS]
)
def test_a_mistake_in_saved_json_names_file_and_key(tmp_path, document, message):
    path = saved(tmp_path, document)
    assert mistake(path).startswith(f"{path}{message}")


def test_a_config_that_would_never_end_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    assert mistake(tmp_path / "pipe.json") == f"{tmp_path}/pipe.json: is no regular file"


def test_json_that_is_not_text(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'{"seed": "\xff"}')
    assert mistake(path).startswith(f"{path}: is not JSON: ")


def test_data_must_name_something(tmp_path):
    assert mistake(recipe(tmp_path), data="") == "data.sources.0.path: must not be empty"


def test_data_goes_before_the_edits(tmp_path):
    """An edit says how the file of --data is read."""
    edits = ["data.sources.0.format=jsonl", "data.sources.0.text_key=body", "data.sources.0.name=b"]
    assert config.load(recipe(tmp_path), edits, "a.json").data.sources == (
        SourceConfig(name="b", path="a.json", format="jsonl", text_key="body"),
    )
    start = recipe(tmp_path)
    for key in ("data.sources.0.path=b", 'data.sources=[{"name": "a", "path": "b"}]', "data={}"):
        assert "--data names the source already" in mistake(start, [key], "a.json")
    assert "no such item" in mistake(start, ["data.sources.1.weight=2"], "a.json")


PAIRS = (
    "config = Config(model=ModelConfig(family='encoder_decoder'),\n"
    "    objective=ObjectiveConfig(kind='pairs'), data=DataConfig(sources=(\n"
    "    SourceConfig(name='a', path='a', format='pairs', source_key='de', target_key='en'),)))\n"
)


def test_data_of_an_objective_of_pairs_are_pairs(tmp_path):
    source = config.load(recipe(tmp_path, PAIRS), [], "p.jsonl").data.sources[0]
    assert (source.path, source.format) == ("p.jsonl", "pairs")
    assert (source.source_key, source.target_key) == ("de", "en")

    source = config.load(recipe(tmp_path, PAIRS), ["data.sources.0.source_key=fr"], "p.jsonl")
    assert (source.data.sources[0].source_key, source.data.sources[0].target_key) == ("fr", "en")

    edits = ["model.family=encoder_decoder", "objective.kind=pairs"]
    source = config.load(recipe(tmp_path), edits, "p.jsonl").data.sources[0]
    assert (source.format, source.source_key, source.target_key) == ("pairs", "source", "target")

    edits = ["model.family=decoder", "objective.kind=causal"]
    assert config.load(recipe(tmp_path, PAIRS), edits, "p.jsonl").data.sources == (
        SourceConfig(name="p", path="p.jsonl"),
    )


@pytest.mark.parametrize(
    ("kind", "form", "name"),
    [("instruction", "messages", "prompt"), ("preference", "preferences", "chosen")],
)
def test_the_data_option_keeps_the_format_and_keys_of_examples(tmp_path, kind, form, name):
    start = recipe(
        tmp_path,
        f"config = Config(objective=ObjectiveConfig(kind={kind!r}), data=DataConfig(sources=(\n"
        f"    SourceConfig(name='a', path='a', format={form!r}, keys=(({name!r}, 'x'),)),)))\n",
    )
    source = config.load(start, [], "b.jsonl").data.sources[0]
    assert (source.path, source.format, source.keys) == ("b.jsonl", form, ((name, "x"),))
    source = config.load(start, ["data.sources.0.keys=[]"], "b.jsonl").data.sources[0]
    assert (source.format, source.keys) == (form, ())


def test_a_config_json_with_a_byte_order_mark_loads(tmp_path):
    document = config.to_dict(Config(seed=7, run_directory="runs/x"))
    path = saved(tmp_path, "\ufeff" + json.dumps(document))
    assert config.load(path) == Config(seed=7, run_directory="runs/x")


def test_a_missing_config_json_is_not_taken_for_another_file_of_the_run(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    assert mistake(tmp_path / "config.json") == f"{tmp_path}/config.json: no such config file"


# The budget of fields


def leaves(cls: Any = Config):
    """Yield (section class, field name) for every field that is not a section itself."""
    for name, annotation in fields.field_types(cls).items():
        inner, _ = fields.split_optional(annotation)
        sections = filter(dataclasses.is_dataclass, (inner, *typing.get_args(inner)[:1]))
        section = next(sections, None)
        if section is cls:  # objective.parts: its fields are those of the objective
            yield cls.__name__, name
            continue
        yield from leaves(section) if section else [(cls.__name__, name)]


def test_the_config_stays_small():
    all_fields = list(leaves())
    model_fields = [name for section, name in all_fields if section == "ModelConfig"]
    assert 40 <= len(model_fields) <= 63
    assert len(all_fields) <= 230


SECTIONS = tuple(
    PACKAGE / "config" / f"{name}.py"
    for name in ("schema", "model", "objective", "data", "training", "runtime")
)


def names_read(path):
    """Return the attributes that a module reads; with getattr, also the names in its strings."""
    tree = ast.parse(path.read_text())
    if path in SECTIONS:  # properties read fields; checks don't count
        properties: list[ast.stmt] = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.decorator_list
        ]
        tree = ast.Module(body=properties, type_ignores=[])
    nodes = list(ast.walk(tree))
    names = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    if any(isinstance(node, ast.Name) and node.id == "getattr" for node in nodes):
        names |= {
            node.value
            for node in nodes
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    return names


def test_every_field_is_read():
    modules = [
        path for path in PACKAGE.rglob("*.py") if path.parent.name != "config" or path in SECTIONS
    ]
    read = set().union(*map(names_read, modules))
    assert sorted(f"{section}.{name}" for section, name in leaves() if name not in read) == []


@pytest.mark.parametrize(
    "path", sorted((PACKAGE.parent / "configs").glob("*.py")), ids=lambda path: path.stem
)
def test_the_recipes_load(path):
    assert config.load(path).run_directory
