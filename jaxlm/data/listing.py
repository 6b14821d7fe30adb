"""List the files of a source."""

import glob
import os
import sysconfig
from collections.abc import Callable
from pathlib import Path

from jaxlm.config import ConfigError, SourceConfig
from jaxlm.config.fields import suggestion
from jaxlm.data.documents import FIRST_SOURCE, SourceKeys
from jaxlm.files import expand_home

# What Hugging Face's library writes beside the tables of a dataset, and beside its splits.
DATASET_STATE, DATASET_SPLITS = "state.json", "dataset_dict.json"
# Parts of the standard library that are left out: what distributions package separately (test
# suites, editors, demos) and what the build of Python wrote.
STDLIB_EXCLUDED = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "lib2to3",
    "turtledemo",
}
STDLIB_EXCLUDED_STARTS = ("config-", "_sysconfigdata", "sitecustomize")


def list_files(source: SourceConfig, keys: SourceKeys = FIRST_SOURCE) -> list[Path]:
    """Return the files of a source, sorted; a folder gives every file below it that is not hidden.

    Raises `ConfigError` at `keys.path` if there are none.
    """
    if source.path is None:
        modules = walk_files(stdlib_folder(), is_excluded_from_stdlib)
        return [path for path in modules if path.suffix == ".py"]

    path = expand_home(source.path)
    try:
        if path.is_dir():
            paths = drop_descriptions(walk_files(path), source, keys)
        elif path.exists():
            paths = [path]
        else:
            names = glob.glob(str(path), recursive=True)  # noqa: PTH207
            paths = sorted(Path(name) for name in names if Path(name).is_file())

        if not paths:
            reason = "holds no files" if path.is_dir() else "no such file" + suggest_file(path)
            raise ConfigError(keys.path, f"{source.path}: {reason}")
        if paths == [path] and not path.is_file():
            raise ConfigError(keys.path, f"{source.path}: is no regular file, which is read twice")
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise ConfigError(keys.path, f"{source.path}: {error.strerror}") from error
    return paths


def drop_descriptions(paths: list[Path], source: SourceConfig, keys: SourceKeys) -> list[Path]:
    """Return the files of a folder without those that describe a dataset which is saved there.

    Raises ConfigError at `keys.path` for a dataset of several splits, of which some are for tests.
    """
    folders = {path.parent for path in paths if path.name == DATASET_STATE}
    for path in paths:
        if path.name == DATASET_SPLITS:
            names = ", ".join(sorted(folder.name for folder in folders if folder != path.parent))
            reason = f"{source.path}: holds the splits {names}: name one of them"
            raise ConfigError(keys.path, reason)
    return [path for path in paths if path.parent not in folders or path.suffix == ".arrow"]


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden."""
    return name.startswith(".")


def is_excluded_from_stdlib(name: str) -> bool:
    """Return whether a file or folder of the standard library is left out."""
    return name in STDLIB_EXCLUDED or name.startswith(STDLIB_EXCLUDED_STARTS)


def walk_files(folder: Path, is_excluded: Callable[[str], bool] = is_hidden) -> list[Path]:
    """Return the regular files below `folder`, sorted.

    Files and whole folders whose name `is_excluded` are left out.
    """
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_excluded(name)]
        paths += [Path(parent, name) for name in names if not is_excluded(name)]
    return sorted(path for path in paths if path.is_file())


def suggest_file(path: Path) -> str:
    """Return ' (did you mean X?)' if a file of nearly that name is in the same folder."""
    try:
        return suggestion(path.name, [neighbour.name for neighbour in path.parent.iterdir()])
    except OSError:
        return ""


def stdlib_folder() -> Path:
    """Return the folder of the Python standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def base_folder(source: SourceConfig) -> Path:
    """Return the folder that the names of a source's documents are relative to.

    It is the source's own folder, or the part of a glob before the first wildcard.
    """
    if source.path is None:
        return stdlib_folder()
    path = expand_home(source.path)
    if path.is_dir():
        return path

    folder = path.parent
    while glob.has_magic(str(folder)) and not folder.is_dir():
        folder = folder.parent
    return folder
