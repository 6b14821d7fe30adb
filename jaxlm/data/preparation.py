"""Have the store of a config: find it, build it, or wait until another process has built it.

A store is built in a folder of another name, which is renamed when it is complete. So whatever
stands under the name of a store is finished.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxlm.config import ConfigError, DataConfig, LostError, TokenizerConfig
from jaxlm.data.build import SHARD_TOKENS, build_store
from jaxlm.data.identity import FORMAT, file_lock, identify_store
from jaxlm.data.mixture import apportion_slots
from jaxlm.data.store import MANIFEST, Store, open_store, summarize_store
from jaxlm.files import expand_home, write_atomically

POLL_SECONDS = 0.2


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    vocabulary_size: int,
    report: Callable[[str], None],
    shard_tokens: int = SHARD_TOKENS,
    needs: tuple[str, ...] = (),
) -> Store:
    """Return the store of `data`, built if it is not there yet; `report` gets plain lines.

    `vocabulary_size` is the size of a BPE to be trained, `needs` are the special tokens that the
    objective needs beside the end of text (`ObjectiveConfig.needs`). Raises `ConfigError` or
    `UserError` for what the user can mend: missing or malformed files, a split that is empty, an
    unusable tokenizer.json, a damaged store.
    """
    # A mistake in the weights shows now, not after hours of preparation.
    if any(data.weights):
        apportion_slots(data.weights)
    for step, weights in data.mixture_schedule:
        apportion_slots(weights, step)
    with removed_if_unused(expand_home(data.store)):
        folder, inputs, special = identify_store(data, tokenizer, vocabulary_size, needs)
        if not is_built(folder):
            with unfinished_folder(folder, report) as unfinished:
                if unfinished is not None:
                    manifest = build_store(
                        unfinished, data, tokenizer, vocabulary_size, special, report, shard_tokens
                    )
                    description = {"format": FORMAT, "inputs": inputs} | manifest
                    write_atomically(unfinished / MANIFEST, json.dumps(description, indent=1))

    store = open_store(folder)
    report(summarize_store(store))
    return store


@contextlib.contextmanager
def removed_if_unused(root: Path) -> Iterator[None]:
    """Remove the folder of all stores after an error, if it is new and empty."""
    is_new = not os.path.lexists(root)
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                root.rmdir()
        raise


def is_built(folder: Path) -> bool:
    """Return whether a store is there.

    Raises ConfigError at `data.store` if no folder can have its name.
    """
    try:
        return folder.is_dir()
    except OSError as error:
        raise ConfigError("data.store", f"{folder.parent}: {error.strerror}") from error


@contextlib.contextmanager
def unfinished_folder(folder: Path, report: Callable[[str], None]) -> Iterator[Path | None]:
    """Give an empty folder that becomes `folder` at the end of the block.

    Gives None if another process built `folder` while this one waited for the lock. What an
    interrupted build left is removed. A failure to write is a `ConfigError` at `data.store`.
    """
    unfinished = folder.with_name(f".{folder.name}.building")
    lock = folder.with_name(f".{folder.name}.lock")
    waiting = f"store {folder}: another process builds it, waiting"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(lock, lambda: report(waiting)):
            if folder.is_dir():
                yield None
                return

            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                yield unfinished
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise ConfigError(
            "data.store", f"{error.filename or folder.parent}: {error.strerror or error}"
        ) from error


def await_store(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    vocabulary_size: int,
    report: Callable[[str], None],
    ready: Callable[[], bool],
    seconds: float,
    needs: tuple[str, ...] = (),
) -> Path:
    """Wait for the store that process 0 prepares of the same arguments, and return its folder.

    The wait also ends once process 0 is `ready` with another store: the folder is then missing.
    Raises LostError after `seconds`.
    """
    deadline = time.monotonic() + seconds
    folder = identify_store(data, tokenizer, vocabulary_size, needs).folder
    if not is_built(folder):
        report(f"store {folder}: waiting up to {seconds:g} s until process 0 has prepared it")

    while not folder.is_dir() and not ready():
        if time.monotonic() > deadline:
            raise LostError(
                f"data.store: process 0 has not prepared {folder} within {seconds:g} s "
                "(runtime.preparation_timeout_seconds)"
            )
        time.sleep(POLL_SECONDS)
    return folder
