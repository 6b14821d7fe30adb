import tracemalloc
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from support.texts import (
    BEGIN,
    END,
    FIRST_ORDINARY,
    FRAMED,
    MASK,
    PAD,
    SIZE,
    VOCABULARY,
    build_objective,
)
from support.token_arrays import UINT32, batches_equal, write_numbered

from jaxlm import config, objectives
from jaxlm.config import ConfigError, UserError
from jaxlm.data.packing import (
    best_fit_decreasing,
    open_rows,
    pack,
    read_packing,
)
from jaxlm.data.schedule import BatchSchedule
from jaxlm.data.shards import TokenArray, TokenWriter
from jaxlm.data.stream import Stream
from jaxlm.objectives.layout import ragged_range
from jaxlm.types import Batch

LENGTH = 32


def write_documents(folder: Path, lengths: np.ndarray, seed: int = 0) -> TokenArray:
    """Write documents of these lengths, each with its end of text, and open them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    writer = TokenWriter(folder, "train-0", UINT32, shard_tokens=1000)
    for length in lengths:
        writer.add(rng.integers(FIRST_ORDINARY, SIZE, length - 1))
        writer.end_document(END)
    entry = writer.close()
    return TokenArray(
        [folder / shard["file"] for shard in entry["shards"]],
        [shard["tokens"] for shard in entry["shards"]],
        UINT32,
        offsets=folder / entry["offsets"],
        documents=entry["documents"],
    )


def random_lengths(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, 70, count)


def read_documents(tokens: TokenArray) -> list[list[int]]:
    text, offsets = (
        tokens.read_windows(np.zeros(1, np.int64), len(tokens))[0],
        tokens.read_offsets(),
    )
    return [text[a:b].tolist() for a, b in pairwise(offsets)]


def build_stream(
    *arrays: TokenArray,
    kind: str = "causal",
    length: int = LENGTH,
    sequences: str = "packed",
    log=print,
    **options,
) -> Stream:
    return Stream(
        arrays,
        weights=[1.0] * len(arrays),
        names=[f"s{number}" for number in range(len(arrays))],
        objective=build_objective(kind, length, **options),
        schedule=BatchSchedule(8),
        seed=3,
        sequences=sequences,
        log=log,
    )


def read_epoch(stream: Stream, epoch: int = 0) -> Batch:
    rows = len(stream.row_arrays[0])
    return stream.make_batch(epoch * rows + np.arange(rows))


def segments_of(tokens: np.ndarray, segments: np.ndarray) -> list[list[int]]:
    """Return the tokens of each segment, row by row."""
    return [
        row[numbers == number].tolist()
        for row, numbers in zip(tokens, segments, strict=True)
        for number in range(1, numbers.max() + 1)
    ]


# The algorithm


def slow_best_fit(sizes: list[int], capacity: int) -> list[int]:
    """Return the room that each row has left, by the definition."""
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms[rooms.index(min(fitting))] -= size
        else:
            rooms.append(capacity - size)
    return sorted(rooms)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_go_where_they_leave_the_least_room(seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(10, 200))
    sizes = rng.integers(max(1, capacity // 20), capacity + 1, 300)
    rows = best_fit_decreasing(sizes, capacity)
    rooms = capacity - np.bincount(rows, weights=sizes)
    assert sorted(rooms.astype(int).tolist()) == slow_best_fit(sizes.tolist(), capacity)


@pytest.mark.parametrize("shares_rows", [True, False])
def test_every_token_is_in_one_row(shares_rows):
    layout = build_objective("causal", LENGTH).packed
    lengths = random_lengths(500)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = pack(offsets, layout, shares_rows=shares_rows)
    covered = np.repeat(rows.starts, rows.lengths) + ragged_range(rows.lengths)
    assert np.array_equal(np.sort(covered), np.arange(offsets[-1]))
    filled = np.add.reduceat(rows.lengths, rows.firsts[:-1])
    assert filled.max() <= LENGTH
    if shares_rows:
        assert filled.sum() / (rows.rows * LENGTH) > 0.99


# Batches


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> TokenArray:
    return write_documents(tmp_path_factory.mktemp("store"), random_lengths(300))


def test_causal_rows_hold_each_token_as_a_target_once(tokens):
    """The first token of a document follows an end of text, never the text of another one."""
    batch = read_epoch(build_stream(tokens))
    documents = read_documents(tokens)
    targets = segments_of(batch.targets, batch.segments)
    inputs = segments_of(batch.tokens, batch.segments)
    whole = [(x, y) for x, y in zip(inputs, targets, strict=True) if x[0] == END]
    assert all(x[1:] == y[:-1] for x, y in whole)
    assert sorted(y for _, y in whole if y[-1] == END) == sorted(
        document for document in documents if len(document) <= LENGTH
    )

    assert np.array_equal(batch.weights, batch.segments > 0)
    assert sorted(batch.targets[batch.segments > 0]) == sorted(chain(*documents))
    positions = segments_of(batch.positions, batch.segments)
    assert all(found == list(range(len(found))) for found in positions)


def test_framed_documents_stand_between_begin_and_end(tokens):
    batch = read_epoch(
        build_stream(tokens, kind="masked", vocabulary=FRAMED, mask_share=0.0, random_share=0.0)
    )
    documents = segments_of(batch.tokens, batch.segments)
    assert all(x[0] == BEGIN and x[-1] == END and END not in x[:-1] for x in documents)
    text = list(chain(*(x[1:-1] for x in documents)))
    assert sorted(text) == sorted(token for x in read_documents(tokens) for token in x[:-1])
    assert (batch.tokens[batch.segments == 0] == PAD).all()

    rows = np.arange(len(batch.tokens))[:, None]
    is_target = batch.weights > 0
    assert np.array_equal(batch.tokens[rows, batch.predict][is_target], batch.targets[is_target])
    assert (batch.targets[is_target] >= FIRST_ORDINARY).all()
    share = is_target.sum() / len(text)
    assert abs(share - 0.15) < 0.02


def test_each_document_is_corrupted_on_its_own(tokens):
    """Segment i of the target holds what segment i of the source lacks, as T5's format has it."""
    batch = read_epoch(build_stream(tokens, kind="span", length=40, noise_share=0.3))
    sources = segments_of(batch.source, batch.source_segments)
    targets = segments_of(batch.targets, batch.segments)
    inputs = segments_of(batch.tokens, batch.segments)
    assert len(sources) == len(targets) > 300

    restored = []
    for source, target, decoder in zip(sources, targets, inputs, strict=True):
        assert source[-1] == target[-1] == END and decoder == [PAD, *target[:-1]]
        spans, current = {}, []
        for token in target[:-1]:
            if token < FIRST_ORDINARY:
                current = spans[token] = []
            else:
                current.append(token)
        assert list(spans) == list(range(4, 4 + len(spans))) and all(spans.values())
        restored.append(list(chain(*(spans.get(token, [token]) for token in source[:-1]))))
    text = {tuple(document[:-1]) for document in read_documents(tokens) if 3 <= len(document) < 45}
    assert text <= {tuple(document) for document in restored}


@pytest.mark.parametrize("vocabulary", [FRAMED, VOCABULARY], ids=["framed", "plain"])
def test_infilled_documents_keep_to_their_segments(tokens, vocabulary):
    batch = read_epoch(build_stream(tokens, kind="infilling", vocabulary=vocabulary))
    sources = segments_of(batch.source, batch.source_segments)
    targets = segments_of(batch.targets, batch.segments)
    assert len(sources) == len(targets) > 300
    for source, target in zip(sources, targets, strict=True):
        assert source[-1] == target[-1] or vocabulary is VOCABULARY  # the rest of a part
        assert not Counter(token for token in source if token != MASK) - Counter(target)
        assert vocabulary is VOCABULARY or source[0] == target[0] == BEGIN
        assert END not in source[:-1]

    positions = segments_of(batch.source_positions, batch.source_segments)
    assert all(found == list(range(len(found))) for found in positions)
    text, kept = (sum(token >= FIRST_ORDINARY for token in chain(*x)) for x in (targets, sources))
    assert abs(1 - kept / text - 0.3) < 0.02


@pytest.mark.parametrize("kind", ["causal", "masked", "span", "infilling"])
def test_a_row_does_not_depend_on_its_batch(tokens, kind):
    stream = build_stream(tokens, kind=kind)
    rows = [stream.rows(5, start, start + 2) for start in (0, 2, 4, 6)]
    joined = (
        None if values[0] is None else np.concatenate(values) for values in zip(*rows, strict=True)
    )
    assert batches_equal(Batch(*joined), stream[5])


@pytest.mark.parametrize("sequences", ["packed", "documents"])
@pytest.mark.parametrize("kind", ["causal", "masked", "span", "infilling"])
def test_the_example_has_the_shapes_of_a_batch(tokens, kind, sequences):
    objective = config.ObjectiveConfig(kind=kind)
    example = objectives.example(objective, LENGTH, len(VOCABULARY.sentinels), sequences)
    batch = build_stream(tokens, kind=kind, sequences=sequences)[0]
    for name, array in batch._asdict().items():
        expected = getattr(example, name)
        assert (array is None) == (expected is None), name
        if array is not None:
            assert (array.dtype, array.shape[1:]) == (expected.dtype, expected.shape[1:]), name
            assert array.flags.c_contiguous, name


def test_epochs_have_the_same_rows_in_another_order(tokens):
    stream = build_stream(tokens)
    first, second = (read_epoch(stream, epoch).targets.tolist() for epoch in (0, 1))
    assert first != second and sorted(first) == sorted(second)


@pytest.mark.parametrize("kind", ["causal", "masked", "span", "infilling"])
def test_documents_have_rows_of_their_own(tokens, kind):
    packed, batch = (
        read_epoch(build_stream(tokens, kind=kind, sequences=sequences))
        for sequences in ("packed", "documents")
    )
    assert batch.segments is None and batch.positions is None
    columns = np.arange(batch.tokens.shape[1])
    assert len(batch.tokens) == sum(row.max() for row in packed.segments)
    if kind == "causal":
        assert np.array_equal(batch.weights > 0, columns < batch.lengths[:, None])
    if kind == "span":
        assert batch.source_segments is None
        assert (batch.source[np.arange(len(batch.source)), batch.source_lengths - 1] == END).all()


def test_sources_are_mixed_row_by_row(tmp_path):
    """Both sources have the same offsets, so that only the shards tell them apart."""
    lengths = random_lengths(200)
    arrays = [write_documents(tmp_path / str(seed), lengths, seed) for seed in (1, 2)]
    mixed = build_stream(*arrays)
    alone = [read_epoch(build_stream(array)).targets.tolist() for array in arrays]
    rows = np.concatenate([mixed[step].targets for step in range(6)]).tolist()
    found = [sum(row in rows for row in texts) for texts in alone]
    assert found == [24, 24] and all(row in alone[0] + alone[1] for row in rows)


# The file


def test_a_packing_is_written_once_and_read_by_others(tmp_path):
    array = write_documents(tmp_path, random_lengths(100))
    first = build_stream(array)[0]
    (path,) = tmp_path.glob("*packing*")
    written = path.stat().st_mtime_ns
    assert batches_equal(build_stream(array)[0], first)
    assert path.stat().st_mtime_ns == written
    build_stream(array, length=LENGTH + 1)
    assert len(list(tmp_path.glob("*packing*"))) == 2

    path.write_bytes(path.read_bytes()[:-8])
    assert read_packing(path) is None
    assert batches_equal(build_stream(array)[0], first)


def test_a_folder_that_cannot_be_written_keeps_the_packing_in_memory(tmp_path, monkeypatch):
    array, lines = write_documents(tmp_path, random_lengths(100)), []
    expected = build_stream(array)[0]
    (path,) = tmp_path.glob("*packing*")
    path.unlink()

    def refuse(path: Path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("jaxlm.data.packing.atomic_writer", refuse)
    assert batches_equal(build_stream(array, log=lines.append)[0], expected)
    assert "kept in memory" in lines[0] and "Permission denied" in lines[0]
    assert lines[1].startswith("source 's0': 1") and len(lines) == 2


def test_a_damaged_packing_is_named(tmp_path):
    array = write_documents(tmp_path, random_lengths(100))
    stream = build_stream(array)
    packing = stream.row_arrays[0].packing
    damaged = packing._replace(starts=packing.starts + len(array))
    stream.row_arrays[0].packing = damaged
    with pytest.raises(UserError, match=r"train-0-packing-\*\.npy beside it is damaged"):
        stream[0]


@pytest.mark.parametrize("sequences", ["packed", "documents"])
def test_a_source_without_a_document_to_learn_from_is_refused(tmp_path, sequences):
    array = write_documents(tmp_path, np.full(10, 2))  # a token and its end have no span
    with pytest.raises(ConfigError, match=r"^data\.sequences: .*'s0' has no document"):
        build_stream(array, kind="span", sequences=sequences)


@pytest.mark.parametrize("kind", ["prefix", "pairs"])
def test_an_objective_without_rows_is_refused(tokens, kind):
    with pytest.raises(ConfigError, match=r"^data\.sequences: 'packed' does not exist"):
        build_stream(tokens, kind=kind)


def test_a_million_documents_take_less_than_a_tenth_of_a_byte_each(tmp_path):
    """Offsets and packing are mapped: what is read of them is in the page cache."""
    count = 1_000_000
    array = write_numbered(tmp_path, 10)
    lengths = np.random.default_rng(0).integers(1, 600, count)
    path = tmp_path / "long.offsets"
    np.concatenate([[0], np.cumsum(lengths)]).astype("<i8").tofile(path)
    array.offsets, array.documents, array.ends = path, count, (int(lengths.sum()),)

    layout = build_objective("causal", 1024).packed
    open_rows(array, layout, shares_rows=True, log=print)  # writes the file
    tracemalloc.start()
    try:
        rows, offsets = open_rows(array, layout, shares_rows=True, log=print), array.read_offsets()
        allocated, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert allocated < count / 10
    assert rows.packing.lengths.sum() == offsets[-1] and offsets[-1] > 0.99 * 1024 * len(rows)
