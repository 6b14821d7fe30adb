"""Writing whole directories: the files of safetensors, all of them or none."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxlm.config import UserError
from jaxlm.interop.safetensors_reader import (
    FLOAT_DTYPES,
    INDEX_FILE,
    WEIGHTS_FILE,
    read_tensor_index,
)
from jaxlm.interop.safetensors_writer import TensorSpec, staged_files, write_safetensors

SHAPES = {"a": (4, 5), "b": (7,), "c": (3, 2), "d": (), "e": (0, 4), "f": (11,)}


def write(directory, dtype="F32", shard_bytes=1 << 30, broken_at=None):
    """Random tensors; the arrays break off before `broken_at`."""
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=shape).astype(FLOAT_DTYPES[dtype]) for name, shape in SHAPES.items()
    }

    def stream():
        for name, array in arrays.items():
            if name == broken_at:
                raise KeyboardInterrupt
            yield array

    with staged_files(directory) as staged:
        write_safetensors(
            staged,
            [TensorSpec(name, dtype, shape) for name, shape in SHAPES.items()],
            stream(),
            shard_bytes,
        )
        staged.write_json("config.json", {"text": "é"})
    return arrays


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("shard_bytes", [1 << 30, 60, 1])
def test_written_files_are_those_of_safetensors(tmp_path, dtype, shard_bytes):
    arrays = write(tmp_path / "out", dtype, shard_bytes)
    written = sorted((tmp_path / "out").glob("*.safetensors"))
    read = {name: array for path in written for name, array in load_file(path).items()}
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (
            read[name].dtype == array.dtype
            and read[name].shape == array.shape
            and read[name].tobytes() == array.tobytes()
        )
    assert read_tensor_index(tmp_path / "out").entries.keys() == arrays.keys()
    assert len(written) == {1 << 30: 1, 60: 3 if dtype == "F32" else 2, 1: len(SHAPES)}[shard_bytes]
    if len(written) == 1:
        assert [path.name for path in written] == [WEIGHTS_FILE] and not (
            tmp_path / "out" / INDEX_FILE
        ).exists()
        return
    index = json.loads((tmp_path / "out" / INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    assert set(index["weight_map"].values()) == {
        f"model-{i:05}-of-{len(written):05}.safetensors" for i in range(1, len(written) + 1)
    }
    for path in written:
        tensors = load_file(path)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= shard_bytes


def test_the_shards_of_an_earlier_export_go_and_other_files_stay(tmp_path):
    write(tmp_path, shard_bytes=60)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "notes.safetensors").write_text("mine")
    arrays = write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        WEIGHTS_FILE,
        "config.json",
        "tokenizer.json",
        "notes.safetensors",
    }
    write(tmp_path, shard_bytes=60)
    assert (
        not (tmp_path / WEIGHTS_FILE).exists()
        and read_tensor_index(tmp_path).entries.keys() == arrays.keys()
    )


@pytest.mark.parametrize("there", [False, True])
def test_nothing_half_written_is_left(tmp_path, there):
    out = tmp_path / "deep" / "out"
    before = {}
    if there:
        write(out)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        write(out, "BF16", 60, broken_at="e")
    assert out.exists() == there
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before if there else True


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"file/out: can't be created"),
        staged_files(tmp_path / "file" / "out"),
    ):
        pass


def test_a_full_disk_is_one_line(tmp_path):
    with (
        pytest.raises(UserError, match=r"out: can't be written: No space left on device"),
        staged_files(tmp_path / "out") as staged,
    ):
        staged.add("model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert not (tmp_path / "out").exists()


def test_arrays_that_are_not_what_was_announced(tmp_path):
    for array in (np.zeros((4, 5)), np.zeros((5, 4), np.float32)):
        with (
            pytest.raises(ValueError, match=r"a: .* instead of F32"),
            staged_files(tmp_path / "out") as staged,
        ):
            write_safetensors(staged, [TensorSpec("a", "F32", (4, 5))], iter([array]), 1 << 30)
    assert not (tmp_path / "out").exists()
