"""Build the rest of a store in a process of its own while a run trains on what is there."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any

from jaxlm.config import DataConfig, UserError
from jaxlm.data.building.workers import end_with_parent, hidden_main
from jaxlm.data.documents import RECORD_SHAPES
from jaxlm.data.preparation import prepare
from jaxlm.data.store import Store
from jaxlm.hardware import count_cores

ENDED = "data: the process that builds the store has ended early: what is done is kept, start again"


class Builder:
    """The process that builds the rest of a store."""

    def __init__(self, arguments: tuple[Any, ...]):
        """Take the arguments of `prepare` that decide the store."""
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe(duplex=False)
        # Training keeps a core for itself where it can.
        workers = max(count_cores() - 1, 1)
        self.process = context.Process(target=build, args=(there, workers, *arguments))
        with hidden_main():
            self.process.start()
        there.close()
        self.error: str | None = None
        self.lock = threading.Lock()

    def check(self) -> None:
        """Raise UserError if the process ended before the store was complete."""
        with self.lock:
            if self.error is None and self.pipe.poll():
                try:
                    self.error = self.pipe.recv()
                except EOFError:
                    self.error = ENDED
        if self.error:
            raise UserError(self.error)

    def stop(self) -> None:
        """End the process. What it has done is kept."""
        self.process.terminate()
        self.process.join()


def build(pipe: connection.Connection, workers: int, *arguments: Any) -> None:
    """Build a store, and tell through the pipe how it ended: "" or the mistake."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it, too, and ends this process
    threading.Thread(target=end_with_parent, daemon=True).start()
    data, tokenizer, vocabulary_size, needs, predicate = arguments
    # The run shows its own progress.
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            prepare(
                data,
                tokenizer,
                vocabulary_size,
                lambda line: None,
                needs=needs,
                workers=workers,
                predicate=predicate,
            )
            pipe.send("")
        except UserError as error:
            pipe.send(str(error))


@contextlib.contextmanager
def built_meanwhile(store: Store, *, is_leader: bool, arguments: tuple[Any, ...]) -> Iterator[None]:
    """Have a store completed in the background during the block, by the leading process.

    `arguments` are (data, tokenizer, vocabulary_size, needs, predicate) of `prepare`.
    """
    construction = store.construction
    if construction is None:
        yield
        return

    builder = Builder(arguments) if is_leader else None
    if builder is not None:
        construction.check = builder.check
    try:
        yield
    finally:
        construction.is_closed = True
        if builder is not None:
            builder.stop()


def whole_store_reason(data: DataConfig) -> str | None:
    """Return why samples in blocks need the whole store all the same; None if they do not."""
    if data.sequences != "windows":
        return f"data.sequences={data.sequences!r} lays out all documents together"
    if data.mixes_by_size:
        return "the mixture follows from the sizes of the sources"
    if any(source.format in RECORD_SHAPES for source in data.sources):
        return "a source holds pairs or examples"
    return None
