"""The step by part that `jaxlm.bench` measures on a GPU, from a real trace of a tiny config."""

import pytest

from jaxlm import config
from jaxlm.benchmark import measure
from jaxlm.benchmark.start_up import StartUp

pytestmark = pytest.mark.gpu

# Two layers with cuDNN attention. A step is milliseconds of kernels, so that launching them and the
# few microseconds between the clocks of host and GPU are a small part of it.
TINY = config.Config(
    model=config.ModelConfig(
        vocabulary_size=8192, layers=2, width=512, heads=8, context_length=512
    ),
    data=config.DataConfig(sequence_length=512),
    training=config.TrainingConfig(steps=50, batch_size=32),
    runtime=config.RuntimeConfig(devices=1),
)
SPLIT = ("attention", "mlp", "head_and_loss", "norms_and_embedding", "optimizer")


def test_a_step_is_split_into_its_parts(gpu, record, monkeypatch):
    runs = []  # the program of each sequence of steps, and the steps

    def run_and_keep(program, state, count, *see_batch):
        runs.append((program, run_steps(program, state, count, *see_batch)))
        return runs[-1][1]

    run_steps = measure.run_steps
    monkeypatch.setattr(measure, "run_steps", run_and_keep)
    options = measure.Options(steps=5, warm_up=2)
    figures = measure.measure(TINY, None, options, StartUp())
    parts, step = figures.parts, sum(figures.parts.values())
    (timed, _), *_, (recorded, steps) = runs
    step_seconds = sum(steps.seconds) / options.profiled_steps
    record(
        parts={part: round(1e3 * seconds, 3) for part, seconds in parts.items()},
        unknown=figures.parts_unknown,
        recorded_ms=1e3 * step_seconds,
        timed_ms=1e3 * figures.median,
    )

    assert gpu.device_kind in figures.devices and figures.memory.peak_source == "measured"
    assert recorded.step is not timed.step  # that is compiled as training is
    assert not figures.parts_unknown
    assert all(parts[part] > 0 for part in SPLIT)
    assert parts["communication"] == 0
    # Copies and casts, beside the kernels of these parts.
    assert parts["other"] < 0.5 * step
    # The trace's clock and this process's, which waits a little longer for the last step.
    assert step == pytest.approx(step_seconds, rel=0.05)


def test_a_trace_of_command_buffers_is_not_split(gpu, record, monkeypatch):
    """The step is recorded as it is timed: its parts are said to be unknown, or they are there."""
    monkeypatch.setattr(measure, "compile_to_record", lambda program: program)
    program = measure.start(TINY, None, StartUp())
    parts = measure.profile_steps(program, program.state, measure.Options(profiled_steps=2))
    record(unknown=parts.unknown, parts=parts.seconds)
    if parts.unknown:
        assert "command_buffer" in parts.unknown and not parts.seconds
    else:  # a GPU or a version of XLA that makes no command buffers of this step
        assert all(parts.seconds[part] > 0 for part in SPLIT)
