"""Load configs from Python files and saved JSON, apply edits, and write them back as JSON data.

Every mistake is a `ConfigError` of one line.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import sys
import traceback
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from jaxlm.config.data import SourceConfig
from jaxlm.config.errors import ConfigError
from jaxlm.config.fields import (
    describe_type,
    field_types,
    join,
    shorten,
    split_bounds,
    split_optional,
    suggestion,
)
from jaxlm.config.schema import Config

T = TypeVar("T")

RECORDED = ("store", "versions")  # keys of a saved config.json that are no part of the config


def load(path: str | Path, edits: Sequence[str] = (), data: str | None = None) -> Config:
    """Load the config of a Python file (its `config = Config(...)`) or of a saved config.json.

    `edits` are `key=value` strings that are applied on top. `data` (a file, folder or glob)
    replaces the sources. `run_directory` defaults to runs/ and the name of the file.
    """
    path = Path(path)
    check_readable(path)
    config = load_json(path) if path.suffix == ".json" else load_python(path)
    config = apply_edits(config, edits)

    if data is not None:
        sources = (SourceConfig(name=Path(data).stem.strip("*") or "data", path=data),)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
    if config.run_directory is None:
        config = dataclasses.replace(config, run_directory=f"runs/{path.stem}")
    return config


def check_readable(path: Path) -> None:
    """Raise ConfigError unless `path` is a file that can be read."""
    try:
        path.open("rb").close()
    except FileNotFoundError as error:
        neighbors = [*path.parent.glob("*.py"), *path.parent.glob("*.json")]
        hint = suggestion(str(path), map(str, neighbors))
        raise ConfigError(str(path), f"no such config file{hint}") from error
    except OSError as error:
        raise ConfigError(str(path), str(error.strerror)) from error


# Python files


def load_python(path: Path) -> Config:
    """Run the file with its folder importable and return its `config`."""
    folder = path.parent.resolve()
    spec = importlib.util.spec_from_file_location(f"jaxlm_config_{path.stem}", folder / path.name)
    if spec is None or spec.loader is None:
        raise ConfigError(str(path), "is neither a Python file nor a saved config.json")

    module = importlib.util.module_from_spec(spec)
    with importable(folder):
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise ConfigError(*locate_error(path, error)) from error

    config = getattr(module, "config", None)
    if config is None:
        raise ConfigError(str(path), "defines no `config`; write: config = Config(...)")
    if not isinstance(config, Config):
        reason = f"`config` must be a jaxlm.config.Config, got {type(config).__name__}"
        raise ConfigError(str(path), reason)
    return config


def locate_error(path: Path, error: BaseException) -> tuple[str, str]:
    """Return (FILE:LINE, reason in one line) for an error that running a recipe raised.

    FILE is the recipe, or one beside it that it imports, by the name that the user gave the folder.
    """
    if isinstance(error, SyntaxError):
        places = [(error.filename or str(path), error.lineno)]
        reason = f"syntax error: {error.msg}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        places = [(frame.filename, frame.lineno) for frame in frames]
        prefix = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        reason = f"{prefix}{error}"

    folder = path.parent.resolve()
    recipe_places = [
        f"{path.parent / Path(file).name}:{line}"
        for file, line in places
        if line and Path(file).parent == folder
    ]
    return recipe_places[-1] if recipe_places else str(path), " ".join(reason.split())


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let the recipes of a folder import each other while the block runs.

    Afterwards the modules of this folder are forgotten, so that folders with equal names do not
    mix. No bytecode is written: Python matches it to its source by size and by the second of the
    last change, so that a recipe which a script rewrites from run to run would be read as before.
    """
    modules_before, dont_write_bytecode = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()

    try:
        yield
    finally:
        sys.dont_write_bytecode = dont_write_bytecode
        sys.path.remove(str(folder))

        new_modules = set(sys.modules) - modules_before
        top_level = {name for name in new_modules if "." not in name}
        recipes = {name for name in top_level if lies_in(folder, sys.modules[name])}
        for name in new_modules:
            if name.partition(".")[0] in recipes:
                del sys.modules[name]


def lies_in(folder: Path, module: ModuleType) -> bool:
    """Return whether a top-level module is a file or a package of this very folder.

    A virtual environment below the folder does not count.
    """
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(place is not None and Path(place).parent == folder for place in places)


# Saved JSON and plain data


def load_json(path: Path) -> Config:
    """Load a saved config.json, which is data only."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        reason = f"is not JSON: {error.msg} at column {error.colno}"
        raise ConfigError(f"{path}:{error.lineno}", reason) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(str(path), f"is not JSON: {error}") from error

    if not isinstance(document, dict):
        raise ConfigError(str(path), "must be a JSON object with the sections of a config")
    values = {key: value for key, value in document.items() if key not in RECORDED}
    try:
        return build_section(Config, values, "")
    except ConfigError as error:
        raise ConfigError(str(path), str(error)) from error


def to_dict(config: Any) -> dict[str, Any]:
    """Return a section as plain JSON data, which `build_section` reads."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def build_section(cls: type[T], values: Any, path: str) -> T:
    """Build a section from plain data (nested dicts and lists)."""
    if not isinstance(values, dict):
        reason = f"must be an object with the keys of {cls.__name__}, got {shorten(values)}"
        raise ConfigError(path, reason)

    known = field_types(cls)
    return cls(
        **{
            name: build_value(known.get(name), value, join(path, name))
            for name, value in values.items()
        }
    )


def build_value(annotation: Any, value: Any, path: str) -> Any:
    """Return `value` with its dicts turned into the sections that the annotation names.

    Other values are returned as they are: the section itself checks them.
    """
    if dataclasses.is_dataclass(annotation):
        return build_section(typing.cast(type, annotation), value, path)

    if typing.get_origin(annotation) is tuple and isinstance(value, (list, tuple)):
        item_type = typing.get_args(annotation)[0]
        if dataclasses.is_dataclass(item_type):
            cls = typing.cast(type, item_type)
            return tuple(build_item(cls, item, path, number) for number, item in enumerate(value))

    return value


def build_item(cls: type[T], values: Any, path: str, number: int) -> T:
    """Build one section of a list.

    A section does not know its number, so it is put into the path of its errors here.
    """
    try:
        return build_section(cls, values, path)
    except ConfigError as error:
        raise ConfigError(error.path.replace(path, f"{path}.{number}", 1), error.reason) from error


# Edits


def apply_edits(config: Config, edits: Sequence[str]) -> Config:
    """Return `config` with `section.key=value` edits, checked together once all are applied."""
    if not edits:
        return config

    document = to_dict(config)
    for edit in edits:
        key, equals, text = edit.partition("=")
        if not equals or not key:
            raise ConfigError(edit, "is not an edit: write section.key=value")
        apply_edit(document, key, text)

    try:
        return build_section(Config, document, "")
    except ConfigError as error:
        # An edit may contradict a key that was not edited: then the message shows the edits.
        edited_keys = [edit.partition("=")[0] for edit in edits]
        hint = "" if error.path in edited_keys else f" (with {' '.join(edits)})"
        raise ConfigError(error.path, error.reason + hint) from error


def apply_edit(document: dict, key: str, text: str) -> None:
    """Set one dotted key of a config in plain data; `data.sources.0.path` reaches into lists."""
    annotation, container, path = Config, document, ""
    *parents, last = key.split(".")
    for part in parents:
        annotation, container, path = step_into(annotation, container, part, path)

    if not dataclasses.is_dataclass(annotation):
        raise ConfigError(key, f"{path} is a value, not a section")
    known = field_types(typing.cast(type, annotation))
    if last not in known:
        siblings = [join(path, name) for name in known]
        raise ConfigError(key, f"unknown key{suggest_keys(key, siblings)}")

    container[last] = parse_value(text, known[last], key)


def step_into(annotation: Any, container: Any, part: str, path: str) -> tuple[Any, Any, str]:
    """Return (annotation, value, path) of the child `part` of the section or list at `path`."""
    child_path = join(path, part)
    if typing.get_origin(annotation) is tuple:
        if not part.isdigit() or int(part) >= len(container):
            reason = f"no such item: {path} has {len(container)}, numbered from 0"
            raise ConfigError(child_path, reason)
        return typing.get_args(annotation)[0], container[int(part)], child_path

    known = field_types(annotation) if dataclasses.is_dataclass(annotation) else {}
    if part not in known:
        raise ConfigError(child_path, f"unknown key{suggest_keys(child_path)}")
    return known[part], container[part], child_path


def suggest_keys(key: str, siblings: Sequence[str] = ()) -> str:
    """Return ' (did you mean X?)' for an unknown key, or ''.

    Keys with the same last part come first (steps: training.steps), then the nearest spelling
    among all keys and the `siblings` of the unknown one.
    """
    ending = "." + key.rpartition(".")[2]
    same_ending = [known for known in all_keys() if known.endswith(ending)]
    if same_ending:
        return f" (did you mean {' or '.join(map(repr, same_ending))}?)"

    return suggestion(key, [*siblings, *all_keys()])


def all_keys(cls: Any = Config, path: str = "") -> list[str]:
    """Return the dotted names of all sections and fields."""
    keys = []
    for name, annotation in field_types(cls).items():
        keys.append(join(path, name))
        if dataclasses.is_dataclass(annotation):
            keys += all_keys(annotation, join(path, name))
    return keys


def parse_value(text: str, annotation: Any, path: str) -> Any:
    """Return the value of an edit, read by the type of its field.

    That is none, true, 12, 3e-4, a string, or JSON for lists and sections.
    """
    inner, optional = split_optional(annotation)
    inner, _ = split_bounds(inner)
    if optional and text.lower() in ("none", "null"):
        return None

    try:
        if typing.get_origin(inner) is Literal:
            return next((choice for choice in typing.get_args(inner) if str(choice) == text), text)
        if inner is bool:
            return {"true": True, "false": False}[text.lower()]
        if inner in (int, float):
            return parse_number(text, inner)
        return text if inner is str else json.loads(text)
    except (ValueError, KeyError) as error:
        language = "" if inner in (int, float, bool) else " in JSON"
        reason = f"must be {describe_type(annotation)}{language}, got {text!r}"
        raise ConfigError(path, reason) from error


def parse_number(text: str, number_type: type) -> int | float:
    """Return a number. A whole one may be written 1e6 or 1_000; ValueError if it is not whole."""
    value = float(text)
    if number_type is float:
        return value

    # int() keeps all digits, which a float would round above 2**53.
    if "." not in text and "e" not in text.lower():
        return int(text)
    if not value.is_integer():
        raise ValueError(text)
    return int(value)
