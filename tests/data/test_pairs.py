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
    """Every length from 0 on; the texts name their pair."""
    return f"{number}:" + "s" * (number % 9), "é" * (number % 5) + f":{number}"


def write(path: Path, numbers: range) -> Path:
    lines = [
        json.dumps(dict(zip(("source", "target"), pair(number), strict=True))) for number in numbers
    ]
    path.write_text("\n".join(lines))
    return path


def built(folder: Path, *paths: Path, **validation: Any) -> Store:
    sources = tuple(
        config.SourceConfig(name=f"s{number}", path=str(path), format="pairs")
        for number, path in enumerate(paths)
    )
    method = config.ValidationConfig(**{"share": 0.2, **validation})
    settings = config.DataConfig(sources=sources, store=str(folder / "stores"), validation=method)
    return prepare(settings, TOKENIZER, 300, lambda line: None, needs=("pad",))


def rows(source_length: int, target_length: int) -> Objective:
    """Batches of the rows as they are read, and the numbers of their samples."""

    def make(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        return Batch(
            tokens=windows,
            lengths=samples,
            weights=np.ones((len(windows), target_length), np.float32),
        )

    return Objective(
        source_length + target_length,
        1,
        target_length,
        source_length,
        target_length,
        make,
        random=False,
    )


def cell(text: str, width: int) -> list[int]:
    """A text's columns by the definition: its bytes and the end, cut to end with the end, or padded."""
    ids = [*text.encode(), END]
    return [*ids[: width - 1], END] if len(ids) > width else ids + [PAD] * (width - len(ids))


def expected(number: int, source_length: int, target_length: int) -> list[int]:
    source, target = pair(number)
    return cell(source, source_length) + cell(target, target_length)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("pairs")
    return built(folder, write(folder / "a.jsonl", range(60)))


@pytest.mark.parametrize(("source_length", "target_length"), [(20, 20), (5, 7), (1, 30)])
def test_pairs_are_rows_cut_or_padded(made, source_length, target_length):
    objective, found = rows(source_length, target_length), []
    for array in made.train + made.validation:
        read = array.read(np.arange(len(array)), objective)
        assert (read.dtype, read.shape) == (np.int32, (len(array), source_length + target_length))
        assert np.array_equal(array.read(np.array([3, 1, 3]), objective), read[[3, 1, 3]])
        found += read.tolist()
    assert sorted(found) == sorted(
        expected(number, source_length, target_length) for number in range(60)
    )


def test_a_pair_is_held_out_as_a_whole(made):
    (train,), (held_out,) = made.train, made.validation
    assert 3 < len(held_out) < 24  # Binomial(60, 0.2): 12 +- 3.1
    assert len(train) + len(held_out) == 60
    (entry,) = made.manifest["splits"]["train"]
    assert (entry["pairs"], entry["documents"]) == (len(train), 2 * len(train))


def test_validation_counts_the_bytes_of_both_texts(made):
    (held_out,) = made.validation
    numbers = [
        int(bytes(row[:2].tolist()).rstrip(b":"))
        for row in held_out.read(np.arange(len(held_out)), rows(9, 9))
    ]
    text = "".join("".join(pair(number)) for number in numbers).encode()
    assert made.validation_bytes == len(text)
    assert made.gzip_bytes == len(gzip.compress(text, 9))


def test_validation_pairs_from_a_file_of_their_own(tmp_path):
    write(tmp_path / "a.jsonl", range(4))
    found = built(
        tmp_path,
        tmp_path / "a.jsonl",
        method="source",
        path=str(write(tmp_path / "v.jsonl", range(7, 9))),
    )
    (held_out,) = found.validation
    assert held_out.read(np.arange(2), rows(12, 12)).tolist() == [
        expected(7, 12, 12),
        expected(8, 12, 12),
    ]
    assert len(found.train[0]) == 4


def test_hash_split_counts_pairs_not_texts(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"^data\.validation\.method: 'hash' needs at least 20 documents, found 15",
    ):
        built(tmp_path, write(tmp_path / "a.jsonl", range(15)))


def test_what_decides_the_pairs_decides_the_store(tmp_path):
    path = write(tmp_path / "a.jsonl", range(40))
    first = built(tmp_path, path)
    turned = config.SourceConfig(
        name="s", path=str(path), format="pairs", source_key="target", target_key="source"
    )
    settings = config.DataConfig(
        sources=(turned,),
        store=str(tmp_path / "stores"),
        validation=config.ValidationConfig(share=0.2),
    )
    lines: list[str] = []
    other = prepare(settings, TOKENIZER, 300, lines.append, needs=("pad",))
    assert other.hash != first.hash
    assert f" tokens in {len(other.train[0])} pairs, validation" in lines[0]


def test_an_epoch_of_a_stream_is_every_pair_once(tmp_path):
    both = [write(tmp_path / "a.jsonl", range(30)), write(tmp_path / "b.jsonl", range(30, 90))]
    found, objective = (
        built(tmp_path, *both, method="source", path=str(write(tmp_path / "v.jsonl", range(2)))),
        rows(11, 13),
    )
    stream = Stream(found.train, [1, 2], ["a", "b"], objective, BatchSchedule(90), 0)
    everything = sorted(expected(number, 11, 13) for number in range(90))
    assert [sorted(stream[epoch].tokens.tolist()) == everything for epoch in range(3)] == [
        True,
        True,
        True,
    ]
    assert stream[0].tokens.tolist() != stream[1].tokens.tolist()


def test_evaluation_sees_every_pair_once(made):
    windows = EvaluationWindows(made.validation, rows(11, 13), 5, 3, 0)
    counted = [
        row.tolist()
        for batch in windows
        for row, weights in zip(batch.tokens, np.asarray(batch.weights), strict=True)
        if weights.any()
    ]
    (held_out,) = made.validation
    assert counted == held_out.read(np.arange(len(held_out)), rows(11, 13)).tolist()
    assert all(batch.tokens.shape == (5, 24) for batch in windows)
    one_token_each = EvaluationWindows(made.validation, rows(1, 1), 5, 3, 0)
    assert len(one_token_each) == len(windows)


def test_the_objective_reads_the_pairs(made):
    objective = objectives.build(
        config.ObjectiveConfig(kind="pairs", target_length=8), 6, made.tokenizer.vocabulary
    )
    batch = Stream(made.train, [1], ["s"], objective, BatchSchedule(16), 0)[0]
    rows_read = np.concatenate(
        [np.asarray(batch.source), np.asarray(batch.targets)], axis=1
    ).tolist()
    assert all(row in [expected(number, 6, 8) for number in range(60)] for row in rows_read)
    assert np.array_equal(np.asarray(batch.targets) == PAD, np.asarray(batch.weights) == 0)


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_damaged_offsets_are_named(tmp_path, damage):
    path = write(tmp_path / "a.jsonl", range(40))
    offsets = built(tmp_path, path).path / "train-0.offsets"
    offsets.unlink() if damage == "missing" else offsets.write_bytes(offsets.read_bytes()[:-8])
    with pytest.raises(
        UserError,
        match=r"train-0\.offsets: (No such file or directory|damaged); delete the folder .* built again$",
    ):
        built(tmp_path, path)
