"""Configs from Python files and saved JSON, edits from the command line, and back to JSON. Every mistake is one `ConfigError` line."""

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

from jaxlm.config.errors import ConfigError
from jaxlm.config.fields import (
    annotations,
    brief,
    describe,
    join,
    split_optional,
    strip_bounds,
    suggestion,
)
from jaxlm.config.schema import Config, SourceConfig

T = TypeVar("T")

RECORDED = ("store", "versions")  # what a saved config.json carries beside the config


def load(path: str | Path, edits: Sequence[str] = (), data: str | None = None) -> Config:
    """The config of a Python file (its `config = Config(...)`) or of a saved config.json, with `key=value` edits on top.

    `data` replaces the sources by one file, folder or glob. `run_directory` defaults to runs/ and the file's name.
    """
    path = Path(path)
    check_readable(path)
    config = from_json(path) if path.suffix == ".json" else from_python(path)
    config = edited(config, edits)
    if data is not None:
        sources = (SourceConfig(name=Path(data).stem.strip("*") or "data", path=data),)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
    if config.run_directory is None:
        config = dataclasses.replace(config, run_directory=f"runs/{path.stem}")
    return config


def check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except FileNotFoundError as error:
        beside = [
            str(file) for suffix in ("py", "json") for file in path.parent.glob(f"*.{suffix}")
        ]
        raise ConfigError(
            str(path), "no such config file" + suggestion(str(path), beside)
        ) from error
    except OSError as error:
        raise ConfigError(str(path), str(error.strerror)) from error


def from_python(path: Path) -> Config:
    """Runs the file with its folder importable and returns its `config`."""
    folder = path.parent.resolve()
    spec = importlib.util.spec_from_file_location(f"jaxlm_config_{path.stem}", folder / path.name)
    if spec is None or spec.loader is None:
        raise ConfigError(str(path), "is neither a Python file nor a saved config.json")
    module = importlib.util.module_from_spec(spec)
    with importable(folder):
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise ConfigError(*where(path, error)) from error
    config = getattr(module, "config", None)
    if config is None:
        raise ConfigError(str(path), "defines no `config`; write: config = Config(...)")
    if not isinstance(config, Config):
        raise ConfigError(
            str(path), f"`config` must be a jaxlm.config.Config, got {type(config).__name__}"
        )
    return config


def where(path: Path, error: BaseException) -> tuple[str, str]:
    """(FILE:LINE of the recipe that failed, or of the one beside it that it imports; the reason in one line)."""
    folder = path.parent.resolve()
    if isinstance(error, SyntaxError):
        places, text = [(error.filename or path, error.lineno)], f"syntax error: {error.msg}"
    else:
        places = [
            (frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)
        ]
        text = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
    own = [
        f"{path.parent / Path(file).name}:{line}"
        for file, line in places
        if line and Path(file).parent == folder
    ]
    return own[-1] if own else str(path), " ".join(text.split())


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Lets the recipes of a folder import each other; what they imported is forgotten again, so that folders don't mix.

    No bytecode is written: it is matched to its source by size and by the second of the last change, so that a recipe which a
    script rewrites from run to run would be read as it was before.
    """
    before, bytecode = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        sys.path.remove(str(folder))
        fresh = {
            name
            for name in set(sys.modules) - before
            if "." not in name and lies_in(folder, sys.modules[name])
        }
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in fresh:
                del sys.modules[name]


def lies_in(folder: Path, module: ModuleType) -> bool:
    """Whether a top-level module is a file or a package of this very folder; a virtual environment below it is not meant."""
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(place is not None and Path(place).parent == folder for place in places)


def from_json(path: Path) -> Config:
    """A saved config.json: data only."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}:{error.lineno}", f"is not JSON: {error.msg} at column {error.colno}"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(str(path), f"is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(str(path), "must be a JSON object with the sections of a config")
    try:
        return build(Config, {k: v for k, v in document.items() if k not in RECORDED}, "")
    except ConfigError as error:
        raise ConfigError(str(path), str(error)) from error


def to_dict(config: Any) -> dict[str, Any]:
    """A section as plain JSON data, `build`'s inverse."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def build(cls: type[T], values: Any, path: str) -> T:
    """A section from plain data (nested dicts and lists)."""
    if not isinstance(values, dict):
        raise ConfigError(
            path, f"must be an object with the keys of {cls.__name__}, got {brief(values)}"
        )
    known = annotations(cls)
    return cls(
        **{name: nested(known.get(name), value, join(path, name)) for name, value in values.items()}
    )


def nested(annotation: Any, value: Any, path: str) -> Any:
    """Turns dicts into the sections that the annotation names; other values are checked by the section itself."""
    if dataclasses.is_dataclass(annotation):
        return build(typing.cast(type, annotation), value, path)
    parts = typing.get_args(annotation)
    if (
        typing.get_origin(annotation) is tuple
        and dataclasses.is_dataclass(parts[0])
        and isinstance(value, (list, tuple))
    ):
        return tuple(
            numbered(typing.cast(type, parts[0]), item, path, number)
            for number, item in enumerate(value)
        )
    return value


def numbered(cls: type[T], values: Any, path: str, number: int) -> T:
    """One section of a list. A section does not know its number: it is put into the path of its errors."""
    try:
        return build(cls, values, path)
    except ConfigError as error:
        raise ConfigError(error.path.replace(path, f"{path}.{number}", 1), error.reason) from error


def edited(config: Config, edits: Sequence[str]) -> Config:
    """`config` with `section.key=value` edits, checked together once all are applied."""
    if not edits:
        return config
    document = to_dict(config)
    for edit in edits:
        key, equals, text = edit.partition("=")
        if not equals or not key:
            raise ConfigError(edit, "is not an edit: write section.key=value")
        apply(document, key, text)
    try:
        return build(Config, document, "")
    except ConfigError as error:
        # What contradicts an edit may be any key.
        edited_itself = error.path in (edit.partition("=")[0] for edit in edits)
        raise ConfigError(
            error.path, error.reason + ("" if edited_itself else f" (with {' '.join(edits)})")
        ) from error


def apply(document: dict, key: str, text: str) -> None:
    """Sets one dotted key of the plain config; `data.sources.0.path` reaches into lists."""
    annotation, place, path = Config, document, ""
    *parents, last = key.split(".")
    for part in parents:
        annotation, place, path = step_into(annotation, place, part, path)
    if dataclasses.is_dataclass(annotation):
        known = annotations(typing.cast(type, annotation))
        if last not in known:
            raise ConfigError(
                key, f"unknown key{near_keys(key, [join(path, name) for name in known])}"
            )
        place[last] = parse(text, known[last], key)
    else:
        raise ConfigError(key, f"{path} is a value, not a section")


def step_into(annotation: Any, place: Any, part: str, path: str) -> tuple[Any, Any, str]:
    """(annotation, value, path) of the child `part`."""
    here = join(path, part)
    if typing.get_origin(annotation) is tuple:
        if not part.isdigit() or int(part) >= len(place):
            raise ConfigError(here, f"no such item: {path} has {len(place)}, numbered from 0")
        return typing.get_args(annotation)[0], place[int(part)], here
    known = annotations(annotation) if dataclasses.is_dataclass(annotation) else {}
    if part not in known:
        raise ConfigError(here, f"unknown key{near_keys(here)}")
    return known[part], place[part], here


def near_keys(key: str, beside: Sequence[str] = ()) -> str:
    """' (did you mean X?)': the keys that end alike (steps: training.steps), else the nearest spelling; `beside` are more keys."""
    alike = [known for known in all_keys() if known.endswith("." + key.rpartition(".")[2])]
    return (
        f" (did you mean {' or '.join(map(repr, alike))}?)"
        if alike
        else suggestion(key, [*beside, *all_keys()])
    )


def all_keys(cls: Any = Config, path: str = "") -> list[str]:
    """Dotted names of every section and field."""
    keys = []
    for name, annotation in annotations(cls).items():
        keys.append(join(path, name))
        if dataclasses.is_dataclass(annotation):
            keys += all_keys(annotation, join(path, name))
    return keys


def parse(text: str, annotation: Any, path: str) -> Any:
    """The value of an edit, read by the field's type: none, true, 12, 3e-4, a text, or JSON for lists and sections."""
    inner, optional = split_optional(annotation)
    inner, _ = strip_bounds(inner)
    if optional and text.lower() in ("none", "null"):
        return None
    try:
        if typing.get_origin(inner) is Literal:
            return next((choice for choice in typing.get_args(inner) if str(choice) == text), text)
        if inner is bool:
            return {"true": True, "false": False}[text.lower()]
        if inner in (int, float):
            return number(text, inner)
        return text if inner is str else json.loads(text)
    except (ValueError, KeyError) as error:
        language = "" if inner in (int, float, bool) else " in JSON"
        raise ConfigError(
            path, f"must be {describe(annotation)}{language}, got {text!r}"
        ) from error


def number(text: str, kind: type) -> int | float:
    """A number; whole ones may be written 1e6 or 1_000."""
    value = float(text)
    if kind is int:
        if "." not in text and "e" not in text.lower():
            return int(text)
        if not value.is_integer():
            raise ValueError(text)
        return int(value)
    return value
