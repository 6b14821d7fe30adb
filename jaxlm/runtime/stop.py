"""Signals that stop a run: the step is finished and saved first."""

import os
import signal
import threading
from types import FrameType


class StopSignal:
    """The stop signal of a run of one process.

    While entered, SIGINT and SIGTERM only set `requested`, so that a step can end and be saved. A
    Ctrl-C after a first signal raises KeyboardInterrupt as usual. Outside the main thread, where
    Python has no signals, it does nothing.
    """

    requested: str | None = None  # "SIGINT" or "SIGTERM"

    def __enter__(self) -> "StopSignal":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def reached(self, step: int) -> bool:
        """Return whether to stop after this step. Ask after every step."""
        return self.requested is not None

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self.requested = self.requested or signal.Signals(number).name


class PeerStop:
    """The stop signal of a run of several processes.

    A SIGTERM (or Ctrl-C) to any of them stops all after the same step, on which they agree. jax's
    distributed runtime handles SIGTERM from its start; a handler of ours would replace its own.
    """

    requested = "SIGTERM"

    def __enter__(self) -> "PeerStop":
        self._previous = signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def reached(self, step: int) -> bool:
        """Return whether to stop after this step. Every process asks after every step."""
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGTERM)
