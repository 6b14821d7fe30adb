"""List the files of a source."""

import glob
import os
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

from jaxlm.config import ConfigError, SourceConfig, UserError
from jaxlm.config.fields import suggestion
from jaxlm.config.urls import hide_credentials, is_url
from jaxlm.data.documents import FIRST_SOURCE, SourceKeys
from jaxlm.data.remote_files import RemoteError, SourceFile, list_remote_files, remote_base_folder
from jaxlm.files import expand_home

# What Hugging Face's library writes beside the tables of a dataset, and beside its splits.
DATASET_FILES, DATASET_SPLITS = {"state.json", "dataset_info.json"}, "dataset_dict.json"
TOKEN_FILES = (".bin", ".npy")
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


def list_files(
    source: SourceConfig, keys: SourceKeys = FIRST_SOURCE, left_out: list[Path] | None = None
) -> Sequence[SourceFile]:
    """Return the files of a source, sorted; a folder gives every file below it that is not hidden.

    `left_out` gets what is no regular file: links to folders and to nowhere, sockets. Raises
    `ConfigError` at `keys.path` if there are no files, or a folder can't be read.
    """
    if source.path is None:
        modules = walk_files(stdlib_folder(), is_excluded_from_stdlib)
        return [path for path in modules if path.suffix == ".py"]

    if is_url(source.path):
        url = hide_credentials(source.path)
        try:
            paths = drop_descriptions(list_remote_files(source.path), source, keys)
            return choose_token_files(paths, source, keys)
        except RemoteError as error:
            raise ConfigError(keys.path, f"{url}: {error.strerror}") from error

    path = expand_home(source.path)
    try:
        if path.is_dir():
            paths = drop_descriptions(walk_files(path, is_hidden, left_out), source, keys)
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
    return choose_token_files(paths, source, keys)


def choose_token_files(
    paths: Sequence[SourceFile], source: SourceConfig, keys: SourceKeys
) -> Sequence[SourceFile]:
    """Return the files of a source; of a folder of tokens the .bin and .npy alone.

    A folder also holds what made them. An .idx belongs to its .bin. Raises ConfigError at
    `keys.path` if nothing is left.
    """
    if source.format != "tokens" or len(paths) == 1:
        return paths
    if glob.has_magic(str(source.path)):
        chosen = [path for path in paths if path.suffix != ".idx"]
    else:
        chosen = [path for path in paths if path.suffix in TOKEN_FILES]
    names = {(path.parent, path.name) for path in paths}
    for path in paths:
        if path.suffix == ".idx" and (path.parent, f"{path.name[:-4]}.bin") not in names:
            raise ConfigError(keys.path, f"{path}: the .bin beside it is missing")
    if not chosen:
        reason = "holds no .bin or .npy: name the files of tokens by a glob"
        raise ConfigError(keys.path, f"{hide_credentials(str(source.path))}: {reason}")
    return chosen


def drop_descriptions(
    paths: Sequence[SourceFile], source: SourceConfig, keys: SourceKeys
) -> list[SourceFile]:
    """Return the files of a folder without those that describe a dataset which is saved there.

    Raises ConfigError at `keys.path` for a dataset of several splits, of which some are for tests.
    """
    described: dict[PurePath, set[str]] = {}
    for path in paths:
        if path.name in DATASET_FILES:
            described.setdefault(path.parent, set()).add(path.name)
    folders = {folder for folder, names in described.items() if names == DATASET_FILES}

    for path in paths:
        if path.name == DATASET_SPLITS and folders:
            names = ", ".join(sorted(folder.name for folder in folders))
            reason = (
                f"{hide_credentials(str(source.path))}: holds the splits {names}: name one of them"
            )
            raise ConfigError(keys.path, reason)
    return [path for path in paths if path.parent not in folders or path.suffix == ".arrow"]


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden."""
    return name.startswith(".")


def is_excluded_from_stdlib(name: str) -> bool:
    """Return whether a file or folder of the standard library is left out."""
    return name in STDLIB_EXCLUDED or name.startswith(STDLIB_EXCLUDED_STARTS)


def walk_files(
    folder: Path, is_excluded: Callable[[str], bool], left_out: list[Path] | None = None
) -> list[Path]:
    """Return the regular files below `folder`, sorted; `left_out` gets the others.

    Files and whole folders whose name `is_excluded` are passed over. Links to folders are not
    followed: they may lead back. Raises OSError for a folder that can't be read.
    """
    paths, others = [], []
    for parent, folders, names in os.walk(folder, onerror=raise_error):
        folders[:] = [name for name in folders if not is_excluded(name)]
        others += [path for name in folders if (path := Path(parent, name)).is_symlink()]
        for name in names:
            if not is_excluded(name):
                path = Path(parent, name)
                (paths if path.is_file() else others).append(path)
    if left_out is not None:
        left_out += sorted(others)
    return sorted(paths)


def raise_error(error: OSError) -> None:
    """Let `os.walk` end with an error, which it would pass over."""
    raise error


def suggest_file(path: Path) -> str:
    """Return ' (did you mean X?)' if a file of nearly that name is in the same folder."""
    try:
        return suggestion(path.name, [neighbour.name for neighbour in path.parent.iterdir()])
    except OSError:
        return ""


def stdlib_folder() -> Path:
    """Return the folder of the Python standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def base_folder(source: SourceConfig) -> Path | str:
    """Return the folder that the names of a source's documents are relative to.

    It is the source's own folder, or the part of a glob before the first wildcard. Of a URL it is a
    name in the file system there.
    """
    if source.path is None:
        return stdlib_folder()
    if is_url(source.path):
        try:
            return remote_base_folder(source.path)
        except RemoteError as error:
            raise UserError(f"{hide_credentials(source.path)}: {error.strerror}") from error
    path = expand_home(source.path)
    if path.is_dir():
        return path

    folder = path.parent
    while glob.has_magic(str(folder)) and not folder.is_dir():
        folder = folder.parent
    return folder
