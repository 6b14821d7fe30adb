"""The group of a run's processes, on a key-value store in this process and without waiting."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxlm import runtime
from jaxlm.config import ConfigError, RuntimeConfig, UserError
from jaxlm.runtime import process_group
from jaxlm.runtime.cluster import Cluster
from jaxlm.runtime.process_group import ProcessGroup
from jaxlm.runtime.stop import PeerStop


class Store:
    """The calls of jax's key-value store that are used, on a dict."""

    def __init__(self):
        self.values = {}
        self.changed = threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            assert allow_overwrite or key not in self.values, key
            self.values[key] = value
            self.changed.notify_all()

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.values.items() if key.startswith(f"{folder}/")]

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, timeout=milliseconds / 1000)
            return self.values[key]


def meet(store: Store, folders: list[Path]) -> list[str]:
    """Return the error of each process, '' for none, whose run directories are `folders`."""

    def check(process: int) -> str:
        cluster = Cluster(len(folders), process, "127.0.0.1:1")
        group = ProcessGroup(cluster, RuntimeConfig(), folders[process])
        group._store = store
        group.hosts = tuple(f"host{number}" for number in range(len(folders)))
        try:
            group._require_shared_directory()
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(folders)) as pool:
        return list(pool.map(check, range(len(folders))))


@pytest.mark.parametrize("count", [2, 3])
def test_processes_with_one_folder_meet(store, tmp_path, count):
    assert meet(store, [tmp_path] * count) == [""] * count
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("alone", [1, 2])
def test_a_run_directory_that_is_not_shared_is_refused_by_all(store, tmp_path, monkeypatch, alone):
    monkeypatch.setattr(process_group, "MARK_SECONDS", 0.0)
    folders = [tmp_path / "shared", tmp_path / "shared", tmp_path / "shared"]
    folders[alone] = tmp_path / "other"
    for folder in set(folders):
        folder.mkdir()
    errors = meet(store, folders)
    assert len(set(errors)) == 1
    assert errors[0].startswith(f"run_directory: {tmp_path}/other of process {alone} (")
    assert errors[0].endswith(
        ") is not the folder of process 0 (host0): all processes need one folder that their "
        "machines share"
    )
    assert not any(list(folder.iterdir()) for folder in set(folders))


class Lost(Exception):
    """Raised where a process would end itself."""


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def fake_time(monkeypatch):
    """Replace the clock of the module by one that advances when it sleeps."""
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds):
        clock.now += seconds

    fake = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr(process_group, "time", fake)
    monkeypatch.setattr(process_group, "SETTLE_SECONDS", 0.0)
    return clock


@pytest.fixture
def join(store, fake_time, tmp_path):
    """Return a function that makes the group of one of three processes on hosts a, b and c."""

    def make(process):
        config = RuntimeConfig(heartbeat_timeout_seconds=100)
        group = ProcessGroup(Cluster(3, process, "127.0.0.1:1"), config, tmp_path / "run")
        group._store, group.hosts = store, ("a", "b", "c")

        def wait_for_end(seconds):
            fake_time.now += seconds
            assert fake_time.now < 1000, "nobody was lost"
            return group._done.is_set()

        def exit_without(process, reason):
            raise Lost(f"process {process} {reason}")

        group._wait_for_end, group._exit_without = wait_for_end, exit_without
        return group

    return make


def test_a_process_alone_needs_no_others(tmp_path):
    with ProcessGroup(Cluster(), RuntimeConfig(), tmp_path / "run") as group:
        group.initialize()
        group.require_equal("anything", {"a": "1"})
        assert group.is_leader and group.is_single
        assert isinstance(group.stop_signal(), runtime.StopSignal)
    assert not (tmp_path / "run" / "logs").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_process_0_holds_the_lock_until_it_leaves(tmp_path, monkeypatch, processes):
    monkeypatch.setattr(process_group, "redirect_output", lambda *_: None)
    directory = tmp_path / "run"
    with ProcessGroup(Cluster(processes, 0, "127.0.0.1:1"), RuntimeConfig(), directory) as group:
        assert isinstance(group.stop_signal(), PeerStop) == (processes == 2)
        with (
            pytest.raises(UserError, match=f"trains in {directory}"),
            runtime.lock_run_directory(directory),
        ):
            pass
        # The others share the directory with it.
        with ProcessGroup(Cluster(2, 1, "127.0.0.1:1"), RuntimeConfig(), directory):
            pass
    with runtime.lock_run_directory(directory):
        pass


# Comparison


def compare(join, *facts):
    """Return the message, or '', that each process gets for its own facts."""

    def require_equal(process):
        try:
            join(process).require_equal("config", facts[process])
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(require_equal, range(3)))


def test_equal_facts_pass(join):
    assert compare(join, {"steps": "12"}, {"steps": "12"}, {"steps": "12"}) == ["", "", ""]


def test_all_processes_are_told_the_first_difference(join):
    messages = compare(join, {"a": "1", "steps": "12"}, {"a": "1", "steps": "13"}, {"a": "2"})
    assert messages == ["process 1 (b) differs from process 0 in steps: 12 -> 13"] * 3


def test_every_process_is_compared(join):
    messages = compare(join, {"a": "1"}, {"a": "1"}, {"a": "2"})
    assert messages == ["process 2 (c) differs from process 0 in a: 1 -> 2"] * 3


@pytest.mark.parametrize(
    ("ours", "theirs", "difference"),
    [
        ({"a": "1"}, {"a": "1"}, ""),
        ({"a": "1", "b": "2"}, {"a": "1", "c": "3"}, "b: 2 -> absent"),
        ({"a": "1"}, {"a": "1", "c": "3"}, "c: absent -> 3"),
    ],
)
def test_the_first_difference_is_named(ours, theirs, difference):
    message = difference and f"process 1 differs from process 0 in {difference}"
    assert process_group.describe_difference(ours, theirs, "process 1") == message


# Watching


def test_process_0_notices_a_silent_process_and_tells_the_others(join, store, fake_time):
    store.key_value_set("jaxlm/beat/1", "first")
    leader, beats = join(0), iter(range(1000))
    wait = leader._wait_for_end

    def wait_while_process_2_beats(seconds):
        store.key_value_set("jaxlm/beat/2", f"{next(beats)}", allow_overwrite=True)
        return wait(seconds)

    leader._wait_for_end = wait_while_process_2_beats
    reason = "is gone: silent for 100 s (runtime.heartbeat_timeout_seconds)"
    with pytest.raises(Lost) as lost:
        leader._watch()
    assert str(lost.value) == f"process 1 {reason}"
    assert 100 < fake_time.now < 103
    assert store.values["jaxlm/failed/1"] == reason

    with pytest.raises(Lost) as lost:
        join(2)._watch()
    assert str(lost.value) == f"process 1 {reason}"


def test_the_others_do_not_judge_who_is_silent(join):
    with pytest.raises(AssertionError, match="nobody was lost"):
        join(1)._watch()


def test_a_store_that_is_gone_means_process_0_is(join, store):
    def fail(*_, **__):
        raise RuntimeError("UNAVAILABLE: no route\nmore")

    store.key_value_set = fail
    with pytest.raises(Lost, match=r"^process 0 is gone: RuntimeError: UNAVAILABLE: no route$"):
        join(1)._watch()


def test_the_end_of_the_run_ends_the_watch(join):
    group = join(1)
    group._done.set()
    group._watch()


def test_only_a_refused_connection_means_that_process_0_is_gone(join):
    with socket.create_server(("127.0.0.1", 0)) as server:
        group = join(1)
        group.cluster = Cluster(3, 1, f"127.0.0.1:{server.getsockname()[1]}")
        group._coordinator = socket.create_connection(group.cluster.address)
        served, _ = server.accept()

        served.sendall(b"data")
        group._check_coordinator()  # reads it

        served.close()
        group._check_coordinator()  # connects again
        served, _ = server.accept()

    served.close()
    with pytest.raises(Lost, match=r"^process 0 is gone: 127\.0\.0\.1:\d+ does not answer"):
        group._check_coordinator()
    group._coordinator.close()


# Errors of this process


@pytest.mark.parametrize(
    ("error", "reason", "waits"),
    [
        (ConfigError("model.heads", "is odd"), "failed: model.heads: is odd", False),
        (KeyError("x"), "failed: KeyError: 'x'", False),
        (KeyboardInterrupt(), "failed: KeyboardInterrupt", False),
        (UserError("lost connection"), "failed: lost connection", False),
        # A lost process may have caused it: first see whether one is gone.
        (ValueError("Gloo: connection closed\nmore"), "failed: ValueError: Gloo: connection", True),
    ],
)
def test_an_error_is_left_for_the_others(join, store, fake_time, capsys, error, reason, waits):
    group = join(1)
    group._report_error(error)
    assert store.values["jaxlm/failed/1"].startswith(reason)
    assert group._done.is_set()
    assert fake_time.now == pytest.approx(110 if waits else 0)  # a heartbeat's time limit is 100 s
    assert ("waiting up to 100 s" in capsys.readouterr().err) == waits

    with pytest.raises(Lost, match=r"^process 1 failed: "):
        join(2)._watch()
