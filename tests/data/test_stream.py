import itertools
from pathlib import Path

import numpy as np
import pytest
from support.token_arrays import UINT32, batches_equal, write_array, write_numbered

from jaxlm.config import ConfigError
from jaxlm.data.loader import prefetch_batches
from jaxlm.data.schedule import BatchSchedule
from jaxlm.data.shards import TokenArray
from jaxlm.data.stream import BLOCK, Stream
from jaxlm.objectives import Objective
from jaxlm.types import Batch


def causal(length: int) -> Objective:
    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        weights = np.ones((len(windows), length), np.float32)
        return Batch(tokens=windows[:, :-1], targets=windows[:, 1:], weights=weights)

    return Objective(
        window=length + 1,
        stride=length,
        length=length,
        source_length=0,
        predictions=length,
        make_batch=make_batch,
        random=False,
    )


def recording(window: int, stride: int) -> Objective:
    """Return an objective whose batches show the tokens, samples and seed that it was given."""

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        weights = np.full(windows.shape, seed, np.float32)
        return Batch(tokens=windows, lengths=samples, weights=weights)

    return Objective(
        window=window,
        stride=stride,
        length=window,
        source_length=0,
        predictions=window,
        make_batch=make_batch,
    )


def build_stream(
    *arrays: TokenArray,
    objective=None,
    schedule: BatchSchedule | None = None,
    seed: int = 0,
    weights=None,
) -> Stream:
    return Stream(
        arrays,
        weights=weights or [1.0] * len(arrays),
        names=[f"s{i}" for i in range(len(arrays))],
        objective=objective or causal(10),
        schedule=schedule or BatchSchedule(4),
        seed=seed,
    )


def join_tokens(batches: list[Batch]) -> np.ndarray:
    return np.concatenate([batch.tokens for batch in batches])


@pytest.mark.parametrize(("count", "length"), [(101, 10), (110, 10), (111, 10), (11, 10), (64, 1)])
def test_an_epoch_covers_every_full_window_once(tmp_path, count, length):
    windows = (count - 1) // length
    stream = build_stream(
        write_numbered(tmp_path, count), objective=causal(length), schedule=BatchSchedule(1)
    )
    first = join_tokens([stream[t] for t in range(windows)])
    assert np.array_equal(np.sort(first[:, 0]), np.arange(windows) * length)
    assert np.array_equal(first, first[:, :1] + np.arange(length))


def test_later_epochs_are_other_cuts_in_another_order(tmp_path):
    count, length = 1005, 10
    windows = (count - 1) // length
    stream = build_stream(
        write_numbered(tmp_path, count), objective=causal(length), schedule=BatchSchedule(windows)
    )
    starts = [np.asarray(stream[epoch].tokens)[:, 0] for epoch in range(12)]
    phases = {int(np.median(start % length)) for start in starts}
    assert len(phases) > 4  # of 10 possible phases, in 12 draws
    for start in starts:
        phase = int(np.median(start % length))
        expected = np.minimum(np.arange(windows) * length + phase, count - length - 1)
        assert np.array_equal(np.sort(start), expected)
    assert not np.array_equal(np.argsort(starts[0]), np.argsort(starts[1]))
    assert starts[0][0] != np.sort(starts[0])[0] or starts[0][1] != np.sort(starts[0])[1]


def test_targets_follow_tokens_also_across_shards(tmp_path):
    batch = build_stream(write_numbered(tmp_path, 500))[3]
    assert np.array_equal(np.asarray(batch.targets), np.asarray(batch.tokens) + 1)
    assert np.asarray(batch.weights).min() == 1


@pytest.mark.parametrize(
    "schedule",
    [
        BatchSchedule(1),
        BatchSchedule(5),
        BatchSchedule(3, ((2, 7), (9, 64))),
        BatchSchedule(2, ((4, 1500),)),
    ],
)
def test_samples_do_not_depend_on_the_batches(tmp_path, schedule):
    arrays = write_numbered(tmp_path / "a", 900), write_numbered(tmp_path / "b", 333, first=5000)
    at_once = build_stream(*arrays, schedule=BatchSchedule(2 * BLOCK), weights=[2, 1])[0]
    steps = next(step for step in itertools.count() if schedule.first_sample(step) >= 300)
    cut = join_tokens(
        [build_stream(*arrays, schedule=schedule, weights=[2, 1])[t] for t in range(steps)]
    )
    assert np.array_equal(cut, np.asarray(at_once.tokens)[: len(cut)])


def test_rows_are_slices_of_the_global_batch(tmp_path):
    stream = build_stream(
        write_numbered(tmp_path / "a", 900),
        write_numbered(tmp_path / "b", 333),
        schedule=BatchSchedule(12, ((5, 1100),)),
    )
    for step in (0, 1, 4, 5, 6):
        batch, size = stream[step], stream.schedule.size(step)
        for processes in (1, 2, 4):
            rows = [
                stream.rows(step, size * p // processes, size * (p + 1) // processes)
                for p in range(processes)
            ]
            assert np.array_equal(join_tokens(rows), batch.tokens)
            fields = (None if value is None else value[: size // processes] for value in batch)
            assert batches_equal(rows[0], Batch(*fields))


def test_stream_is_a_function_of_seed_and_step(tmp_path):
    tokens = write_numbered(tmp_path, 900)
    one, two = build_stream(tokens), build_stream(tokens)
    forward = [one[t] for t in range(50)]
    backward = [two[t] for t in reversed(range(50))][::-1]
    assert all(map(batches_equal, forward, backward))
    assert not batches_equal(build_stream(tokens, seed=1)[0], forward[0])
    assert not batches_equal(forward[0], forward[1])


def test_two_sources_appear_by_weight_and_each_in_its_own_order(tmp_path):
    big, small = (
        write_numbered(tmp_path / "a", 3001),
        write_numbered(tmp_path / "b", 501, first=10_000),
    )
    tokens = join_tokens(
        [build_stream(big, small, weights=[3, 1], schedule=BatchSchedule(64))[t] for t in range(25)]
    )
    is_small = tokens[:, 0] >= 10_000
    assert is_small.sum() == 400
    assert np.abs(np.cumsum(is_small) - np.arange(1, 1601) / 4).max() < 2  # evenly all along
    alone = join_tokens([build_stream(big, schedule=BatchSchedule(64))[t] for t in range(4)])
    assert np.array_equal(tokens[~is_small][:256], alone)
    own = tokens[is_small][:50, 0]
    assert np.array_equal(np.sort(own), 10_000 + np.arange(50) * 10)


@pytest.mark.parametrize(
    ("count", "window", "stride"),
    [(100, 10, 10), (109, 10, 10), (105, 12, 10), (57, 8, 3), (8, 8, 3), (23, 4, 9)],
)
def test_windows_begin_a_stride_apart(tmp_path, count, window, stride):
    expected = np.arange(0, count - window + 1, stride)
    stream = build_stream(
        write_numbered(tmp_path, count),
        objective=recording(window, stride),
        schedule=BatchSchedule(len(expected)),
    )
    for epoch in range(3):
        tokens = stream[epoch].tokens
        assert np.array_equal(tokens, tokens[:, :1] + np.arange(window))
        phase = tokens[:, 0].min()
        assert phase == 0 if epoch == 0 else phase < stride
        assert np.array_equal(np.sort(tokens[:, 0]), np.minimum(expected + phase, count - window))


def test_objectives_get_the_numbers_of_their_samples_and_the_seed(tmp_path):
    stream = build_stream(
        write_numbered(tmp_path, 100),
        objective=recording(5, 5),
        schedule=BatchSchedule(3, ((2, 8),)),
        seed=7,
    )
    assert np.array_equal(np.asarray(stream[3].lengths), np.arange(14, 22))
    assert np.array_equal(np.asarray(stream.rows(3, 2, 4).lengths), [16, 17])
    assert (stream[3].weights == 7).all()


def test_samples_are_fixed_for_ever(tmp_path):
    """A run that resumes must see the same data.

    Sample 699 comes after the first epoch of either source.
    """
    arrays = write_numbered(tmp_path / "a", 1003), write_numbered(tmp_path / "b", 777, first=5000)
    stream = build_stream(*arrays, weights=[2, 1], schedule=BatchSchedule(7), seed=3)
    assert stream[0].tokens[:, 0].tolist() == [340, 5010, 730, 200, 5690, 930, 760]
    assert stream[99].tokens[:, 0].tolist() == [426, 5667, 706, 876, 5497, 356, 976]


def test_corpus_shorter_than_a_window_is_refused(tmp_path):
    reason = (
        r"^data\.sequence_length: a window takes 11 tokens, "
        r"but the training split of source 's1' has 10$"
    )
    with pytest.raises(ConfigError, match=reason):
        build_stream(write_numbered(tmp_path / "a", 11), write_numbered(tmp_path / "b", 10))


@pytest.mark.parametrize("threads", [1, 4])
def test_loader_yields_the_steps_in_order(tmp_path, threads):
    stream = build_stream(write_numbered(tmp_path, 2000), schedule=BatchSchedule(4, ((20, 6),)))
    loaded = list(prefetch_batches(stream, 7, 40, threads=threads, buffer=3))
    assert len(loaded) == 33
    assert all(
        isinstance(batch, Batch) and batches_equal(batch, stream[7 + i])
        for i, batch in enumerate(loaded)
    )
    assert list(prefetch_batches(stream, 5, 5, threads=threads, buffer=3)) == []


def test_loader_passes_errors_on(tmp_path):
    class Failing:
        def __len__(self):
            return 10

        def __getitem__(self, index: int) -> Batch:
            if index == 3:
                raise ConfigError("data", "broken")
            return Batch(tokens=np.array([index]))

    batches = prefetch_batches(Failing(), 0, 10, threads=2, buffer=2)
    assert [int(next(batches).tokens[0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ConfigError, match="data: broken"):
        next(batches)


def resident_kilobytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    tokens = write_array(tmp_path, np.zeros(1 << 24, UINT32))  # 64 MB
    stream = build_stream(tokens, objective=causal(1024), schedule=BatchSchedule(32))
    stream[0]
    before = resident_kilobytes()
    for step in range(1, 512):  # one epoch: every page is read
        stream[step]
    assert resident_kilobytes() - before < 8_000


@pytest.mark.parametrize(("last", "expected"), [(None, False), (0, True), (63, True), (64, False)])
def test_samples_without_targets_are_noticed(tmp_path, last, expected):
    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        weights = np.zeros(windows.shape, np.float32)
        weights[samples == last] = 1
        return Batch(tokens=windows, weights=weights)

    objective = recording(10, 10)._replace(make_batch=make_batch)
    assert (
        build_stream(write_numbered(tmp_path, 900), objective=objective).has_targets() == expected
    )
