"""The parts of a run follow its config."""

from dataclasses import replace

import pytest
from support import tiny

from jaxlm.config import RuntimeConfig
from jaxlm.run import build_run


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_deterministic_run_says_so_to_the_choice_of_kernels(deterministic):
    runtime = RuntimeConfig(devices=1, deterministic=deterministic)
    run = build_run(replace(tiny.CONFIG, runtime=runtime), first_step=0)
    assert run.execution.deterministic is deterministic


def test_attention_and_remat_reach_the_layers():
    config = replace(
        tiny.CONFIG,
        runtime=RuntimeConfig(devices=1, attention="xla"),
        parallel=replace(tiny.CONFIG.parallel, remat="dots"),
    )
    execution = build_run(config, first_step=0).execution
    assert (execution.attention, execution.remat) == ("xla", "dots")
