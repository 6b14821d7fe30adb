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

from jaxlm.config import ConfigError, DataConfig, LostError, TokenizerConfig, UserError
from jaxlm.data.building import (
    SHARD_TOKENS,
    StoreInputs,
    begin_store,
    build_store,
    remove_intermediate,
)
from jaxlm.data.building.stages import Part, Stage, run_stage
from jaxlm.data.building.workers import LostWorkerError
from jaxlm.data.corpus import numbered_sources
from jaxlm.data.examples import ExampleSpec
from jaxlm.data.growing import BEGUN, open_begun, unfinished_path
from jaxlm.data.identity import (
    FINGERPRINTS,
    FORMAT,
    StoreIdentity,
    describe_sources,
    file_lock,
    identify_store,
)
from jaxlm.data.mixture import apportion_slots
from jaxlm.data.rules import Predicate
from jaxlm.data.store import MANIFEST, Store, open_store, summarize_store
from jaxlm.files import expand_home, write_atomically

POLL_SECONDS = 0.2
# In the folder of a store that is being built: files of other versions are not used.
BUILDING, BUILDING_VERSION = "building.json", 2


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    vocabulary_size: int,
    report: Callable[[str], None],
    shard_tokens: int = SHARD_TOKENS,
    needs: tuple[str, ...] = (),
    workers: int | None = None,
    predicate: Predicate | None = None,
    examples: ExampleSpec | None = None,
) -> Store:
    """Return the store of `data`, built if it is not there yet; `report` gets plain lines.

    `workers` processes build it; None: one for each core. The `predicate` chooses documents beside
    the rules of the config; `examples` says how records become examples (`example_spec`).

    `vocabulary_size` is the size of a BPE to be trained, `needs` are the special tokens that the
    objective needs beside the end of text (`ObjectiveConfig.needs`). Raises `ConfigError` or
    `UserError` for what the user can mend: missing or malformed files, a split that is empty, an
    unusable tokenizer.json, a damaged store.
    """
    check_weights(data)
    with removed_if_unused(expand_home(data.store)):
        identity = identify_store(data, tokenizer, vocabulary_size, needs, predicate, examples)
        folder = identity.folder
        if not is_built(folder):
            with unfinished_folder(folder, report) as unfinished:
                if unfinished is not None:
                    inputs = store_inputs(
                        data,
                        tokenizer,
                        vocabulary_size,
                        identity,
                        predicate,
                        examples,
                        shard_tokens,
                    )
                    start_building(unfinished, report)
                    # One that was killed after its manifest has only to be cleared up.
                    if not (unfinished / MANIFEST).exists():
                        manifest = build_store(unfinished, inputs, workers, report)
                        check_unchanged(data, identity)
                        description = {"format": FORMAT, "inputs": identity.inputs} | manifest
                        write_atomically(unfinished / MANIFEST, json.dumps(description, indent=1))
                    remove_intermediate(unfinished)

    store = open_store(folder)
    report(summarize_store(store))
    return store


def begin(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    vocabulary_size: int,
    report: Callable[[str], None],
    needs: tuple[str, ...] = (),
    predicate: Predicate | None = None,
    examples: ExampleSpec | None = None,
) -> Store:
    """Return the store of `data`; where it is not built yet, as soon as a run can begin with it.

    All but the tokens of the training split is then there, and `built_meanwhile` adds these.
    Arguments and errors are those of `prepare`.
    """
    check_weights(data)
    with removed_if_unused(expand_home(data.store)):
        identity = identify_store(data, tokenizer, vocabulary_size, needs, predicate, examples)
        folder = identity.folder
        if (unfinished_path(folder) / MANIFEST).exists():  # it has only to be cleared up
            return prepare(
                data,
                tokenizer,
                vocabulary_size,
                report,
                needs=needs,
                predicate=predicate,
                examples=examples,
            )
        if not is_built(folder) and not has_begun(folder):
            with unfinished_folder(folder, report, completes=False) as unfinished:
                if unfinished is not None:
                    inputs = store_inputs(
                        data, tokenizer, vocabulary_size, identity, predicate, examples
                    )
                    start_building(unfinished, report)
                    manifest = begin_store(unfinished, inputs, None, report)
                    check_unchanged(data, identity)
                    description = {"format": FORMAT, "inputs": identity.inputs} | manifest
                    write_atomically(unfinished / BEGUN, json.dumps(description))

    store = open_begun(folder)
    report(summarize_store(store))
    return store


def has_begun(folder: Path) -> bool:
    """Return whether a run can begin with a store that is not built yet."""
    unfinished = unfinished_path(folder)
    return (unfinished / BEGUN).exists() and can_go_on(unfinished)


def prepare_stage(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    vocabulary_size: int,
    report: Callable[[str], None],
    *,
    stage: Stage,
    part: Part,
    needs: tuple[str, ...] = (),
    workers: int | None = None,
    predicate: Predicate | None = None,
    examples: ExampleSpec | None = None,
) -> None:
    """Do a part of a stage of `prepare`, so that several machines can share it.

    They have the folder of the stores in common. Raises as `prepare` does.
    """
    check_weights(data)
    identity = identify_store(data, tokenizer, vocabulary_size, needs, predicate, examples)
    if is_built(identity.folder):
        report(f"store {identity.folder}: is there already")
        return

    unfinished = unfinished_path(identity.folder)
    inputs = store_inputs(data, tokenizer, vocabulary_size, identity, predicate, examples)
    with store_errors(identity.folder):
        # One of several machines makes the folder.
        with file_lock(lock_path(identity.folder), lambda: None):
            if not can_go_on(unfinished):
                start_building(unfinished, report)
        run_stage(unfinished, inputs, stage, part, workers, report)


def check_weights(data: DataConfig) -> None:
    """Raise ConfigError for weights that no mixture can have: now, not after hours."""
    if any(data.weights):
        apportion_slots(data.weights)
    for step, weights in data.mixture_schedule:
        apportion_slots(weights, step)


def store_inputs(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    vocabulary_size: int,
    identity: StoreIdentity,
    predicate: Predicate | None,
    examples: ExampleSpec | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> StoreInputs:
    """Return what the store of a config is built of."""
    return StoreInputs(
        data,
        tokenizer,
        vocabulary_size,
        identity.special,
        identity.newlines,
        shard_tokens,
        predicate,
        examples,
    )


def check_unchanged(data: DataConfig, identity: StoreIdentity) -> None:
    """Raise ConfigError at the path of a source whose files changed while they were read.

    The store is named by what they held before, so that a later run would take it for that.
    """
    described, _ = describe_sources(data, expand_home(data.store) / FINGERPRINTS)
    before = identity.inputs["sources"]
    for (source, keys), then, now in zip(numbered_sources(data), before, described, strict=True):
        if then["fingerprint"] != now["fingerprint"]:
            reason = "files changed while they were read: start again once they are complete"
            raise ConfigError(keys.path, f"{source.path}: {reason}")


@contextlib.contextmanager
def store_errors(folder: Path) -> Iterator[None]:
    """Turn a failure to read or write the folder of a store into a ConfigError at `data.store`."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename or folder.parent}: {error.strerror or error}"
        raise ConfigError("data.store", reason) from error


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


def lock_path(folder: Path) -> Path:
    """Return the file that a process locks while it builds a store."""
    return folder.with_name(f".{folder.name}.lock")


@contextlib.contextmanager
def unfinished_folder(
    folder: Path, report: Callable[[str], None], *, completes: bool = True
) -> Iterator[Path | None]:
    """Give the folder that becomes `folder` at the end of a block that `completes` it.

    Gives None if another process built `folder` while this one waited for the lock. A preparation
    that was interrupted leaves what it has in there; after a mistake of the user's it is removed. A
    failure to write is a `ConfigError` at `data.store`.
    """
    unfinished = unfinished_path(folder)
    waiting = f"store {folder}: another process builds it, waiting"
    with store_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(lock_path(folder), lambda: report(waiting)):
            if folder.is_dir():
                yield None
                return

            try:
                yield unfinished
                if completes:
                    unfinished.rename(folder)
            except UserError as error:
                if not isinstance(error, LostWorkerError):
                    shutil.rmtree(unfinished, ignore_errors=True)
                raise


def start_building(unfinished: Path, report: Callable[[str], None]) -> None:
    """Make the folder of a store that is built, unless an interrupted preparation left it."""
    if can_go_on(unfinished):
        report(f"store {unfinished}: goes on with what an earlier preparation left")
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    write_atomically(unfinished / BUILDING, json.dumps({"version": BUILDING_VERSION}))


def can_go_on(unfinished: Path) -> bool:
    """Return whether an interrupted preparation left files that this version understands."""
    if (unfinished / MANIFEST).exists():  # it is complete, whatever version wrote it
        return True
    try:
        state = json.loads((unfinished / BUILDING).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and state.get("version") == BUILDING_VERSION


def await_store(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    vocabulary_size: int,
    report: Callable[[str], None],
    ready: Callable[[], bool],
    seconds: float,
    needs: tuple[str, ...] = (),
    predicate: Predicate | None = None,
    examples: ExampleSpec | None = None,
    *,
    begun: bool = False,
) -> Path:
    """Wait for the store that process 0 prepares of the same arguments, and return its folder.

    With `begun` one that is still being built is enough, if a run can begin with it.

    The wait also ends once process 0 is `ready` with another store: the folder is then missing.
    Raises LostError after `seconds`.
    """
    deadline = time.monotonic() + seconds
    folder = identify_store(data, tokenizer, vocabulary_size, needs, predicate, examples).folder
    if not is_built(folder):
        report(f"store {folder}: waiting up to {seconds:g} s until process 0 has prepared it")

    while not folder.is_dir() and not (begun and has_begun(folder)) and not ready():
        if time.monotonic() > deadline:
            raise LostError(
                f"data.store: process 0 has not prepared {folder} within {seconds:g} s "
                "(runtime.preparation_timeout_seconds)"
            )
        time.sleep(POLL_SECONDS)
    return folder
