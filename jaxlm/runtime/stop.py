"""Signals that end a run in good order: the step is finished and saved first."""

import os
import signal
import threading
from types import FrameType


class StopSignal:
    """For one process: while entered, SIGINT and SIGTERM only set `requested`, so that a step can end and be saved.

    A Ctrl-C after a first signal raises KeyboardInterrupt as usual. Outside the main thread, where Python has no signals, it does nothing.
    """

    requested: str | None = None  # "SIGINT" or "SIGTERM"

    def __enter__(self) -> "StopSignal":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                number: signal.signal(number, self._receive)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; to be asked after every step."""
        return self.requested is not None

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self.requested = self.requested or signal.Signals(number).name


class PeerStop:
    """For several processes: a SIGTERM (or Ctrl-C) to any of them stops all after the same step, which they agree on.

    jax's distributed runtime handles SIGTERM from the moment the processes have met; a handler of ours would take it away.
    """

    requested = "SIGTERM"

    def __enter__(self) -> "PeerStop":
        self._previous = signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; to be asked after every step, by every process."""
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGTERM)
