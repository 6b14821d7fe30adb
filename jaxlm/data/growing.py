"""Open a store while it is built: its validation split is complete, its training split grows.

The tokens of a source come unit by unit, in the order of its text. They are those that the finished
store has, at the same places.
"""

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config import UserError
from jaxlm.data.building.encoding import encoded_path, read_part_entry
from jaxlm.data.shards import OpenShard, TokenArray, check_size
from jaxlm.data.split import TRAIN, VALIDATION
from jaxlm.data.store import MANIFEST, Store, open_store, open_tokens, read_description
from jaxlm.objectives import Objective

BEGUN = "begun.json"  # the manifest of a store that a run can begin with
ALL_TOKENS = 1 << 62  # more than any source has
POLL_SECONDS = 0.2
MOVING_SECONDS = 600.0  # between the last part and the name of the finished store


@dataclasses.dataclass
class Construction:
    """A store that is being built."""

    folder: Path  # where it will be
    unfinished: Path
    # Raises UserError if the process that builds it has failed.
    check: Callable[[], None] = lambda: None
    is_closed: bool = False  # nobody reads it any more

    @property
    def is_finished(self) -> bool:
        """Whether the store is there."""
        return self.folder.is_dir()

    def wait(self, condition: Callable[[], bool], seconds: float = float("inf")) -> bool:
        """Wait until a condition holds, and return whether it does. Raises as `check` does."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.is_closed or time.monotonic() > deadline:
                return condition()
            if not self.is_finished:
                self.check()
            time.sleep(POLL_SECONDS)
        return True


class Parts(TokenArray):
    """The tokens of the units that are there."""

    def __init__(self, dtype: np.dtype):
        super().__init__([], [], dtype)
        self.paths, self.ends = [], []

    def append(self, path: Path, tokens: int) -> None:
        """Add the next tokens. Other threads may read meanwhile."""
        check_size(path, tokens * self.dtype.itemsize)
        self.paths.append(path)
        self.ends.append(len(self) + tokens)


class GrowingArray:
    """The training tokens of a source, of a store that is being built."""

    def __init__(self, construction: Construction, source: int, entry: dict[str, Any], dtype: str):
        """Take the number of the source, and its entry in `parts` of the manifest."""
        self.construction, self.source, self.entry = construction, source, entry
        self.parts = Parts(np.dtype(dtype).newbyteorder("<"))
        self.units_read = 0
        self.finished: TokenArray | None = None  # once the parts are gone
        self.lock = threading.Lock()

    @property
    def tokens(self) -> TokenArray:
        """The tokens that are known to be there."""
        return self.parts if self.finished is None else self.finished

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_complete(self) -> bool:
        """Whether all tokens are known to be there."""
        return self.finished is not None or self.units_read == len(self.entry["units"])

    def has(self, tokens: int) -> bool:
        """Return whether the first `tokens` are there, or all that will be."""
        if not self.is_complete and len(self) < tokens:
            self.read_new_units()
        return self.is_complete or len(self) >= tokens

    def wait(self, tokens: int) -> bool:
        """Wait until the first `tokens` are there. Return whether all that will be are there."""
        if not self.construction.wait(lambda: self.has(tokens)):
            raise UserError("data: the run has ended")
        return self.is_complete

    def read_new_units(self) -> None:
        """Take the parts of units that have been tokenised since."""
        folder, units = self.construction.unfinished, self.entry["units"]
        with self.lock:
            if self.construction.is_finished:
                self.open_finished()
                return
            try:
                while not self.is_complete and self.is_encoded(units[self.units_read]):
                    entry = read_part_entry(folder, units[self.units_read], TRAIN)
                    for shard in entry["shards"]:
                        self.parts.append(folder / shard["file"], shard["tokens"])
                    self.units_read += 1
            except (OSError, UserError):
                self.await_finished()

    def is_encoded(self, unit: str) -> bool:
        """Return whether the training tokens of a unit are there."""
        return encoded_path(self.construction.unfinished, unit, TRAIN).exists()

    def open_finished(self) -> None:
        """Read the shards of the finished store from now on."""
        if self.finished is None:
            array = open_store(self.construction.folder).train[self.source]
            assert isinstance(array, TokenArray), "pairs don't grow"
            self.finished = array

    def await_finished(self) -> None:
        """Open the finished store, which is about to come: its parts are gone. The lock is held.

        Raises the error at hand if nothing comes.
        """
        construction = self.construction
        if not construction.wait(lambda: construction.is_finished, MOVING_SECONDS):
            raise
        self.open_finished()

    def start_count(self, objective: Objective) -> int:
        """Return at how many of the tokens that are there a whole window starts."""
        return self.tokens.start_count(objective)

    def read_samples(self, starts: np.ndarray, objective: Objective) -> np.ndarray:
        """Return the samples that start at the tokens `starts` (int64 [n]); int32 [n, window]."""
        tokens = self.tokens
        try:
            return tokens.read_samples(starts, objective)
        except UserError:
            if tokens is self.finished or all(path.exists() for path in self.parts.paths):
                raise
            with self.lock:
                if self.finished is None:
                    self.await_finished()
        return self.tokens.read_samples(starts, objective)


class MovingArray(TokenArray):
    """Shards that are complete, of a store that is being built. They move once, as it does."""

    construction: Construction

    def open_shard(self, shard: int) -> OpenShard:
        """Return the open file of a shard, wherever it is."""
        try:
            return super().open_shard(shard)
        except UserError:
            path = self.construction.folder / self.paths[shard].name
            if not path.exists():
                raise
            self.paths = tuple(path.with_name(old.name) for old in self.paths)
            return super().open_shard(shard)


def unfinished_path(folder: Path) -> Path:
    """Return the folder in which a store is built."""
    return folder.with_name(f".{folder.name}.building")


def open_begun(folder: Path) -> Store:
    """Open a store with which a run can begin: the finished one at `folder`, or what there is.

    Raises UserError naming the file that is missing or damaged.
    """
    if folder.is_dir():
        return open_store(folder)
    try:
        return open_unfinished(folder, unfinished_path(folder))
    except UserError:
        if folder.is_dir():  # it has moved meanwhile
            return open_store(folder)
        raise


def open_unfinished(folder: Path, unfinished: Path) -> Store:
    """Open a store that is being built in the folder `unfinished`."""
    manifest, tokenizer = read_description(unfinished, BEGUN)
    construction = Construction(folder, unfinished)
    validation = []
    for entry in manifest["splits"][VALIDATION]:
        array = open_tokens(unfinished, entry, np.dtype(manifest["dtype"]), MovingArray)
        array.construction = construction
        array.verifier = None  # its files move
        validation.append(array)
    return Store(
        hash=folder.name,
        path=folder,
        tokenizer=tokenizer,
        train=tuple(
            GrowingArray(construction, source, entry, manifest["dtype"])
            for source, entry in enumerate(manifest["parts"])
        ),
        validation=tuple(filter(len, validation)),
        manifest=manifest,
        construction=construction,
    )


def current_manifest(store: Store) -> dict[str, Any]:
    """Return the manifest of a store; while it is built, with the tokens that are there."""
    if store.construction is None:
        return store.manifest
    if store.construction.is_finished:
        return read_description(store.path, MANIFEST)[0]
    entries = [
        {**array.entry, "tokens": len(array)}
        for array in store.train
        if isinstance(array, GrowingArray)
    ]
    return {**store.manifest, "splits": {**store.manifest["splits"], TRAIN: entries}}
