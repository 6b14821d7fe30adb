"""The variants of a config that a sweep compiles."""

from dataclasses import replace

import pytest
from support import tiny

from jaxlm import hardware
from jaxlm.config import ConfigError, ParallelConfig, UserError
from jaxlm.plan.step_sweep import SWEPT, SweepValues, list_variants, parse_values

EIGHT = hardware.parse_cluster("h100:8")
ONE = hardware.parse_cluster("rtx4090")


def shapes(config, cluster, values) -> list[tuple]:
    """Return what the variants differ in."""
    return [
        (v.parallel.zero, v.parallel.tensor, v.training.microbatches, v.parallel.remat)
        for v in list_variants(config, cluster, values)
    ]


def test_values_that_are_named_are_all_compiled():
    values = SweepValues((1, 3), (1, 2), (1, 2), ("none", "full"))
    found = shapes(tiny.CONFIG, EIGHT, values)
    assert len(found) == len(set(found)) == 16
    assert (3, 2, 2, "full") in found


def test_what_the_config_refuses_is_left_out():
    """16 sequences over 8 GPUs are 2 rows, over 4 groups of two GPUs 4."""
    found = shapes(tiny.CONFIG, EIGHT, SweepValues((0,), (1, 2), (1, 4), ("none",)))
    assert found == [(0, 1, 1, "none"), (0, 2, 1, "none"), (0, 2, 4, "none")]


def test_where_nothing_fits_the_reason_is_told():
    with pytest.raises(ConfigError, match=r"parallel\.tensor: 8 does not divide model\.heads"):
        list_variants(tiny.CONFIG, EIGHT, SweepValues(tensor=(8,)))


def test_by_default_the_extremes_are_compared_with_the_config_s_own_values():
    config = replace(
        tiny.CONFIG,
        parallel=ParallelConfig(remat="dots"),
        training=replace(tiny.CONFIG.training, batch_size=64, microbatches=2),
    )
    found = shapes(config, EIGHT, SweepValues())
    assert {stage for stage, *_ in found} == {0, 1, 2, 3}
    assert {remat for *_, remat in found} == {"none", "full", "dots"}
    assert {(tensor, count) for _, tensor, count, _ in found} == {
        (1, 1), (1, 2), (1, 8), (2, 1), (2, 2), (2, 16),
    }  # fmt: skip


def test_on_one_gpu_stages_and_tensor_sizes_are_not_compared():
    found = shapes(tiny.CONFIG, ONE, SweepValues(remat=("none",)))
    assert found == [(0, 1, 1, "none"), (0, 1, 16, "none")]


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("zero", "0,3", (0, 3)),
        ("tensor", "1,2,2", (1, 2)),
        ("microbatches", "8", (8,)),
        ("remat", "none,full", ("none", "full")),
    ],
)
def test_values_are_listed_with_commas(name, text, values):
    assert parse_values(name, text) == values
    assert name in SWEPT


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("zero", "4", "--zero: a stage is 0, 1, 2 or 3, got '4'"),
        ("zero", "", "--zero: a stage is 0, 1, 2 or 3, got ''"),
        ("tensor", "0", "--tensor: must be whole numbers above 0, as in 1,2, got '0'"),
        ("microbatches", "1;2", "--microbatches: must be whole numbers above 0"),
        ("microbatches", "9" * 20, "--microbatches: must be whole numbers above 0"),
        ("remat", "ful", "--remat: there is no policy 'ful' (did you mean 'full'?)"),
    ],
)
def test_a_mistake_names_the_option(name, text, message):
    with pytest.raises(UserError) as caught:
        parse_values(name, text)
    assert str(caught.value).startswith(message)
