"""The parts of a run follow its config."""

from dataclasses import replace

import pytest
from support import tiny

from jaxlm import models, runtime
from jaxlm.config import (
    ConfigError,
    ObjectiveConfig,
    RuntimeConfig,
)
from jaxlm.run import build_run, check_memory, describe_loss


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_deterministic_run_says_so_to_the_choice_of_kernels(deterministic):
    runtime = RuntimeConfig(devices=1, deterministic=deterministic)
    run = build_run(replace(tiny.CONFIG, runtime=runtime), first_step=0)
    assert run.execution.deterministic is deterministic


@pytest.mark.parametrize(("noise_share", "needed"), [(0.9, 82), (0.7, 33)])
def test_samples_that_are_longer_than_the_learned_positions_are_refused(noise_share, needed):
    config = replace(
        tiny.ENCODER_DECODER,
        model=replace(tiny.ENCODER_DECODER.model, positions="learned", context_length=needed),
        objective=ObjectiveConfig(kind="span", noise_share=noise_share, mean_span=10.0),
        data=replace(tiny.CONFIG.data, sequence_length=16),
        runtime=RuntimeConfig(devices=1),
    )
    build_run(config, first_step=0)
    shorter = replace(config.model, context_length=needed - 1)
    with pytest.raises(ConfigError, match=f"context_length: .* has {needed} tokens"):
        build_run(replace(config, model=shorter), first_step=0)


def test_attention_and_remat_reach_the_layers():
    config = replace(
        tiny.CONFIG,
        runtime=RuntimeConfig(devices=1, attention="xla"),
        parallel=replace(tiny.CONFIG.parallel, remat="dots"),
    )
    execution = build_run(config, first_step=0).execution
    assert (execution.attention, execution.remat) == ("xla", "dots")


def test_kernels_are_chosen_by_the_rows_of_a_microbatch():
    """A row has 2 MiB of scores in each of 8 heads: 64 rows have no more than 1 GiB."""
    config = replace(
        tiny.CONFIG,
        model=replace(tiny.CONFIG.model, heads=8, width=64, attention_softcap=50.0),
        data=replace(tiny.CONFIG.data, sequence_length=724),
        runtime=RuntimeConfig(devices=2),
    )

    def chosen(rows: int, microbatches: int) -> set[str]:
        sizes = {"batch_size": rows, "microbatches": microbatches}
        run = build_run(replace(config, training=replace(config.training, **sizes)), 0)
        execution = run.execution._replace(platform="cuda", compute_capability=9.0)
        model = models.build(run.config.model, run.config.precision, execution)
        return {kernel for kernel, _ in run._replace(model=model).kernels().values()}

    assert (chosen(128, 1), chosen(256, 2), chosen(256, 1)) == ({"xla"}, {"xla"}, {"blockwise"})


HUGE = {
    "layers": 1_000_000_000,
    "width": 2**31 - 8,
    "mlp_width": 2**31 - 1,
    "vocabulary_size": 2**30,
    "context_length": 2**30,
}


@pytest.mark.parametrize("field", HUGE)
def test_a_model_beyond_the_memory_is_refused_before_its_arrays_are_made(field):
    model = replace(tiny.CONFIG.model, **{"positions": "learned", field: HUGE[field]})
    run = build_run(replace(tiny.CONFIG, model=model), first_step=0)
    with pytest.raises(ConfigError, match=r"optimizer state take [0-9,]+ bytes, but this machine"):
        check_memory(run)


def test_devices_that_tell_their_memory_are_asked(monkeypatch):
    run = build_run(tiny.CONFIG, first_step=0)
    check_memory(run)
    monkeypatch.setattr(runtime, "device_memory", lambda device: 1000)
    with pytest.raises(ConfigError, match="but each device has 1,000"):
        check_memory(run)


def test_the_log_says_whether_scores_are_computed_in_tiles():
    run = build_run(replace(tiny.CONFIG, runtime=RuntimeConfig(devices=1)), 0)
    assert describe_loss(run) == "loss: scores of all positions at once"
    positions = tiny.CONFIG.data.sequence_length
    rows = tiny.CONFIG.training.batch_size // run.placement.batch_shards
    half = 4 * rows * tiny.CONFIG.model.vocabulary_size * positions // 2
    assert describe_loss(run._replace(tile_bytes=half)) == (
        f"loss: {positions // 2} of {positions} positions at a time (by the device's memory)"
    )
