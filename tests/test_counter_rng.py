import numpy as np

from jaxlm import counter_rng


def test_mixing_is_that_of_splitmix64():
    # The published generator (Vigna, splitmix64.c) adds the golden gamma to its state, here from 0
    # on, and mixes it.
    state = np.array([counter_rng.GOLDEN, 2 * int(counter_rng.GOLDEN) % 2**64], np.uint64)
    assert counter_rng.mix(state).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_bits_depend_on_the_four_coordinates_alone():
    samples, positions = np.arange(50)[:, None], np.arange(70)
    grid = counter_rng.random_bits(7, samples, counter_rng.PHASE, positions)
    assert grid.shape == (50, 70)
    assert grid.dtype == np.uint64
    assert grid[13, 20] == counter_rng.random_bits(7, 13, counter_rng.PHASE, 20)
    assert np.array_equal(
        grid[10:20, 30:],
        counter_rng.random_bits(
            7, np.arange(10, 20)[:, None], counter_rng.PHASE, np.arange(30, 70)
        ),
    )
    others = [
        (8, counter_rng.PHASE),
        (7, counter_rng.SHUFFLE),
        (7, counter_rng.PHASE + 1),
        (7 + 2**33, counter_rng.PHASE),
    ]
    drawn = np.concatenate(
        [
            grid.ravel(),
            *(
                counter_rng.random_bits(seed, samples, stream, positions).ravel()
                for seed, stream in others
            ),
        ]
    )
    assert len(np.unique(drawn)) == len(drawn)


def test_all_bits_are_fair():
    values = counter_rng.random_bits(
        0, np.arange(100)[:, None], counter_rng.PHASE, np.arange(100)
    ).ravel()
    ones = np.unpackbits(values.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert abs(ones - 0.5).max() < 5 * 0.005  # 10,000 draws a bit: standard deviation 0.005
    neighbours = np.unpackbits((values[1:] ^ values[:-1]).view(np.uint8)).mean()
    assert abs(neighbours - 0.5) < 5 * 0.5 / np.sqrt(64 * 9_999)


def test_bits_are_fixed_for_ever():
    """A changed constant would silently reshuffle every old run when it resumes."""
    assert [int(counter_rng.random_bits(0, 0, 0, 0)), int(counter_rng.random_bits(1, 2, 3, 4))] == [
        0x2130748AAAC80268,
        0x848324AFF46FF61D,
    ]
