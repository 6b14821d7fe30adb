"""The processes of a run: how they connect, compare what they run, and notice a lost one.

They talk through the key-value store of jax's coordination service, which process 0 hosts. A
process that ends with an error leaves the reason there, and the others read it within a second. A
process that was killed no longer updates its heartbeat. When process 0 itself goes, the connection
breaks that each of the others keeps to it.
"""

import contextlib
import json
import os
import re
import secrets
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
from jaxlm.runtime.command import lock_run_directory
from jaxlm.runtime.output import print_error, redirect_output
from jaxlm.runtime.stop import PeerStop, StopSignal

# An error that all processes share has reached each of them after this time.
SETTLE_SECONDS = 2.0

# A file that one process wrote is seen by the others of a shared folder after this time.
MARK_SECONDS = 10.0

# Words in an error of jax that a lost process may have caused
LOST = re.compile(
    r"gloo|nccl|connection|socket|coordination|peer|heartbeat"
    r"|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED",
    re.IGNORECASE,
)


class ProcessGroup:
    """This process among those of the run; entered once, around all use of the run directory.

    Process 0 holds the lock of the directory; the others print to logs/process-N.log.
    """

    def __init__(self, cluster: Cluster, runtime: RuntimeConfig, run_directory: Path):
        self.cluster, self.runtime, self.run_directory = cluster, runtime, run_directory
        # Host of each process; the real ones after `initialize`
        self.hosts = (socket.gethostname(),) * cluster.processes

        self._stack = contextlib.ExitStack()
        self._store: Any = None  # of jax's coordination service
        self._coordinator: socket.socket | None = None  # breaks when process 0 goes
        self._done = threading.Event()

    @property
    def is_leader(self) -> bool:
        return self.cluster.is_leader

    @property
    def is_single(self) -> bool:
        """Return whether this process is the only one of the run."""
        return self.cluster.processes == 1

    def __enter__(self) -> "ProcessGroup":
        if self.is_leader:
            self._stack.enter_context(lock_run_directory(self.run_directory))
        if not self.is_single:
            redirect_output(self.run_directory, self.cluster.process)
        return self

    def __exit__(self, _type: Any, error: BaseException | None, _traceback: Any) -> None:
        with self._stack:
            if self._store is None:
                return
            if error is not None:
                self._report_error(error)
            else:
                self._done.set()
                distributed.shutdown()

    def leader_is_listening(self) -> bool:
        """Return whether process 0 waits for the others already."""
        return distributed.is_listening(self.cluster)

    def initialize(self) -> None:
        """Connect to the other processes and start to watch them. jax must not have been used yet.

        Does nothing in a run of one process. Raises ConfigError if process 0 can't listen at the
        coordinator's address, LostError if the others don't find it there.
        """
        if self.is_single:
            return

        self._coordinator = distributed.initialize(self.cluster, self.runtime)
        self._store = distributed.key_value_store()

        timeout_milliseconds = 1000 * self.runtime.initialization_timeout_seconds
        self._store.key_value_set(f"jaxlm/host/{self.cluster.process}", socket.gethostname())
        self._store.wait_at_barrier("jaxlm/hosts", timeout_milliseconds)
        self.hosts = tuple(self._read_folder("host").values())
        threading.Thread(target=self._watch, name="process-group", daemon=True).start()
        self._require_shared_directory()

    def require_equal(self, topic: str, facts: Mapping[str, str]) -> None:
        """Wait until all processes have given their `facts` on a topic, once for each topic.

        Raises UserError in all processes if they differ: it names the first difference and where.
        """
        if self.is_single:
            return

        text = json.dumps(dict(facts))
        self._store.key_value_set(f"jaxlm/facts/{topic}/{self.cluster.process}", text)

        if self.is_leader:
            problem = ""
            for process in range(1, self.cluster.processes):
                theirs = json.loads(self._wait_for_value(f"facts/{topic}/{process}"))
                name = f"process {process} ({self.hosts[process]})"
                problem = describe_difference(facts, theirs, name)
                if problem:
                    break
            self._store.key_value_set(f"jaxlm/verdict/{topic}", problem)

        verdict = self._wait_for_value(f"verdict/{topic}")
        if verdict:
            raise UserError(verdict)

    def _require_shared_directory(self) -> None:
        """Raise UserError in all processes unless the run directory is one folder for all.

        Checkpoints are written by all processes together: one that writes elsewhere would let the
        others wait for ever.
        """
        # A name that nobody has looked up yet: network file systems remember what was missing.
        mark = self.run_directory / f".shared-{secrets.token_hex(8)}"
        if self.is_leader:
            make_mark(mark)
        mark = self.run_directory / self.share("mark", mark.name)

        seen = self.is_leader or wait_for_mark(mark, MARK_SECONDS)
        place = f"{self.run_directory.absolute()} of process {self.cluster.process}"
        own = "" if seen else f"{place} ({socket.gethostname()})"
        self._store.key_value_set(f"jaxlm/unshared/{self.cluster.process}", own)

        if self.is_leader:
            others = range(1, self.cluster.processes)
            unshared = [self._wait_for_value(f"unshared/{process}") for process in others]
            mark.unlink(missing_ok=True)
            problem = next(filter(None, unshared), "")
            self._store.key_value_set("jaxlm/unshared-verdict", problem)

        problem = self._wait_for_value("unshared-verdict")
        if problem:
            raise UserError(
                f"run_directory: {problem} is not the folder of process 0 ({self.hosts[0]}): "
                "all processes need one folder that their machines share"
            )

    def share(self, topic: str, value: str) -> str:
        """Return the `value` of process 0 in all processes, once for each topic."""
        if self.is_single:
            return value
        if self.is_leader:
            self._store.key_value_set(f"jaxlm/shared/{topic}", value)
        return self._wait_for_value(f"shared/{topic}")

    def stop_signal(self) -> StopSignal | PeerStop:
        """Return the signal that tells the training loop to save and stop."""
        return StopSignal() if self.is_single else PeerStop()

    # The key-value store

    def _read_folder(self, folder: str) -> dict[int, str]:
        """Return the value of each process that has set one, by process."""
        values = {
            int(key.rpartition("/")[2]): value
            for key, value in self._store.key_value_dir_get(f"jaxlm/{folder}")
        }
        return dict(sorted(values.items()))

    def _wait_for_value(self, key: str) -> str:
        timeout_milliseconds = 1000 * self.runtime.initialization_timeout_seconds
        return self._store.blocking_key_value_get(f"jaxlm/{key}", timeout_milliseconds)

    # Watching the others

    def _watch(self) -> None:
        """Send heartbeats and check the other processes, until the run ends or one is lost."""
        limit = self.runtime.heartbeat_timeout_seconds
        # The last heartbeat of each process, and when it was first seen
        start = time.monotonic()
        last_beats: dict[int, tuple[str, float]] = dict.fromkeys(
            range(self.cluster.processes), ("", start)
        )

        while not self._wait_for_end(min(1.0, limit / 10)):
            now = time.monotonic()
            try:
                key = f"jaxlm/beat/{self.cluster.process}"
                self._store.key_value_set(key, f"{now}", allow_overwrite=True)
                failed = self._read_folder("failed")
                beats = self._read_folder("beat") if self.is_leader else {}
            except Exception as error:  # whatever its type: process 0 can't be asked any more
                if self._done.is_set():
                    return
                self._exit_without(0, f"is gone: {first_line(error)}")

            for process, reason in failed.items():
                # An error that all processes share, such as a loss that is no number, ends this
                # one with its own message.
                if self._done.wait(SETTLE_SECONDS):
                    return
                self._exit_without(process, reason)

            for process, beat in beats.items():
                if beat != last_beats[process][0]:
                    last_beats[process] = beat, now

            # Process 0 decides who is lost, and tells the others before it ends.
            for process, (_, since) in last_beats.items():
                if self.is_leader and now - since > limit:
                    reason = f"is gone: silent for {limit} s (runtime.heartbeat_timeout_seconds)"
                    self._set_failed(process, reason)
                    self._keep_store_for(others=self.cluster.processes - 2)
                    self._exit_without(process, reason)

    def _wait_for_end(self, seconds: float) -> bool:
        """Wait up to `seconds` and return whether the run has ended.

        A broken connection to process 0 is noticed at once.
        """
        if self._coordinator is None:
            return self._done.wait(seconds)

        readable, _, _ = select.select([self._coordinator], [], [], seconds)
        if readable and not self._done.is_set():
            self._check_coordinator()
        return self._done.is_set()

    def _check_coordinator(self) -> None:
        """Read from the connection to process 0; if it was closed, open a new one.

        The service sends data on a silent connection and closes it now and then: only a refused new
        one means that process 0 is gone.
        """
        assert self._coordinator is not None
        with contextlib.suppress(OSError):
            if self._coordinator.recv(4096):
                return

        self._coordinator.close()
        timeout = self.runtime.heartbeat_timeout_seconds
        try:
            self._coordinator = socket.create_connection(self.cluster.address, timeout=timeout)
        except OSError as error:
            if not self._done.is_set():
                problem = error.strerror or error
                reason = f"is gone: {self.cluster.coordinator} does not answer ({problem})"
                self._exit_without(0, reason)

    def _exit_without(self, process: int, reason: str) -> NoReturn:
        """End this process, since jax can't continue without `process`."""
        print_error(
            f"error: process {process} ({self.hosts[process]}) {reason}; "
            "start the run again to resume from its last checkpoint"
        )
        sys.stdout.flush()
        os._exit(LostError.exit_code)

    # Telling the others

    def _report_error(self, error: BaseException) -> None:
        """Tell the others that this process ends with `error`, unless one of them is the cause."""
        is_users = isinstance(error, UserError) or not isinstance(error, Exception)
        if not is_users and LOST.search(str(error)):
            # The watching thread ends this process if it finds out who is gone.
            time.sleep(2 * SETTLE_SECONDS)
            limit = self.runtime.heartbeat_timeout_seconds
            print_error(
                f"a collective failed ({first_line(error)}): "
                f"waiting up to {limit} s to see whether another process is gone"
            )
            time.sleep(1.1 * limit)

        self._done.set()
        with contextlib.suppress(Exception):
            self._set_failed(self.cluster.process, f"failed: {first_line(error)}")
        self._keep_store_for(others=self.cluster.processes - 1)

    def _set_failed(self, process: int, reason: str) -> None:
        self._store.key_value_set(f"jaxlm/failed/{process}", reason, allow_overwrite=True)

    def _keep_store_for(self, others: int) -> None:
        """Keep process 0, which hosts the store, alive until the others have read the reason."""
        if self.is_leader and others:
            time.sleep(2 * SETTLE_SECONDS)


def make_mark(path: Path) -> None:
    """Make an empty file for the other processes to find. Raises UserError if that fails."""
    try:
        path.touch()
    except OSError as error:
        raise UserError(f"run_directory: can't write {path}: {error.strerror}") from error


def wait_for_mark(path: Path, seconds: float) -> bool:
    """Return whether `path` is there within `seconds`, which a network's file system may take."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def first_line(error: BaseException) -> str:
    """Return the first line of an error, with its type unless it is a UserError."""
    text = " ".join(str(error).partition("\n")[0].split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}".rstrip(": ")


def describe_difference(ours: Mapping[str, str], theirs: Mapping[str, str], name: str) -> str:
    """Return where the process `name` differs from process 0, or ''.

    'process 1 (host) differs from process 0 in training.steps: 20 -> 30'
    """
    fields = [*ours, *(field for field in theirs if field not in ours)]
    for field in fields:
        our_value, their_value = ours.get(field, "absent"), theirs.get(field, "absent")
        if our_value != their_value:
            return f"{name} differs from process 0 in {field}: {our_value} -> {their_value}"
    return ""
