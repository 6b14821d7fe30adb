import fcntl
import gzip
import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.stores import BYTES, all_texts, build_store, data_config, write_corpus

from jaxlm import config
from jaxlm.config import ConfigError, LostError, UserError
from jaxlm.data import await_store, building, identity, open_store, preparation, prepare


@pytest.fixture
def data(tmp_path):
    return data_config(tmp_path, write_corpus(tmp_path / "c"))


def test_failed_build_leaves_nothing_that_looks_finished(data, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "measure_validation", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_store(data)
    (unfinished,) = (tmp_path / "stores").glob("*")
    assert unfinished.name.endswith(".building")

    monkeypatch.undo()
    store, lines = build_store(data)
    assert "goes on with what an earlier preparation left" in lines[0]
    assert not unfinished.exists() and len(all_texts(store)) == 40


@pytest.mark.parametrize("state", [None, "not JSON", '{"version": 0}'])
def test_remains_that_are_not_understood_are_removed(data, state):
    store, _ = build_store(data)
    unfinished = store.path.with_name(f".{store.hash}.building")
    shutil.rmtree(store.path)
    unfinished.mkdir()
    (unfinished / "extract-000000.json").write_text("{}")
    if state is not None:
        (unfinished / "building.json").write_text(state)

    again, lines = build_store(data)
    assert not unfinished.exists() and len(lines) == 1
    assert not list(again.path.glob("extract*"))


def test_a_store_that_was_killed_before_it_got_its_name_is_not_built_again(data, monkeypatch):
    store, _ = build_store(data)
    unfinished = store.path.rename(store.path.with_name(f".{store.hash}.building"))
    (unfinished / "extract-000000.json").write_text("{}")
    monkeypatch.setattr(preparation, "build_store", None)
    again, _ = build_store(data)
    assert again.path == store.path and not list(again.path.glob("extract*"))


def test_a_share_of_one_means_nothing_to_files_of_their_own(data):
    path = data.sources[0].path
    validation = config.ValidationConfig(method="source", path=path, share=1.0)
    store, _ = build_store(replace(data, validation=validation))
    assert len(all_texts(store)) == 80


def test_unwritable_store_names_the_key(data, tmp_path):
    (tmp_path / "stores").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"^data\.store: .*stores"):
        build_store(data)


def build_in_child(data: config.DataConfig, barrier: Any, queue: Any) -> None:
    barrier.wait()
    store, _ = build_store(data, config.TokenizerConfig(kind="bpe"))
    queue.put((store.path / "manifest.json").stat().st_ino)


def test_two_processes_build_one_store(data):
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    children = [
        context.Process(target=build_in_child, args=(data, barrier, queue)) for _ in range(2)
    ]
    for child in children:
        child.start()
    manifests = {queue.get(timeout=60) for _ in children}
    for child in children:
        child.join()
    assert len(manifests) == 1
    assert [child.exitcode for child in children] == [0, 0]


def test_files_that_can_not_be_read_are_skipped_and_told_once(data, tmp_path):
    store, _ = build_store(data)
    (tmp_path / "c" / "z.bin").write_bytes(b"\xff")
    lines = "".join(json.dumps({"text": f"line {number}"}) + "\n" for number in range(9))
    (tmp_path / "c" / "y.log").write_bytes(gzip.compress((lines + "not JSON\n").encode()))
    with pytest.raises(UserError, match=r"y\.log:10: not JSON"):
        build_store(data)

    for validation in (data.validation, config.ValidationConfig(method="tail", share=0.2)):
        skipping = replace(data, on_error="skip", validation=validation)
        other, told = build_store(skipping)
        assert [line for line in told if line.startswith("source s0: ")] == [
            "source s0: y.log: JSON lines, compressed by gzip, by content",
            "source s0: skipped 2 that can't be read (data.on_error=skip), the first: "
            f"{tmp_path}/c/y.log:10: not JSON: Expecting value at column 1",
        ]
        if validation == data.validation:
            added = {f"line {number}" for number in range(9)}
            assert set(all_texts(other)) == set(all_texts(store)) | added


def test_a_file_that_may_not_be_read_is_skipped_too(data, tmp_path, monkeypatch):
    store, _ = build_store(replace(data, on_error="skip"))
    for name in ("secret.txt", "secret.xml"):
        (tmp_path / "c" / name).write_text("secret")
    allowed = Path.open

    def refuse(path, *options, **more):
        if path.name.startswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path, *options, **more)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"secret\.txt: Permission denied$"):
        build_store(data)
    other, told = build_store(replace(data, on_error="skip"))
    assert other.hash != store.hash and all_texts(other) == all_texts(store)
    assert any("skipped 2 that can't be read" in line for line in told)


def test_waiting_for_another_build_is_reported(data, tmp_path):
    store, _ = build_store(data)
    built_by_other = store.path.rename(tmp_path / "built")
    lock = store.path.with_name(f".{store.hash}.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    lines = []

    def report(line: str) -> None:
        lines.append(line)
        if "another process" in line:
            built_by_other.rename(store.path)
            lock.close()

    assert prepare(data, BYTES, 300, report).hash == store.hash
    assert "another process builds it, waiting" in lines[0]


class FakeTime:
    """A clock that moves when somebody sleeps; `on_sleep` is called with the time."""

    def __init__(self, on_sleep=lambda now: None):
        self.now, self.on_sleep = 0.0, on_sleep

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep(self.now)


def test_the_store_of_another_process_is_awaited(data, monkeypatch):
    def prepare_after_a_second(now: float) -> None:
        if now >= 1:
            build_store(data)

    clock, lines = FakeTime(prepare_after_a_second), []
    monkeypatch.setattr(preparation, "time", clock)
    folder = await_store(data, BYTES, 300, lines.append, ready=lambda: False, seconds=30)
    assert 1 <= clock.now < 2
    assert open_store(folder).hash == build_store(data)[0].hash
    assert len(lines) == 1 and f"{folder}: waiting up to 30 s" in lines[0]


def test_a_store_that_is_there_is_not_awaited(data):
    store, lines = build_store(data)
    folder = await_store(data, BYTES, 300, lines.append, ready=lambda: False, seconds=0)
    assert folder == store.path
    assert len(lines) == 1  # that of the build


def test_the_wait_for_a_store_ends(data, monkeypatch):
    clock = FakeTime()
    monkeypatch.setattr(preparation, "time", clock)
    message = (
        r"^data\.store: process 0 has not prepared .* within 5 s "
        r"\(runtime\.preparation_timeout_seconds\)"
    )
    with pytest.raises(LostError, match=message):
        await_store(data, BYTES, 300, lambda _: None, ready=lambda: False, seconds=5)
    assert 5 < clock.now < 6


def test_the_wait_ends_when_process_0_has_another_store(data):
    folder = await_store(data, BYTES, 300, lambda _: None, ready=lambda: True, seconds=60)
    with pytest.raises(ConfigError, match=r"^data\.store: there is no .* here"):
        open_store(folder)


def contents(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_finished_store_leaves_no_locks(data, tmp_path):
    store, _ = build_store(data)
    assert [name for name in contents(tmp_path / "stores") if "lock" in name] == []
    assert build_store(data)[0].hash == store.hash


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    ("path", "content"), [("nofile.txt", None), ("latin.txt", b"\xff"), ("empty.txt", b"")]
)
def test_a_mistake_in_the_data_leaves_nothing_behind(tmp_path, path, content, new):
    if content is not None:
        (tmp_path / path).write_bytes(content)
    if not new:
        (tmp_path / "stores").mkdir()
    before = contents(tmp_path)
    with pytest.raises(UserError):
        build_store(data_config(tmp_path, tmp_path / path))
    assert contents(tmp_path) == before


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_again(tmp_path):
    """Its last holder removes the file: two processes must not hold one of two files each."""
    path = tmp_path / ".lock"
    first = path.open("w")
    fcntl.flock(first, fcntl.LOCK_EX)

    def release():
        path.unlink()
        first.close()

    with (
        identity.file_lock(path, on_wait=release),
        path.open("w") as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not path.exists()


@pytest.mark.parametrize("name", ["x" * 300, "file", "file/below"])
def test_a_store_that_can_not_be_made_names_the_key(data, tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^data\.store: .*(too long|Not a dir|File exists)"):
        build_store(replace(data, store=str(tmp_path / name)))
