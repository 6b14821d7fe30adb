"""Do the same to many units, in several processes where there is much to do.

The processes are started anew, not forked: they never import jax, and don't run the user's script
again. They end with the process that started them, whatever ends it.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

from jaxlm.config import UserError
from jaxlm.progress import LINE_SECONDS, Progress

FEWEST_BYTES = 1 << 25  # of work: less is done before other processes are awake
TICK_SECONDS = 0.5

Job = tuple[Callable[..., Any], tuple[Any, ...]]

NOTICED_BYTES = 1 << 20  # of work, between two looks at its progress


class Counter:
    """The bytes that this process has done, and whom it tells."""

    def __init__(self) -> None:
        self.size = 0
        self.tell: Callable[[int], None] = lambda size: None

    def add(self, size: int) -> None:
        """Count bytes that are done."""
        self.size += size
        if self.size >= NOTICED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Tell what was not told yet."""
        self.tell(self.size)
        self.size = 0


counter = Counter()  # of this process
advance = counter.add


class LostWorkerError(UserError):
    """A process was killed. What the others have done is kept."""


class Worker(NamedTuple):
    """A process, and the pipe to it."""

    process: Any
    pipe: connection.Connection


class Pool:
    """Up to `count` processes that do jobs. Without any, the jobs are done in this process."""

    def __init__(self, count: int):
        self.count = count
        self.workers: list[Worker] = []
        self.done: Any = None

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self.workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join()

    def run(self, jobs: Sequence[Job], size: int, text: str) -> list[Any]:
        """Return the results of the jobs, in their order. They have `size` bytes of work in all.

        `text` says in the progress what is done. Raises the error of the first job that fails.
        """
        progress = Progress(size, line_seconds=LINE_SECONDS)

        def show(done: int) -> None:
            progress.update(min(done, size), f"{text} {done / 1e6:,.0f} of {size / 1e6:,.0f} MB")

        count = min(self.count, len(jobs))
        try:
            if count > 1 and size >= FEWEST_BYTES:
                return self.run_in_workers(jobs, count, show)
            return run_here(jobs, show)
        finally:
            progress.close()

    def run_in_workers(
        self, jobs: Sequence[Job], count: int, show: Callable[[int], None]
    ) -> list[Any]:
        """Return the results of the jobs, done by `count` processes."""
        self.start_workers(count)
        self.done.value = 0
        results: list[Any] = [None] * len(jobs)
        waiting = iter(enumerate(jobs))
        running: dict[connection.Connection, int] = {}
        for worker in self.workers[:count]:
            self.send(worker.pipe, waiting, running)

        while running:
            for pipe in connection.wait(list(running), TICK_SECONDS):
                assert isinstance(pipe, connection.Connection)
                number = running.pop(pipe)
                results[number] = receive(pipe)
                self.send(pipe, waiting, running)
            show(self.done.value)
        return results

    def send(
        self,
        pipe: connection.Connection,
        waiting: Iterator[tuple[int, Job]],
        running: dict[connection.Connection, int],
    ) -> None:
        """Give the next job, if there is one, to a worker that waits."""
        for number, job in waiting:
            pipe.send(job)
            running[pipe] = number
            return

    def start_workers(self, count: int) -> None:
        """Have at least `count` processes."""
        context = multiprocessing.get_context("spawn")
        if self.done is None:
            self.done = context.Value("q", 0)
        while len(self.workers) < count:
            here, there = context.Pipe()
            process = context.Process(target=work, args=(there, self.done), daemon=True)
            with hidden_main():
                process.start()
            there.close()
            self.workers.append(Worker(process, here))


def run_here(jobs: Sequence[Job], show: Callable[[int], None]) -> list[Any]:
    """Return the results of the jobs, done one after another."""
    done, results = 0, []

    def tell(size: int) -> None:
        nonlocal done
        done += size
        show(done)

    counter.size, counter.tell = 0, tell
    for function, arguments in jobs:
        results.append(function(*arguments))
        counter.flush()
    return results


def receive(pipe: connection.Connection) -> Any:
    """Return the result of a worker's job, or raise its error."""
    try:
        succeeded, result = pipe.recv()
    except EOFError as error:
        raise LostWorkerError(
            "data: a process that prepared the text was killed, perhaps for lack of memory: "
            "what is done is kept, and fewer processes (prepare --workers) need less"
        ) from error
    if not succeeded:
        raise result
    return result


@contextlib.contextmanager
def hidden_main() -> Iterator[None]:
    """Keep the processes that are started meanwhile from importing the user's script.

    A script without `if __name__ == "__main__"` would start itself again in each.
    """
    main = sys.modules["__main__"]
    hidden = {name: vars(main).pop(name, None) for name in ("__file__", "__spec__")}
    main.__spec__ = None
    try:
        yield
    finally:
        for name, value in hidden.items():
            if value is not None or name == "__spec__":
                setattr(main, name, value)


def work(pipe: connection.Connection, done: Any) -> None:
    """Do the jobs that come through the pipe, until it is closed."""
    counter.tell = functools.partial(add_to, done)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it, too, and ends this process
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core
    threading.Thread(target=end_with_parent, daemon=True).start()
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, function(*arguments)
        except Exception as error:  # the parent raises it
            if not isinstance(error, UserError):
                error.add_note(traceback.format_exc())
            answer = False, error
        pipe.send(answer)


def add_to(done: Any, size: int) -> None:
    """Add to the bytes that all workers have done."""
    with done.get_lock():
        done.value += size


def end_with_parent() -> None:
    """End this process as soon as its parent is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
