"""Random configs train, save and resume with finite losses, or are refused in one line."""

import os

import pytest
from support import random_configs
from support.random_configs import KEPT, LEAVES, check_seed, draw_config

QUICK = (
    pytest.param(0, marks=pytest.mark.slow),
    17,
    pytest.param(20, marks=pytest.mark.slow),
    pytest.param(26, marks=pytest.mark.slow),
)
CAMPAIGN = range(100, 300)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with the inputs of the configs. XLA_FLAGS, which some set, are restored."""
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    random_configs.write_inputs(tmp_path)
    return tmp_path


def test_the_random_configs_vary_every_key():
    values = {key: set() for key in LEAVES if key not in KEPT}
    for seed in CAMPAIGN:
        for key, value in draw_config(seed)[0].items():
            values[key].add(str(value))
    assert not [key for key, seen in values.items() if len(seen) < 2]


@pytest.mark.parametrize("seed", QUICK)
def test_a_random_config_trains_and_resumes_or_is_refused(folder, seed):
    check_seed(folder, seed)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", CAMPAIGN)
def test_one_of_200_random_configs_trains_and_resumes_or_is_refused(folder, capfd, seed):
    outcome = check_seed(folder, seed)
    with capfd.disabled():
        print(f"\nseed {seed}: {outcome}")
