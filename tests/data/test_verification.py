"""Damage that keeps the size of a shard, such as a flipped bit, is found by its checksum."""

import json
import threading

import numpy as np
import pytest
from support.stores import build_store, data_config, write_corpus

from jaxlm import config
from jaxlm.config import UserError
from jaxlm.data import open_store, verification

MESSAGE = r"{name}: damaged: its checksum is [0-9a-f]{{8}} instead of [0-9a-f]{{8}}; delete the fol"


def flip_bit(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.fixture
def folder(tmp_path):
    """Return a store with several shards in each split."""
    data = data_config(tmp_path, write_corpus(tmp_path / "c"))
    return build_store(data, shard_tokens=1500)[0].path


@pytest.fixture
def folder_of_pairs(tmp_path):
    lines = [f'{{"source": "{number}", "target": "t{number}"}}\n' for number in range(400)]
    (tmp_path / "p.jsonl").write_text("".join(lines))
    source = config.SourceConfig(name="p", path=str(tmp_path / "p.jsonl"), format="pairs")
    data = config.DataConfig(sources=(source,), store=str(tmp_path / "stores"))
    return build_store(data, needs=("pad",), shard_tokens=500)[0].path


def read_split(folder, split):
    (array,) = getattr(open_store(folder), split)
    return read_array(array)


def read_array(array):
    if hasattr(array, "read_texts"):
        return array.read_texts(np.arange(4), 8)
    return array.read_windows(np.zeros(1, np.int64), 10)


@pytest.mark.parametrize("kind", ["folder", "folder_of_pairs"])
@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_flipped_bit_is_found_before_the_split_is_read(request, kind, split, where):
    folder = request.getfixturevalue(kind)
    shards = sorted(folder.glob(f"{split}-*.bin"))
    shard = shards[0 if where == "first" else -1]
    flip_bit(shard, 0 if where == "first" else shard.stat().st_size - 1)

    with pytest.raises(UserError, match=MESSAGE.format(name=shard.name)):
        read_split(folder, split)
    other = "validation" if split == "train" else "train"
    assert read_split(folder, other).any()


def test_a_large_split_is_verified_beside_the_steps(folder, monkeypatch):
    """The first reads do not wait for the checksums; a later one raises what was found."""
    released = threading.Event()
    compute = verification.compute_checksum
    monkeypatch.setattr(verification, "AT_ONCE_BYTES", 0)
    monkeypatch.setattr(
        verification, "compute_checksum", lambda path: released.wait(60) and compute(path)
    )
    shard = sorted(folder.glob("train-*.bin"))[-1]
    flip_bit(shard, 0)

    (array,) = open_store(folder).train
    for _ in range(3):
        assert read_array(array).any()
    released.set()
    wait_for_verification()
    with pytest.raises(UserError, match=MESSAGE.format(name=shard.name)):
        read_array(array)


def wait_for_verification():
    for thread in threading.enumerate():
        if thread.name == "verify":
            thread.join(60)


@pytest.mark.parametrize("at_once", [0, 1 << 30])
def test_each_shard_is_verified_once(folder, monkeypatch, at_once):
    verified = []
    compute = verification.compute_checksum
    monkeypatch.setattr(verification, "AT_ONCE_BYTES", at_once)
    monkeypatch.setattr(
        verification, "compute_checksum", lambda path: verified.append(path.name) or compute(path)
    )
    (array,) = open_store(folder).train
    assert verified == []

    threads = [threading.Thread(target=read_array, args=(array,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for_verification()
    assert verified == [path.name for path in sorted(folder.glob("train-*.bin"))]


def test_a_shard_that_can_not_be_read_is_named(folder, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(verification, "compute_checksum", fail)
    with pytest.raises(UserError, match=r"train-0-00000\.bin: Input/output error; delete the"):
        read_split(folder, "train")


def test_a_store_of_an_earlier_version_without_checksums_is_read(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for entries in manifest["splits"].values():
        for shard in entries[0]["shards"]:
            del shard["crc32"]
    path.write_text(json.dumps(manifest))
    assert read_split(folder, "train").any()


def test_checksums_of_long_files_are_those_of_zlib(tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "BLOCK_BYTES", 7)
    (tmp_path / "a").write_bytes(b"123456789")
    assert verification.compute_checksum(tmp_path / "a") == 0xCBF43926  # the check value of CRC-32
