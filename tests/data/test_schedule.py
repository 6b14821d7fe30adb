import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.mixture import PERIOD, Mixture
from jaxlm.data.permutation import permute
from jaxlm.data.schedule import BatchSchedule

sizes = st.integers(1, 64)
schedules = st.builds(
    lambda size, changes: BatchSchedule(size, tuple(sorted(changes.items()))),
    sizes,
    st.dictionaries(st.integers(1, 40), sizes, max_size=4),
)


def counted_size(schedule: BatchSchedule, step: int) -> int:
    size = schedule.batch_size
    for start, changed in schedule.changes:
        if step >= start:
            size = changed
    return size


@settings(deadline=None)
@given(schedules)
def test_schedule_equals_counting(schedule):
    counted = np.cumsum([0] + [counted_size(schedule, step) for step in range(60)]).tolist()
    assert [schedule.size(step) for step in range(60)] == [
        counted_size(schedule, step) for step in range(60)
    ]
    assert [schedule.first_sample(step) for step in range(61)] == counted


@settings(deadline=None)
@given(schedules, schedules, st.integers(0, 45))
def test_merged_schedule_is_one_before_the_step_and_the_other_after(schedule, other, step):
    merged = schedule.merged(other, step)
    assert [merged.size(t) for t in range(60)] == [
        (schedule if t < step else other).size(t) for t in range(60)
    ]
    values = [merged.batch_size, *(size for _, size in merged.changes)]
    assert all(a != b for a, b in itertools.pairwise(values))
    assert [start for start, _ in merged.changes] == sorted(
        {start for start, _ in merged.changes} - {0}
    )
    assert BatchSchedule(*merged) == merged


def test_schedule_is_exact_beyond_64_bits():
    schedule = BatchSchedule(3, ((10, 2**40 + 1),))
    assert schedule.first_sample(2**70) == 30 + (2**70 - 10) * (2**40 + 1)


def images(size: int, seed: int = 0, source: int = 0, epoch: int = 0) -> np.ndarray:
    return permute(np.arange(size), size, seed, source, np.full(size, epoch))


@settings(deadline=None)
@given(
    st.one_of(st.sampled_from([1, 2, 3, 4, 997, 1000, 65537]), st.integers(1, 5000)),
    st.integers(0, 2**70),
    st.integers(0, 2**40),
)
def test_permutation_is_a_bijection(size, seed, epoch):
    assert np.array_equal(np.sort(images(size, seed, 3, epoch)), np.arange(size))


def test_permutation_depends_on_seed_source_and_epoch():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({tuple(images(1000, *key)) for key in keys}) == len(keys)


def test_permutation_of_mixed_epochs_and_huge_sizes():
    index, epochs = np.array([5, 5, 7]), np.array([0, 3, 3])
    mixed = permute(index, 1000, 1, 0, epochs)
    assert mixed.tolist() == [images(1000, 1, 0, e)[i] for i, e in zip(index, epochs, strict=True)]
    size = 10**13 + 7
    far = permute(np.arange(1000), size, 1, 0, np.zeros(1000, np.int64))
    assert len(set(far.tolist())) == 1000
    assert 0 <= far.min() < size / 100
    assert size * 0.99 < far.max() < size


def test_permutation_is_uniform():
    # Element 0 of 7 lands in each place Binomial(7000, 1/7) times, 1000 +- 29. The bound is 6
    # standard deviations.
    landed = permute(np.zeros(7000, np.int64), 7, 0, 0, np.arange(7000))
    assert abs(np.bincount(landed, minlength=7) - 1000).max() < 6 * 29
    # Neighbours end up far apart: the mean distance of two random elements of 10,000 is 3,333, with
    # a standard error of 24 over 9,999 pairs.
    assert abs(np.abs(np.diff(images(10_000))).mean() - 3333) < 6 * 24


weights = st.lists(st.floats(0.01, 100), min_size=1, max_size=5)


@settings(deadline=None, max_examples=30)
@given(weights, st.integers(0, 3 * PERIOD))
def test_mixture_equals_counting(values, first):
    mixture, stop = Mixture(values), first + 500
    sources, counts = mixture(np.arange(stop))
    seen = np.zeros(len(values), np.int64)
    for source, count in zip(sources.tolist(), counts.tolist(), strict=True):
        assert count == seen[source]
        seen[source] += 1
    window = mixture(np.arange(first, stop))
    assert np.array_equal(window, (sources[first:], counts[first:]))


@settings(deadline=None)
@given(weights)
def test_mixture_has_the_shares_and_spreads_them(values):
    mixture, ideal = Mixture(values), np.array(values) / sum(values)
    assert mixture.slots.sum() == PERIOD
    assert (mixture.slots >= 1).all()
    assert (np.abs(mixture.slots - ideal * PERIOD) < len(values)).all()
    chosen = mixture(np.arange(PERIOD))[0][:, None] == np.arange(len(values))
    drift = np.cumsum(chosen, axis=0) - np.arange(1, PERIOD + 1)[:, None] * mixture.slots / PERIOD
    # Samples ahead of the exact share, or behind it, anywhere in the run.
    assert np.abs(drift).max() < len(values)


@pytest.mark.parametrize(
    ("values", "slots"),
    [([3, 1], [3072, 1024]), ([1, 1, 2], [1024, 1024, 2048]), ([1e9, 1], [4095, 1]), ([5], [4096])],
)
def test_mixture_slots(values, slots):
    assert Mixture(values).slots.tolist() == slots


def test_mixture_far_into_a_run():
    far = np.array([10**15 * PERIOD + 1])
    source, count = Mixture([3, 1])(far)
    assert count[0] == 10**15 * [3072, 1024][source[0]] + Mixture([3, 1])(np.array([1]))[1][0]
