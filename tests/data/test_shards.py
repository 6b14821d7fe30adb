import errno
import os
import resource
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.token_arrays import UINT32, write_numbered

from jaxlm.config import UserError
from jaxlm.data import shards
from jaxlm.data.shards import OpenShards, TokenArray, TokenWriter


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 1 << 16, 9500).astype("<u2")


@pytest.fixture
def array(tmp_path, tokens):
    """The tokens in shards of 1,000."""
    writer = TokenWriter(tmp_path, "train", np.dtype("<u2"), 1000)
    for part in np.array_split(tokens, 7):
        writer.add(part)
    shards = writer.close()["shards"]
    assert [shard["tokens"] for shard in shards] == [1000] * 9 + [500]
    paths = [tmp_path / shard["file"] for shard in shards]
    return TokenArray(paths, [shard["tokens"] for shard in shards], np.dtype("<u2"))


@pytest.mark.parametrize("length", [1, 7, 1000, 2500])
def test_shards_are_read_as_one_array(array, tokens, length):
    starts = np.random.default_rng(1).integers(0, len(tokens) - 2500, 50)
    windows = array.read_windows(starts, length)
    assert windows.dtype == np.int32
    assert np.array_equal(windows, tokens[starts[:, None] + np.arange(length)])


def test_no_windows_are_an_empty_array(array):
    assert array.read_windows(np.zeros(0, np.int64), 5).shape == (0, 5)


@pytest.mark.parametrize("start", [-1, 9496])
def test_windows_stay_inside_the_array(array, start):
    assert len(array) == 9500
    with pytest.raises(IndexError):
        array.read_windows(np.array([start]), 5)


def test_offsets_are_where_documents_begin(tmp_path):
    writer = TokenWriter(tmp_path, "train", UINT32, 3)
    for document in ([5, 6], [], [7, 8, 9]):
        writer.add(np.array(document, np.int32))
        writer.end_document(0)
    entry = writer.close()
    assert np.fromfile(tmp_path / entry["offsets"], "<i8").tolist() == [0, 3, 4, 8]
    files = [(tmp_path / shard["file"]) for shard in entry["shards"]]
    content = [np.fromfile(file, UINT32).tolist() for file in files]
    assert content == [[5, 6, 0], [0, 7, 8], [9, 0]]


def test_shard_cut_short_while_in_use_is_named(tmp_path):
    array = write_numbered(tmp_path, 300)
    with (tmp_path / "train-00000.bin").open("r+b") as file:
        file.truncate(100)
    message = r"train-00000\.bin: ends at byte 100, before its last token"
    with pytest.raises(UserError, match=message):
        array.read_windows(np.array([0]), 300)


# Open files


@pytest.fixture
def many_shards(tmp_path):
    """Return the array of the tokens 0, 1, ... in 400 shards of 2."""
    writer = TokenWriter(tmp_path, "train", UINT32, 2)
    writer.add(np.arange(800))
    entries = writer.close()["shards"]
    paths = [tmp_path / entry["file"] for entry in entries]
    checksums = [entry["crc32"] for entry in entries]
    return TokenArray(paths, [2] * len(paths), UINT32, checksums)


@pytest.fixture
def few_files():
    """Let this process open 60 files more than it has."""
    if sys.platform != "linux":
        pytest.skip("counts the open files of Linux")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 60, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_store_may_have_more_shards_than_a_process_has_files(many_shards, few_files, monkeypatch):
    monkeypatch.setattr(shards, "open_shards", OpenShards(limit=20))
    starts = np.random.default_rng(0).integers(0, 800 - 5, 1000)
    expected = starts[:, None] + np.arange(5)
    before = open_files()

    with ThreadPoolExecutor(8) as threads:
        parts = list(threads.map(lambda part: many_shards.read_windows(part, 5), [starts] * 16))
    assert all(np.array_equal(part, expected) for part in parts)
    assert open_files() - before <= 20


def test_a_shard_that_is_no_longer_kept_open_can_still_be_read(tmp_path):
    """Another thread may have opened others meanwhile."""
    for name in "abc":
        (tmp_path / name).write_text(name)
    opened = OpenShards(limit=1)
    first = opened.open(0, tmp_path / "a")
    assert opened.open(0, tmp_path / "b") is opened.open(0, tmp_path / "b")
    assert os.pread(first.descriptor, 1, 0) == b"a"

    descriptor = first.descriptor
    del first
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_the_shards_of_an_array_are_closed_with_it(array):
    array.read_windows(np.array([0, 5000]), 5)
    assert any(owner == array.number for owner, _ in shards.open_shards.shards)
    shards.open_shards.close(array.number)
    assert not any(owner == array.number for owner, _ in shards.open_shards.shards)


def test_an_array_may_be_collected_while_another_opens_a_shard(tmp_path, monkeypatch):
    """The collector runs at any allocation, also while the lock of the open shards is held."""
    (tmp_path / "a").write_text("a")
    opened = OpenShards(limit=4)
    opened.open(0, tmp_path / "a")

    class Collected(shards.OpenShard):
        def __init__(self, path: Path):
            opened.close(0)
            super().__init__(path)

    monkeypatch.setattr(shards, "OpenShard", Collected)
    thread = threading.Thread(target=opened.open, args=(1, tmp_path / "a"), daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert not thread.is_alive(), "it waits for itself"
    opened.open(1, tmp_path / "a")
    assert {owner for owner, _ in opened.shards} == {1}


def test_too_many_open_files_are_not_taken_for_damage(array, monkeypatch):
    def fail(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(shards, "open_shards", OpenShards(limit=1))
    monkeypatch.setattr(os, "open", fail)
    message = r"train-00000\.bin: too many open files: raise the limit .* \(ulimit -n\)$"
    with pytest.raises(UserError, match=message):
        array.read_windows(np.array([0]), 5)


def test_a_shard_that_vanishes_is_named(array):
    array.paths[3].unlink()
    with pytest.raises(UserError, match=r"train-00003\.bin: No such file .*; delete the folder"):
        array.read_windows(np.array([3500]), 5)
