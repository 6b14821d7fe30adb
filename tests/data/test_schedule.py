import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config import ConfigError, DataConfig, SourceConfig, TokenizerConfig
from jaxlm.data import prepare
from jaxlm.data.mixture import PERIODS, Mixture
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


PERIOD, FINE_PERIOD = PERIODS
weights = st.lists(st.floats(0.1, 100), min_size=1, max_size=5)


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
    [
        ([3, 1], [3072, 1024]),
        ([1, 1, 2], [1024, 1024, 2048]),
        ([4095, 1], [4095, 1]),
        ([5], [4096]),
    ],
)
def test_mixture_slots(values, slots):
    assert Mixture(values).slots.tolist() == slots


def test_mixture_far_into_a_run():
    far = np.array([10**15 * PERIOD + 1])
    source, count = Mixture([3, 1])(far)
    assert count[0] == 10**15 * [3072, 1024][source[0]] + Mixture([3, 1])(np.array([1]))[1][0]


def test_small_shares_are_exact_to_a_finer_period():
    mixture = Mixture([1, 1e-5])
    assert mixture.slots.tolist() == [FINE_PERIOD - 42, 42]
    assert mixture.slots[1] / mixture.period == pytest.approx(1e-5, rel=0.01)
    sources, numbers = mixture(np.arange(3 * FINE_PERIOD))
    assert np.flatnonzero(sources)[:2].tolist() == pytest.approx([5e4, 1.5e5], rel=0.02)
    assert numbers[sources == 1].tolist() == list(range(126))
    assert mixture.count_samples(3 * FINE_PERIOD) == [3 * FINE_PERIOD - 126, 126]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [1, 1e-8],
            "data.sources.1.weight: 1e-08 is 1e-08 of the sum of all weights, which is less than 1 "
            "sample in 4,194,304: raise it or leave the source out",
        ),
        ([1e-300, 1, 1], "data.sources.0.weight: 1e-300 is 5e-301 of the sum of all weights"),
        ([5e-324, 1], "data.sources.0.weight: 4.94066e-324 is 4.9e-324 of the sum"),
        ([1, 1e300], "data.sources.0.weight: 1 is 1e-300 of the sum of all weights"),
    ],
)
def test_a_share_that_is_too_small_is_refused_with_numbers(values, message):
    with pytest.raises(ConfigError) as error:
        Mixture(values)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("values", "digest"),
    [
        ([3, 1], "66d462d50683cb1a"),
        ([0.7, 0.2, 0.1], "0e3e9efc86474be8"),
        ([1, 1, 1], "b06b4236c97f8f88"),
        ([1000, 1], "269a714345796846"),
        ([10, 7.5, 1e-2], "fa56dc828e1c3a33"),
    ],
)
def test_mixtures_are_fixed_for_ever(values, digest):
    """A run that is resumed must go on with the samples that are next."""
    sources, numbers = Mixture(values)(np.arange(10_000) + 123_456)
    content = sources.astype("<i8").tobytes() + numbers.astype("<i8").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_weights_are_looked_at_before_the_text(tmp_path):
    sources = [
        SourceConfig(name=name, path=str(tmp_path / "none"), weight=weight)
        for name, weight in (("a", 1.0), ("b", 1e-9))
    ]
    data = DataConfig(sources=tuple(sources), store=str(tmp_path / "stores"))
    with pytest.raises(ConfigError, match=r"^data\.sources\.1\.weight: 1e-09 is 1e-09 of the sum"):
        prepare(data, TokenizerConfig(kind="bytes"), 300, print)
