"""Signals that stop a run: the step is finished and saved first."""

import os
import signal
import threading
from types import FrameType

STOPPED = 75  # exit code: stopped by a signal, saved


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

    def reached(self) -> bool:
        """Return whether to stop now."""
        return self.requested is not None

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self.requested = self.requested or signal.Signals(number).name


class PeerStop:
    """The stop signal of a run of several processes.

    A SIGTERM (or Ctrl-C) to any of them stops all at the same place, on which they agree. jax's
    distributed runtime handles SIGTERM from its start; a handler of ours would replace its own.
    """

    requested = "SIGTERM"

    def __enter__(self) -> "PeerStop":
        self._places, self._has_stopped = 0, False
        self._previous = signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def reached(self) -> bool:
        """Return whether to stop now. Every process asks at the same places of the run."""
        from jax.experimental import multihost_utils

        # jax numbers the places; it says yes at one of them, and not again after it.
        self._places += 1
        if not self._has_stopped:
            self._has_stopped = multihost_utils.reached_preemption_sync_point(self._places)
        return self._has_stopped

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGTERM)
