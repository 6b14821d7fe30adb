"""Find the files of a run that was moved, or that is resumed from another folder."""

import dataclasses
import glob
from pathlib import Path

from jaxlm.config.schema import Config
from jaxlm.config.urls import is_url


def find_moved(config: Config, folder: Path) -> Config:
    """Return the config of the run in `folder`, with its paths as they are found from here.

    Those that aren't are looked up from where the run was started, as far as its saved place tells.
    """
    saved = Path(config.run_directory or "runs/run")
    if saved.is_absolute() or ".." in saved.parts:
        return config
    return find_paths(config, folder.resolve().joinpath(*[".."] * len(saved.parts)).resolve())


def find_paths(config: Config, start: Path) -> Config:
    """Return the config with relative paths that are not found from here taken from `start`.

    These are the texts, the token store, the tokenizer and the base. `start` is the folder in which
    the run was started. A path that is not found there either stays as it is.
    """
    data, tokenizer = config.data, config.tokenizer
    sources = tuple(
        dataclasses.replace(source, path=find_path(source.path, start)) for source in data.sources
    )
    validation = dataclasses.replace(data.validation, path=find_path(data.validation.path, start))
    data = dataclasses.replace(
        data, sources=sources, validation=validation, store=find_path(data.store, start)
    )
    template = tokenizer.chat_template
    if template is not None and Path(template).suffix:  # others are names
        template = find_path(template, start)
    tokenizer = dataclasses.replace(
        tokenizer, path=find_path(tokenizer.path, start), chat_template=template
    )
    base = find_path(config.base, start)
    return dataclasses.replace(config, data=data, tokenizer=tokenizer, base=base)


def find_path(path: str | None, start: Path) -> str | None:
    """Return a file, folder or glob as it is if it is found, else below `start` if it is there."""
    if path is None or is_url(path) or Path(path).expanduser().is_absolute() or exists(path):
        return path
    moved = str(start / path)
    return moved if exists(moved) else path


def exists(path: str) -> bool:
    """Return whether there is a file or folder of this name, or one that the glob matches."""
    return Path(path).exists() or bool(glob.glob(path, recursive=True))  # noqa: PTH207
