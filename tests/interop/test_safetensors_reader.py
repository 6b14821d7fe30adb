"""Reading directories that others made: every claim is checked, nothing outside is opened."""

import json
import os
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxlm.config import UserError
from jaxlm.interop import safetensors_reader
from jaxlm.interop.safetensors_reader import (
    INDEX_FILE,
    WEIGHTS_FILE,
    TensorReader,
    equal_tensors,
    has_nonzero,
    read_tensor_index,
)

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "none": {"dtype": "F32", "shape": [0, 3], "data_offsets": [32, 32]},
}


def raw(header, data=bytes(32), length=None):
    """Return a safetensors file of a header (text or values); `length` may be a lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def header(**changes):
    """GOOD with other values in tensor a (`a_shape=[3]`) or others added."""
    tensors = {name: dict(value) for name, value in GOOD.items()}
    for key, value in changes.items():
        if key.startswith("a_"):
            tensors["a"][key[2:]] = value
        else:
            tensors[key] = value
    return tensors


BROKEN = {
    "empty": (b"", "can't hold the length of a header"),
    "five bytes": (b"\x10\0\0\0\0", "can't hold the length of a header"),
    "header beyond the file": (raw(GOOD, length=10_000), "can't hold a header of 10,000 bytes"),
    "absurd header": (
        raw(GOOD, length=2**63),
        "can't hold a header of 9,223,372,036,854,775,808 bytes",
    ),
    "a pickle": (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff" + bytes(99), "not a safetensors file"),
    "not JSON": (raw(b'{"a": '), "is not JSON"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "is not UTF-8"),
    "deeper than Python's stack": (raw(b'{"a": ' + b"[" * 200_000), "too many levels"),
    "endless number": (
        raw(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b"]}}"),
        "too many digits",
    ),
    "a list": (raw([]), "must be a JSON object"),
    "duplicate key": (raw(b'{"a": 1, "a": 2}'), '"a" appears twice'),
    "entry is a number": (raw(header(a=3)), "a: must be an object, got 3"),
    "no dtype": (raw({"a": {"shape": [2], "data_offsets": [0, 8]}}), "a: dtype null is unknown"),
    "unknown dtype": (raw(header(a_dtype="F33")), 'a: dtype "F33" is unknown'),
    "dtype is a list": (raw(header(a_dtype=["F32"])), 'a: dtype ["F32"] is unknown'),
    "negative size": (
        raw(header(a_shape=[-2, -3])),
        "a: shape must be a list of sizes, got [-2, -3]",
    ),
    "size is a bool": (raw(header(a_shape=[True, 6])), "a: shape must be a list of sizes"),
    "size is a fraction": (raw(header(a_shape=[2.0, 3])), "a: shape must be a list of sizes"),
    "shape is text": (raw(header(a_shape="23")), 'a: shape must be a list of sizes, got "23"'),
    "product beyond 64 bits": (
        raw(header(a_shape=[2**62, 2**62])),
        "a: F32 of shape [4611686018427387904, 4611686018427387904] has",
    ),
    "too few bytes": (
        raw(header(a_shape=[2, 4])),
        "a: F32 of shape [2, 4] has 32 bytes, but data_offsets give it 24",
    ),
    "wrong dtype": (
        raw(header(a_dtype="F64")),
        "a: F64 of shape [2, 3] has 48 bytes, but data_offsets give it 24",
    ),
    "backwards": (
        raw(header(a_data_offsets=[24, 0])),
        "a: data_offsets must be [start, end], got [24, 0]",
    ),
    "three offsets": (
        raw(header(a_data_offsets=[0, 24, 32])),
        "a: data_offsets must be [start, end]",
    ),
    "negative offset": (
        raw(header(a_data_offsets=[-24, 0])),
        "a: data_offsets must be [start, end]",
    ),
    "overlap": (
        raw(header(b={"dtype": "BF16", "shape": [4], "data_offsets": [20, 28]})),
        "b: data_offsets: overlaps another tensor",
    ),
    "same place": (
        raw({"a": GOOD["a"], "c": GOOD["a"]}, bytes(24)),
        "data_offsets: overlaps another tensor",
    ),
    "gap": (
        raw(header(b={"dtype": "BF16", "shape": [2], "data_offsets": [28, 32]})),
        "b: data_offsets: the 4 bytes before it belong to no tensor",
    ),
    "cut short": (raw(GOOD, bytes(30)), "b: ends 2 bytes past the end of the file"),
    "far out": (
        raw(header(b={"dtype": "BF16", "shape": [2**60], "data_offsets": [24, 24 + 2**61]})),
        "past the end of the file",
    ),
    "bytes left": (raw(GOOD, bytes(35)), "its last 3 bytes belong to no tensor"),
    "metadata is a number": (
        raw({"__metadata__": 3, **GOOD}),
        WEIGHTS_FILE,
    ),  # found by the library
    "metadata of numbers": (raw({"__metadata__": {"format": 3}, **GOOD}), WEIGHTS_FILE),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_in_one_line(tmp_path, case):
    content, expected = BROKEN[case]
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_tensor_index(tmp_path)
    message = str(refused.value)
    assert (
        expected in message
        and message.startswith(str(tmp_path / WEIGHTS_FILE))
        and "\n" not in message
        and len(message) < 600
    )


def test_an_absurd_header_is_refused_before_it_is_read(tmp_path):
    """The file is sparse: 4 GB by its length, nothing on the disk."""
    with (tmp_path / WEIGHTS_FILE).open("wb") as file:
        file.write((3 << 30).to_bytes(8, "little"))
        file.truncate(4 << 30)
    tracemalloc.start()
    with pytest.raises(UserError, match="can't hold a header of 3,221,225,472 bytes"):
        read_tensor_index(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_good_file_is_read_as_safetensors_reads_it(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "half": rng.normal(size=(3, 5)).astype(np.float16),
        "single": rng.normal(size=(7,)).astype(np.float32),
        "double": rng.normal(size=(2, 2, 2)),
        "brain": rng.normal(size=(4, 6)).astype(ml_dtypes.bfloat16),
        "none": np.zeros((0, 2), np.float32),
        "number": np.array(2.5, np.float32),
    }
    save_file(tensors | {"ids": np.arange(3), "mask": np.ones(5, bool)}, tmp_path / WEIGHTS_FILE)
    source, entries = read_tensor_index(tmp_path)
    assert source == tmp_path / WEIGHTS_FILE and entries.keys() == {*tensors, "ids", "mask"}
    with TensorReader(max(entry.size for entry in entries.values())) as reader:
        address = reader.buffer.ctypes.data
        for name, expected in tensors.items():
            got = reader.read(entries[name])
            assert (
                got.dtype == expected.dtype
                and got.shape == expected.shape
                and got.tobytes() == expected.tobytes()
            )
            assert got.size == 0 or got.ctypes.data == address  # no copy


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    (tmp_path / WEIGHTS_FILE).write_bytes(raw(GOOD))
    entries = read_tensor_index(tmp_path).entries
    os.truncate(tmp_path / WEIGHTS_FILE, 40)
    with (
        TensorReader(32) as reader,
        pytest.raises(UserError, match=r"model\.safetensors: a: the file ends before it"),
    ):
        reader.read(entries["a"])


ONE, OTHER = {"a": np.ones(2, np.float32)}, {"b": np.ones(3, np.float32)}


def sharded(directory, weight_map, **shards):
    """An index and files: `one=ONE` is one.safetensors."""
    directory.mkdir(exist_ok=True)
    for name, tensors in shards.items():
        save_file(tensors, directory / f"{name}.safetensors")
    text = (
        weight_map
        if isinstance(weight_map, str)
        else json.dumps({"metadata": {"total_size": 20}, "weight_map": weight_map})
    )
    (directory / INDEX_FILE).write_text(text)
    return directory


def test_shards_by_an_index(tmp_path):
    sharded(tmp_path, {"a": "one.safetensors", "b": "other.safetensors"}, one=ONE, other=OTHER)
    source, entries = read_tensor_index(tmp_path)
    assert source == tmp_path / INDEX_FILE
    assert {name: entry.path.name for name, entry in entries.items()} == {
        "a": "one.safetensors",
        "b": "other.safetensors",
    }


OUTSIDE = [
    "../outside.safetensors",
    "/outside.safetensors",
    "sub/one.safetensors",
    "..\\one.safetensors",
    "c:one.safetensors",
]
NO_NAMES = [
    "model.bin",
    "",
    "..",
    3,
    None,
    ["one.safetensors"],
    "a\nb.safetensors",
    "a\0.safetensors",
]


@pytest.mark.parametrize("name", OUTSIDE + NO_NAMES)
def test_an_index_names_files_of_its_directory_alone(tmp_path, name):
    save_file(ONE, tmp_path / "outside.safetensors")
    directory = sharded(tmp_path / "hf", {"a": name}, one=ONE)
    (directory / "sub").mkdir()
    save_file(ONE, directory / "sub" / "one.safetensors")
    if name == "/outside.safetensors":
        sharded(directory, {"a": str(tmp_path / "outside.safetensors")})
    with pytest.raises(
        UserError,
        match=r"index\.json: weight_map: a: must be the name of a \.safetensors file",
    ):
        read_tensor_index(directory)


def test_a_shard_whose_name_no_system_takes_is_named(tmp_path):
    sharded(tmp_path, {"a": "x" * 300 + ".safetensors"}, one=ONE)
    with pytest.raises(UserError, match=r"xxx\.safetensors: can't be read: File name too long"):
        read_tensor_index(tmp_path)


def test_the_links_of_hugging_face_s_cache_are_followed(tmp_path):
    """models--x/snapshots/HASH/model.safetensors -> ../../blobs/HASH."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    sharded(tmp_path, {"a": "one.safetensors", "b": "other.safetensors"}, one=ONE, other=OTHER)
    for number, name in enumerate((INDEX_FILE, "one.safetensors", "other.safetensors")):
        (tmp_path / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    assert read_tensor_index(snapshot).entries.keys() == {"a", "b"}


BOTH = {"a": "one.safetensors", "b": "other.safetensors"}
INDICES = {
    "a tensor that its shard lacks": (
        {**BOTH, "c": "one.safetensors"},
        OTHER,
        r"one\.safetensors: c: there is no such tensor",
    ),
    "a tensor of the other shard": (
        {"a": "other.safetensors", "b": "one.safetensors"},
        OTHER,
        r"other\.safetensors: a: there is no such",
    ),
    "twice": (BOTH, {**OTHER, **ONE}, r"other\.safetensors: a: is also in one\.safetensors"),
    "a missing shard": (
        {**BOTH, "c": "third.safetensors"},
        OTHER,
        r"third\.safetensors: there is no such file",
    ),
    "a directory": (
        {**BOTH, "c": "folder.safetensors"},
        OTHER,
        r"folder\.safetensors: is not a file",
    ),
    "a name of two lines": (
        {**BOTH, "c\nd": "one.safetensors"},
        OTHER,
        r'one\.safetensors: "c\\nd": there is no such tensor',
    ),
    "no map": ('{"metadata": {}}', OTHER, r"index\.json: weight_map: must be an object"),
    "an empty map": ({}, OTHER, r"index\.json: weight_map: must be an object"),
    "a list": ("[]", OTHER, r"index\.json: weight_map: must be an object"),
    "not JSON": ("{", OTHER, r"index\.json: is not JSON"),
    "a tensor with two shards": (
        '{"weight_map": {"a": "one.safetensors", "a": "other.safetensors"}}',
        OTHER,
        '"a" appears twice',
    ),
}


@pytest.mark.parametrize("case", INDICES)
def test_a_broken_index(tmp_path, case):
    weight_map, other, expected = INDICES[case]
    sharded(tmp_path, weight_map, one=ONE, other=other)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(UserError, match=expected) as refused:
        read_tensor_index(tmp_path)
    assert str(refused.value).startswith(str(tmp_path)) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt", "weights.pth"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(
        UserError,
        match=rf"only weights that may run code when read \({name}\); convert them to safetensors",
    ):
        read_tensor_index(tmp_path)


def test_no_weights(tmp_path):
    with pytest.raises(
        UserError, match=r"has no model\.safetensors and no model\.safetensors\.index\.json"
    ):
        read_tensor_index(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / WEIGHTS_FILE)
    with pytest.raises(UserError, match="is not a file"):
        read_tensor_index(tmp_path)


@pytest.mark.parametrize("place", [0, 4, 9])
def test_tensors_are_scanned_and_compared_to_their_end(tmp_path, monkeypatch, place):
    """Chunk by chunk: a value that differs may be in any of them."""
    monkeypatch.setattr(safetensors_reader, "CHUNK_BYTES", 16)
    value = np.zeros(10, np.float32)
    value[place] = 1e-30
    tensors = {"zeros": np.zeros(10, np.float32), "same": np.zeros(10, np.float32), "value": value}
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    entries = read_tensor_index(tmp_path).entries
    assert has_nonzero(entries["value"]) and not has_nonzero(entries["zeros"])
    assert equal_tensors(entries["zeros"], entries["same"])
    assert not equal_tensors(entries["zeros"], entries["value"])
