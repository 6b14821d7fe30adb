"""The processes of a run: how they meet, agree on what they run, and notice when one of them goes.

They talk through the key-value store of jax's coordination service, which process 0 hosts. Of a process that ends with an error
the others read the reason there within a second; one that was killed stops counting up its beat; and when process 0 itself goes,
the connection that each of the others keeps to it breaks.
"""

import contextlib
import json
import os
import re
import select
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from jaxlm.config import LostError, RuntimeConfig, UserError
from jaxlm.runtime import distributed
from jaxlm.runtime.cluster import Cluster
from jaxlm.runtime.command import lock
from jaxlm.runtime.output import complain, to_log
from jaxlm.runtime.stop import PeerStop, StopSignal

QUIET_SECONDS = 2.0  # within which what fails in all processes has failed in each
# An error of jax that a lost peer may have caused.
LOST = re.compile(
    r"gloo|nccl|connection|socket|coordination|peer|heartbeat|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED",
    re.IGNORECASE,
)


class ProcessGroup:
    """This process among those of the run; entered once, around all that it does with the run directory.

    Process 0 holds the directory's lock; what the others print goes to logs/process-N.log.
    """

    def __init__(self, cluster: Cluster, runtime: RuntimeConfig, run_directory: Path):
        self.cluster, self.runtime, self.run_directory = cluster, runtime, run_directory
        self.hosts = (
            socket.gethostname(),
        ) * cluster.processes  # of each process, once they have met
        self._stack = contextlib.ExitStack()
        self._client: Any = None  # of jax's coordination service
        self._coordinator: socket.socket | None = None  # breaks when process 0 goes
        self._done = threading.Event()

    @property
    def leads(self) -> bool:
        return self.cluster.leads

    @property
    def alone(self) -> bool:
        return self.cluster.processes == 1

    def __enter__(self) -> "ProcessGroup":
        if self.leads:
            self._stack.enter_context(lock(self.run_directory))
        if not self.alone:
            to_log(self.run_directory, self.cluster.process)
        return self

    def __exit__(self, _type: Any, error: BaseException | None, _traceback: Any) -> None:
        with self._stack:
            if self._client is None:
                return
            if error is not None:
                self._fail(error)
            else:
                self._done.set()
                distributed.shutdown()

    def answers(self) -> bool:
        """Whether process 0 waits for the others already."""
        return distributed.is_listening(self.cluster)

    def meet(self) -> None:
        """Waits for the other processes. Jax must not have been used before. Does nothing for one process.

        Raises ConfigError if process 0 can't listen at the coordinator's address, LostError if the others don't find it there.
        """
        if self.alone:
            return
        self._coordinator = distributed.initialize(self.cluster, self.runtime)
        self._client = distributed.client()
        self._client.key_value_set(f"jaxlm/host/{self.cluster.process}", socket.gethostname())
        self._client.wait_at_barrier(
            "jaxlm/hosts", 1000 * self.runtime.initialization_timeout_seconds
        )
        self.hosts = tuple(self._read("host").values())
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def agree(self, what: str, facts: Mapping[str, str]) -> None:
        """Waits until all processes have said the same `facts`, once for each `what`. UserError names the first that differs, and where."""
        if self.alone:
            return
        self._client.key_value_set(
            f"jaxlm/facts/{what}/{self.cluster.process}", json.dumps(dict(facts))
        )
        if self.leads:
            others = (
                self._wait_for(f"facts/{what}/{process}")
                for process in range(1, self.cluster.processes)
            )
            found = (
                difference(facts, json.loads(text), f"process {n} ({self.hosts[n]})")
                for n, text in enumerate(others, 1)
            )
            self._client.key_value_set(f"jaxlm/agreed/{what}", next(filter(None, found), ""))
        if verdict := self._wait_for(f"agreed/{what}"):
            raise UserError(verdict)

    def stop_signal(self) -> StopSignal | PeerStop:
        """What tells the training loop to save and stop."""
        return StopSignal() if self.alone else PeerStop()

    # What the processes know of each other

    def _read(self, folder: str) -> dict[int, str]:
        """Process -> value."""
        values = {
            int(key.rpartition("/")[2]): value
            for key, value in self._client.key_value_dir_get(f"jaxlm/{folder}")
        }
        return dict(sorted(values.items()))

    def _wait_for(self, key: str) -> str:
        return self._client.blocking_key_value_get(
            f"jaxlm/{key}", 1000 * self.runtime.initialization_timeout_seconds
        )

    def _watch(self) -> None:
        """Beats, and looks after the others, until the run ends or one of them is lost."""
        limit = self.runtime.heartbeat_timeout_seconds
        # The last beat of each, and when it was first seen.
        heard: dict[int, tuple[str, float]] = dict.fromkeys(
            range(self.cluster.processes), ("", time.monotonic())
        )
        while not self._pause(min(1.0, limit / 10)):
            now = time.monotonic()
            try:
                self._client.key_value_set(
                    f"jaxlm/beat/{self.cluster.process}", f"{now}", allow_overwrite=True
                )
                failed = self._read("failed")
                beats = self._read("beat") if self.leads else {}
            except Exception as error:  # of whatever type: process 0 can't be asked any more
                if self._done.is_set():
                    return
                self._lose(0, f"is gone: {first_line(error)}")
            for process, reason in failed.items():
                # What fails in all of them, such as a loss that is no number, ends this one in its own words.
                if self._done.wait(QUIET_SECONDS):
                    return
                self._lose(process, reason)
            for process, beat in beats.items():
                if beat != heard[process][0]:
                    heard[process] = beat, now
            for process, (_, since) in heard.items():
                if self.leads and now - since > limit:
                    reason = f"is gone: silent for {limit} s (runtime.heartbeat_timeout_seconds)"
                    self._client.key_value_set(
                        f"jaxlm/failed/{process}", reason, allow_overwrite=True
                    )
                    self._until_read(others=self.cluster.processes - 2)
                    self._lose(process, reason)

    def _pause(self, seconds: float) -> bool:
        """Waits; returns whether the run has ended. A broken connection to process 0 is noticed at once."""
        if self._coordinator is None:
            return self._done.wait(seconds)
        readable, _, _ = select.select([self._coordinator], [], [], seconds)
        if readable and not self._done.is_set():
            self._check_coordinator()
        return self._done.is_set()

    def _check_coordinator(self) -> None:
        """The service says things to a connection that says nothing, and closes it now and then: only a refused new one means an end."""
        assert self._coordinator is not None
        with contextlib.suppress(OSError):
            if self._coordinator.recv(4096):
                return
        self._coordinator.close()
        try:
            self._coordinator = socket.create_connection(
                self.cluster.address, timeout=self.runtime.heartbeat_timeout_seconds
            )
        except OSError as error:
            if not self._done.is_set():
                self._lose(
                    0,
                    f"is gone: {self.cluster.coordinator} answers no more ({error.strerror or error})",
                )

    def _lose(self, process: int, how: str) -> NoReturn:
        """Ends this process, since jax can't go on without another."""
        complain(
            f"error: process {process} ({self.hosts[process]}) {how}; start the run again to go on from its last checkpoint"
        )
        sys.stdout.flush()
        os._exit(LostError.exit_code)

    def _fail(self, error: BaseException) -> None:
        """This process ends with `error`: unless another one is the cause, the others are told."""
        if (
            isinstance(error, Exception)
            and not isinstance(error, UserError)
            and LOST.search(str(error))
        ):
            time.sleep(
                2 * QUIET_SECONDS
            )  # the watching thread ends the process if it finds out who is gone
            limit = self.runtime.heartbeat_timeout_seconds
            complain(
                f"a collective failed ({first_line(error)}): waiting up to {limit} s to see whether another process is gone"
            )
            time.sleep(1.1 * limit)
        self._done.set()
        with contextlib.suppress(Exception):
            self._client.key_value_set(
                f"jaxlm/failed/{self.cluster.process}",
                f"failed: {first_line(error)}",
                allow_overwrite=True,
            )
        self._until_read(others=self.cluster.processes - 1)

    def _until_read(self, others: int) -> None:
        """When process 0 ends, so does the store: it waits until the `others` have read why, and ended."""
        if self.leads and others:
            time.sleep(2 * QUIET_SECONDS)


def first_line(error: BaseException) -> str:
    text = " ".join(str(error).partition("\n")[0].split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}".rstrip(": ")


def difference(ours: Mapping[str, str], theirs: Mapping[str, str], who: str) -> str:
    """'process 1 (host) differs from process 0 in training.steps: 20 -> 30', or ''."""
    for field in [*ours, *(field for field in theirs if field not in ours)]:
        if ours.get(field) != theirs.get(field):
            return f"{who} differs from process 0 in {field}: {ours.get(field, 'absent')} -> {theirs.get(field, 'absent')}"
    return ""
