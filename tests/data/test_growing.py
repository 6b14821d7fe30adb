"""A store that is read while it is built: the same batches as from the finished one."""

import itertools
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.stores import BYTES, build_store, data_config, random_text, read_tokens, write_corpus
from support.token_arrays import batches_equal

from jaxlm import config, objectives
from jaxlm.config import UserError
from jaxlm.data import (
    begin,
    built_meanwhile,
    growing,
    preparation,
    prepare,
    stream,
    whole_store_reason,
)
from jaxlm.data.background import Builder
from jaxlm.data.building import encode_units, units
from jaxlm.data.permutation import permute, permute_blocks
from jaxlm.data.schedule import BatchSchedule
from jaxlm.data.shards import open_shards
from jaxlm.data.split import TRAIN
from jaxlm.data.stream import open_stream, source_sizes

STEPS = 40


@pytest.fixture
def small_units(monkeypatch):
    """Give two or three files to a unit. Processes of their own know nothing of it."""
    monkeypatch.setattr(units, "UNIT_BYTES", 1 << 10)
    monkeypatch.setattr(stream, "BLOCK", 8)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Return two sources, of which the second is read three times as much."""
    monkeypatch.setattr(growing, "POLL_SECONDS", 0.01)
    sources = [write_corpus(tmp_path / name, count) for name, count in (("c", 40), ("d", 30))]
    (tmp_path / "d" / "900.txt").write_text(random_text(7, words=3000))
    made = data_config(tmp_path, *sources)
    weighted = (made.sources[0], replace(made.sources[1], weight=3.0))
    return replace(made, sources=weighted, sequence_length=16, shuffle_block=800)


def stream_of(store, data):
    objective = objectives.build(config.ObjectiveConfig(), 16, store.tokenizer.vocabulary)
    return open_stream(store, data, objective, BatchSchedule(8), seed=3)


def start(data, lines=None):
    return begin(data, BYTES, 300, [].append if lines is None else lines.append)


def finish(data):
    return prepare(data, BYTES, 300, lambda line: None, workers=1)


def growing_arrays(store):
    """Return the training arrays of a store that is being built."""
    return [array for array in store.train if isinstance(array, growing.GrowingArray)]


def encode_one_more(monkeypatch, data):
    """Do the second pass over the training text of the next unit alone."""

    def encode(pool, folder, inputs, units, judgement, splits):
        left = [
            unit
            for unit in units_in_order(units, inputs.data.first_weights)
            if not (folder / f"encode-{unit.name}-{TRAIN}.json").exists()
        ]
        encode_units(pool, folder, inputs, left[:1], judgement, (TRAIN,))
        raise KeyboardInterrupt

    units_in_order = units.order_units
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("jaxlm.data.building.encode_units", encode)
        finish(data)


def test_blocks_follow_one_another_and_each_is_shuffled():
    index, zero = np.arange(95), np.zeros(95, np.int64)
    images = permute_blocks(index, 95, 10, seed=1, source=0, epoch=zero)
    for first in range(0, 95, 10):
        block = images[first : first + 10]
        assert sorted(block) == list(range(first, min(first + 10, 95)))
    orders = {tuple(images[first : first + 10] - first) for first in range(0, 90, 10)}
    assert len(orders) == 9
    assert not np.array_equal(images, permute_blocks(index, 95, 10, 1, 0, zero + 1))
    # A block that holds everything is the order without blocks.
    whole = permute(index, 95, 1, 0, zero)
    assert np.array_equal(whole, permute_blocks(index, 95, 1000, 1, 0, zero))


def test_a_growing_store_has_the_batches_of_the_finished_one(
    small_units, data, tmp_path, monkeypatch
):
    finished, _ = build_store(replace(data, store=str(tmp_path / "whole")))
    expected = stream_of(finished, data)
    store = start(data)
    assert store.construction is not None and store.hash == finished.hash
    assert store.validation_bytes == finished.validation_bytes
    assert store.manifest["validation"] == finished.manifest["validation"]

    # Each batch is read as soon as its tokens are there, and not before.
    encode_one_more(monkeypatch, data)
    encode_one_more(monkeypatch, data)
    grown, encoded, read = stream_of(store, data), 2, []
    for step in range(STEPS):
        while not grown.is_ready(step):
            encode_one_more(monkeypatch, data)
            encoded += 1
        read.append(encoded)
        assert batches_equal(grown[step], expected[step])
    assert len(set(read)) > 4 and grown.is_growing

    # The parts go when the store is complete, and the stream goes on with its shards.
    finish(data)
    assert not store.construction.unfinished.exists()
    for array in growing_arrays(store):
        open_shards.close(array.parts.number)
    for step in itertools.chain(range(STEPS), range(300, 310)):
        assert batches_equal(grown[step], expected[step])
    assert not grown.is_growing
    lengths = [len(array) for array in finished.train]
    assert [len(array) for array in store.train] == lengths
    assert growing.current_manifest(store)["splits"] == finished.manifest["splits"]
    for moved, whole in zip(store.validation, finished.validation, strict=True):
        assert np.array_equal(read_tokens(moved), read_tokens(whole))


def test_a_block_is_there_with_the_last_token_of_its_windows(data):
    finished = stream_of(finish(data), data)
    for first in (0, 50, 100):
        starts = finished.window_starts(1, np.arange(first, first + 50))
        assert finished.tokens_of_block(first + 7) == starts.max() + finished.objective.window


def test_a_second_start_goes_on_with_what_is_there(small_units, data, tmp_path, monkeypatch):
    first = start(data)
    encode_one_more(monkeypatch, data)
    monkeypatch.setattr(preparation, "begin_store", None)
    again = start(data)
    assert again.manifest == first.manifest
    assert sum(array.has(1) for array in growing_arrays(again)) == 1
    finished = finish(data)
    assert start(data).construction is None
    same, _ = build_store(replace(data, store=str(tmp_path / "whole")))
    for path in same.path.iterdir():
        assert path.read_bytes() == (finished.path / path.name).read_bytes()


def test_a_store_that_was_killed_at_its_end_is_finished(data, monkeypatch):
    start(data)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preparation, "remove_intermediate", interrupt)
        finish(data)
    (unfinished,) = (Path(data.store)).glob(".*.building")
    (unfinished / "begun.json").unlink()
    monkeypatch.setattr(preparation, "begin_store", None)
    assert start(data).construction is None and not unfinished.exists()


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_units_come_in_the_order_in_which_a_run_reads_them():
    sizes = [(0, 10), (0, 10), (0, 10), (1, 10), (1, 10), (2, 10)]
    made = [units.Unit(n, source, (), size) for n, (source, size) in enumerate(sizes)]
    ordered = units.order_units(made, (1.0, 5.0))
    assert [unit.number for unit in ordered] == [0, 3, 4, 1, 2, 5]


def test_a_process_of_its_own_completes_the_store_meanwhile(data):
    lines = []
    store = start(data, lines)
    assert "tokenised during the run" in lines[-1]
    arguments = (data, BYTES, 300, (), None)
    with built_meanwhile(store, is_leader=True, arguments=arguments):
        grown = stream_of(store, data)
        batches = [grown[step] for step in range(STEPS)]
    finished = finish(data)
    expected = stream_of(finished, data)
    assert all(batches_equal(batch, expected[step]) for step, batch in enumerate(batches))
    sizes = source_sizes(expected, finished, data)
    for estimate, size in zip(source_sizes(grown, store, data), sizes, strict=True):
        assert estimate.name == size.name
        assert estimate.tokens == pytest.approx(size.tokens, rel=0.05)


def test_a_builder_that_fails_or_is_killed_ends_the_wait(data):
    store, arguments = start(data), (data, BYTES, 300, (), None)
    assert store.construction is not None
    (store.construction.unfinished / "extract-000000.text").unlink()
    with (
        built_meanwhile(store, is_leader=True, arguments=arguments),
        pytest.raises(UserError, match=r"extract-000000\.text: No such file"),
    ):
        growing_arrays(store)[0].wait(1)

    builder = Builder(arguments)
    builder.process.kill()
    builder.process.join()
    with pytest.raises(UserError, match="the process that builds the store has ended early"):
        builder.check()
    builder.stop()


def test_whoever_waits_is_let_go_at_the_end(data):
    store, errors = start(data), []

    def wait():
        try:
            growing_arrays(store)[0].wait(1 << 30)
        except UserError as error:
            errors.append(str(error))

    thread = threading.Thread(target=wait)
    with built_meanwhile(store, is_leader=False, arguments=()):
        thread.start()
        time.sleep(0.1)
        assert thread.is_alive()
    thread.join(10)
    assert errors == ["data: the run has ended"]


def test_what_a_run_waits_for_is_said(data):
    assert whole_store_reason(data) is None
    for changed, reason in (
        ({"sequences": "packed"}, "lays out all documents"),
        ({"mixture_temperature": 2.0, "sources": (data.sources[0],)}, "the sizes of the sources"),
    ):
        assert reason in str(whole_store_reason(replace(data, **changed)))


def test_a_damaged_part_is_told(small_units, data, monkeypatch):
    store = start(data)
    encode_one_more(monkeypatch, data)
    array = next(array for array in growing_arrays(store) if array.has(1))
    (path,) = array.parts.paths
    os.truncate(path, 10)
    objective = objectives.build(config.ObjectiveConfig(), 16, store.tokenizer.vocabulary)
    with pytest.raises(UserError, match="before its last token"):
        array.read_samples(np.array([20]), objective)
