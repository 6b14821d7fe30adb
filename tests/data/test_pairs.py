import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxlm import config, objectives
from jaxlm.config import ConfigError, UserError
from jaxlm.data import Store, prepare
from jaxlm.data.schedule import BatchSchedule
from jaxlm.data.stream import Stream
from jaxlm.evaluation.validation import EvaluationWindows
from jaxlm.objectives import Objective
from jaxlm.types import Batch

END, PAD = 256, 257
TOKENIZER = config.TokenizerConfig(kind="bytes")


def pair(number: int) -> tuple[str, str]:
    """Return texts of different lengths that name their pair."""
    return f"{number}:" + "s" * (number % 9), "é" * (number % 5) + f":{number}"


def write_pairs(path: Path, numbers: range) -> Path:
    lines = []
    for number in numbers:
        source, target = pair(number)
        lines.append(json.dumps({"source": source, "target": target}))
    path.write_text("\n".join(lines))
    return path


def build_store(folder: Path, *paths: Path, **validation: Any) -> Store:
    sources = tuple(
        config.SourceConfig(name=f"s{number}", path=str(path), format="pairs")
        for number, path in enumerate(paths)
    )
    method = config.ValidationConfig(**{"share": 0.2, **validation})
    data = config.DataConfig(sources=sources, store=str(folder / "stores"), validation=method)
    return prepare(data, TOKENIZER, 300, lambda line: None, needs=("pad",))


def recording(source_length: int, target_length: int) -> Objective:
    """Return an objective whose batches show the rows as they are read."""

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        weights = np.ones((len(windows), target_length), np.float32)
        return Batch(tokens=windows, lengths=samples, weights=weights)

    return Objective(
        window=source_length + target_length,
        stride=1,
        length=target_length,
        source_length=source_length,
        predictions=target_length,
        make_batch=make_batch,
        random=False,
    )


def read_all(array, objective: Objective) -> list[list[int]]:
    return array.read_samples(np.arange(len(array)), objective).tolist()


def cell(text: str, width: int) -> list[int]:
    """Return the bytes and the end of a text, padded, or cut to end with the end."""
    ids = [*text.encode(), END]
    return [*ids[: width - 1], END] if len(ids) > width else ids + [PAD] * (width - len(ids))


def expected(number: int, source_length: int, target_length: int) -> list[int]:
    source, target = pair(number)
    return cell(source, source_length) + cell(target, target_length)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("pairs")
    return build_store(folder, write_pairs(folder / "a.jsonl", range(60)))


@pytest.mark.parametrize(("source_length", "target_length"), [(20, 20), (5, 7), (1, 30)])
def test_pairs_are_rows_cut_or_padded(store, source_length, target_length):
    objective, rows = recording(source_length, target_length), []
    for array in store.train + store.validation:
        read = array.read_samples(np.arange(len(array)), objective)
        assert (read.dtype, read.shape) == (np.int32, (len(array), source_length + target_length))
        assert np.array_equal(array.read_samples(np.array([3, 1, 3]), objective), read[[3, 1, 3]])
        rows += read.tolist()
    assert sorted(rows) == sorted(
        expected(number, source_length, target_length) for number in range(60)
    )


def test_a_pair_is_held_out_as_a_whole(store):
    (train,), (held_out,) = store.train, store.validation
    assert 3 < len(held_out) < 24  # Binomial(60, 0.2): 12 +- 3.1
    assert len(train) + len(held_out) == 60
    (entry,) = store.manifest["splits"]["train"]
    assert (entry["pairs"], entry["documents"]) == (len(train), 2 * len(train))


def test_validation_counts_the_bytes_of_both_texts(store):
    (held_out,) = store.validation
    rows = read_all(held_out, recording(9, 9))
    numbers = [int(bytes(row[:2]).rstrip(b":")) for row in rows]
    text = "".join("".join(pair(number)) for number in numbers).encode()
    assert store.validation_bytes == len(text)
    assert store.gzip_bytes == len(gzip.compress(text, 9))


def test_validation_pairs_from_a_file_of_their_own(tmp_path):
    write_pairs(tmp_path / "a.jsonl", range(4))
    store = build_store(
        tmp_path,
        tmp_path / "a.jsonl",
        method="source",
        path=str(write_pairs(tmp_path / "v.jsonl", range(7, 9))),
    )
    (held_out,) = store.validation
    assert read_all(held_out, recording(12, 12)) == [
        expected(7, 12, 12),
        expected(8, 12, 12),
    ]
    assert len(store.train[0]) == 4


def test_validation_pairs_have_the_keys_of_the_first_source(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"en": "one", "de": "eins"}\n')
    source = config.SourceConfig(
        name="a", path=str(path), format="pairs", source_key="en", target_key="de"
    )
    validation = config.ValidationConfig(method="source", path=str(path))
    data = config.DataConfig(
        sources=(source,), validation=validation, store=str(tmp_path / "stores")
    )
    store = prepare(data, TOKENIZER, 300, lambda _: None, needs=("pad",))
    for (array,) in (store.train, store.validation):
        assert read_all(array, recording(8, 8)) == [cell("one", 8) + cell("eins", 8)]


def test_hash_split_counts_pairs_not_texts(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"^data\.validation\.method: 'hash' needs at least 20 documents, found 15",
    ):
        build_store(tmp_path, write_pairs(tmp_path / "a.jsonl", range(15)))


def test_what_decides_the_pairs_decides_the_store(tmp_path):
    path = write_pairs(tmp_path / "a.jsonl", range(40))
    first = build_store(tmp_path, path)
    turned = config.SourceConfig(
        name="s", path=str(path), format="pairs", source_key="target", target_key="source"
    )
    data = config.DataConfig(
        sources=(turned,),
        store=str(tmp_path / "stores"),
        validation=config.ValidationConfig(share=0.2),
    )
    lines: list[str] = []
    other = prepare(data, TOKENIZER, 300, lines.append, needs=("pad",))
    assert other.hash != first.hash
    assert f" tokens in {len(other.train[0])} pairs, validation" in lines[0]


def test_an_epoch_of_a_stream_is_every_pair_once(tmp_path):
    both = [
        write_pairs(tmp_path / "a.jsonl", range(30)),
        write_pairs(tmp_path / "b.jsonl", range(30, 90)),
    ]
    validation = write_pairs(tmp_path / "v.jsonl", range(2))
    store = build_store(tmp_path, *both, method="source", path=str(validation))
    stream = Stream(
        store.train,
        weights=[1, 2],
        names=["a", "b"],
        objective=recording(11, 13),
        schedule=BatchSchedule(90),
        seed=0,
    )
    everything = sorted(expected(number, 11, 13) for number in range(90))
    for epoch in range(3):
        assert sorted(stream[epoch].tokens.tolist()) == everything
    assert stream[0].tokens.tolist() != stream[1].tokens.tolist()


def test_evaluation_sees_every_pair_once(store):
    windows = EvaluationWindows(store.validation, recording(11, 13), 5, 3, 0)
    counted = [
        row.tolist()
        for batch in windows
        for row, weights in zip(batch.tokens, np.asarray(batch.weights), strict=True)
        if weights.any()
    ]
    (held_out,) = store.validation
    assert counted == read_all(held_out, recording(11, 13))
    assert all(batch.tokens.shape == (5, 24) for batch in windows)
    one_token_each = EvaluationWindows(store.validation, recording(1, 1), 5, 3, 0)
    assert len(one_token_each) == len(windows)


def test_the_objective_reads_the_pairs(store):
    objective = objectives.build(
        config.ObjectiveConfig(kind="pairs", target_length=8), 6, store.tokenizer.vocabulary
    )
    stream = Stream(
        store.train,
        weights=[1],
        names=["s"],
        objective=objective,
        schedule=BatchSchedule(16),
        seed=0,
    )
    batch = stream[0]
    rows = np.concatenate([np.asarray(batch.source), np.asarray(batch.targets)], axis=1).tolist()
    assert all(row in [expected(number, 6, 8) for number in range(60)] for row in rows)
    assert np.array_equal(np.asarray(batch.targets) == PAD, np.asarray(batch.weights) == 0)


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_damaged_offsets_are_named(tmp_path, damage):
    path = write_pairs(tmp_path / "a.jsonl", range(40))
    offsets = build_store(tmp_path, path).path / "train-0.offsets"
    offsets.unlink() if damage == "missing" else offsets.write_bytes(offsets.read_bytes()[:-8])
    message = (
        r"train-0\.offsets: (No such file or directory|damaged); delete the folder .* built again$"
    )
    with pytest.raises(UserError, match=message):
        build_store(tmp_path, path)
