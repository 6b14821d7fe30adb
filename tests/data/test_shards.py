import numpy as np
import pytest
from support.token_arrays import UINT32, write_numbered

from jaxlm.config import UserError
from jaxlm.data.shards import TokenArray, TokenWriter


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
