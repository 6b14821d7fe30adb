"""Load configs from Python files and saved JSON, with edits on top.

Every mistake is a `ConfigError` of one line.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from jaxlm.config.base import adopt_base
from jaxlm.config.edits import apply_edits
from jaxlm.config.errors import ConfigError
from jaxlm.config.fields import nearest
from jaxlm.config.plain_data import build_section, unique_keys
from jaxlm.config.schema import Config

OTHER_JSON = ("tokenizer.json", "training.json")  # files of a run beside its config.json
RECORDED = ("store", "versions")  # keys of a saved config.json that are no part of the config


def load(path: str | Path, edits: Sequence[str] = (), data: str | None = None) -> Config:
    """Load the config of a Python file (its `config = Config(...)`) or of a saved config.json.

    `data` (a file, folder or glob) replaces the sources. `edits` are `key=value` strings that are
    applied on top. `run_directory` defaults to runs/ and the name of the file. A recipe with a
    `base` has the model and the tokenizer of that run.
    """
    path = Path(path)
    check_readable(path)
    config = load_json(path) if path.suffix == ".json" else load_python(path)
    config = apply_edits(config, edits, data)
    if config.base is not None and path.suffix != ".json":  # a saved config is whole
        edited_keys = tuple(edit.partition("=")[0] for edit in edits)
        config = adopt_base(config, load_base(Path(config.base)), edited_keys)

    if config.run_directory is None:
        config = dataclasses.replace(config, run_directory=f"runs/{path.stem}")
    return config


def check_readable(path: Path) -> None:
    """Raise ConfigError unless `path` is a file that can be read."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ConfigError(str(path), "is no regular file")
        path.open("rb").close()
    except FileNotFoundError as error:
        neighbors = [*path.parent.glob("*.py"), *path.parent.glob("*.json")]
        names = [neighbor.name for neighbor in neighbors if neighbor.name not in OTHER_JSON]
        close = nearest(path.name, names)
        hint = f" (did you mean '{path.parent / close}'?)" if close else ""
        raise ConfigError(str(path), f"no such config file{hint}") from error
    except OSError as error:
        raise ConfigError(str(path), str(error.strerror)) from error


def load_base(directory: Path) -> Config:
    """Load the config of the run that another one starts from.

    Raises ConfigError where the directory is none of a run.
    """
    file = directory / "config.json"
    if not directory.is_dir():
        raise ConfigError("base", f"there is no directory {directory}")
    if not file.is_file():
        raise ConfigError("base", f"{directory} is not a run directory: it has no config.json")
    if not (directory / "checkpoints").is_dir():
        problem = f"{directory} has no checkpoints; a Hugging Face directory becomes a run by"
        raise ConfigError("base", f"{problem} python -m jaxlm.convert import {directory} RUN")
    return load_json(file)


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


# Saved JSON


def load_json(path: Path) -> Config:
    """Load a saved config.json, which is data only."""
    try:
        # Editors of Windows put a byte order mark in front, which "utf-8-sig" leaves out.
        text = path.read_text(encoding="utf-8-sig")
        document = json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        reason = f"is not JSON: {error.msg} at column {error.colno}"
        raise ConfigError(f"{path}:{error.lineno}", reason) from error
    except OSError as error:
        raise ConfigError(str(path), str(error.strerror)) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(path), f"is not JSON: {error}") from error

    if not isinstance(document, dict):
        raise ConfigError(str(path), "must be a JSON object with the sections of a config")
    values = {key: value for key, value in document.items() if key not in RECORDED}
    # Configs that earlier versions saved lack the bound, and their tokenizers have none.
    if isinstance(values.get("tokenizer"), dict):
        values["tokenizer"].setdefault("longest_piece", None)
    try:
        return build_section(Config, values, "")
    except ConfigError as error:
        raise ConfigError(str(path), str(error)) from error
