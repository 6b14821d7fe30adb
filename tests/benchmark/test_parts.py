"""Which part of a step an instruction belongs to, and how the time of parts adds up."""

import re
from types import SimpleNamespace

import jax
import pytest

from jaxlm.benchmark import measure, parts, profile
from jaxlm.benchmark.profile import COMMUNICATES, COMPUTES, CONTAINS, WAITS, Event

# A path in <> stands for XLA's metadata.
SHORT_PROGRAM = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[4]{0})}

%cast (param_0.1: f32[4,4]) -> bf16[4,4] {
  %param_0.1 = f32[4,4]{1,0} parameter(0)
  ROOT %convert.1 = bf16[4,4]{1,0} convert(%param_0.1), <jit(step)/jvp(Block)/mlp/convert>
}

%summed (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.9 = f32[] add(%x, %y)
}

ENTRY %main (w: f32[4,4], v: f32[4]) -> (f32[4], f32[4]) {
  %w = f32[4,4]{1,0} parameter(0), <state.params>
  %dot.1 = f32[4]{0} dot(%w, %v), <jit(step)/jvp(Block)/attention/attention.attend/dot_general>
  %copy.1 = f32[4]{0} copy(%dot.1)
  %fusion.1 = bf16[4,4]{1,0} fusion(%w), kind=kLoop, calls=%cast
  %norm.1 = f32[4]{0} multiply(%v, %v), <jit(step)/jvp(Block)/Block.norm_before/mlp_norm/mul>
  %head.1 = f32[4]{0} dot(%w, %v), <jit(step)/shard_map/transpose(jvp(loss))/Head/dot_general>
  %copy.2 = f32[4]{0} copy(%v)
  %adam.1 = f32[4]{0} add(%copy.2, %v), <jit(step)/optimizer/add>
  %while.1 = (s32[], f32[4]{0}) while(%copy.2), body=%cast, <jit(step)/jvp(loss)/while>
  %psum.1 = f32[4]{0} all-reduce(%adam.1), to_apply=%summed, <jit(step)/optimizer/psum>
  %stack.1 = f32[4]{0} concatenate(%v, %v), dimensions={0}, <jit(step)/transpose(jvp())/stack>
  ROOT %tuple.1 = (f32[4]{0}, /*index=1*/f32[4]{0}) tuple(%psum.1, %stack.1)
}
"""
PROGRAM = re.sub("<(.*)>", r'metadata={op_name="\1" stack_frame_id=3}', SHORT_PROGRAM)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("dot.1", "attention"),
        ("copy.1", "attention"),  # of what it reads
        ("fusion.1", "mlp"),  # of what it contains
        ("norm.1", "norms_and_embedding"),
        ("head.1", "head_and_loss"),
        ("copy.2", "optimizer"),  # of what reads it
        ("adam.1", "optimizer"),
        ("psum.1", "communication"),  # wherever it stands
        ("stack.1", "other"),
    ],
)
def test_an_instruction_belongs_to_a_part(name, part):
    assert parts.assign_parts(PROGRAM)[name] == parts.Operation(part)


def test_a_loop_is_a_frame_around_its_instructions():
    assert parts.assign_parts(PROGRAM)["while.1"].is_container


def test_the_parts_of_a_step_add_up_to_its_time():
    events = [
        Event(10, 30, COMPUTES, "attention"),
        Event(20, 30, COMPUTES, "mlp"),  # shares 10 with attention
        Event(25, 50, COMMUNICATES, "communication"),  # 20 after the computing
        Event(0, 60, CONTAINS, "other"),  # 10 before and 10 after all these
        Event(55, 80, WAITS, "input_wait"),  # 20 after the device has stopped
        Event(90, 95, COMPUTES, "optimizer"),
        Event(98, 200, COMPUTES, "optimizer"),  # ends after the step
    ]
    assert profile.sum_parts(events, 0, 100) == {
        "attention": 15,
        "mlp": 5,
        "communication": 20,
        "other": 20,
        "input_wait": 20,
        "optimizer": 7,
        "idle": 13,
    }


# Two steps of 50 microseconds on a GPU, as CUDA's profiler lays them out: a line for each stream,
# and lines that repeat their events by module.
GPU_TRACE = """
planes {
  name: "/device:GPU:0"
  lines { id: 7 name: "Stream #7(Kernel)"
    events { metadata_id: 1 offset_ps: 10000000 duration_ps: 30000000
      stats { metadata_id: 1 str_value: "dot.1" } stats { metadata_id: 2 str_value: "jit_step" } }
    events { metadata_id: 1 offset_ps: 60000000 duration_ps: 20000000
      stats { metadata_id: 1 str_value: "head.1" } }
    events { metadata_id: 2 offset_ps: 80000000 duration_ps: 4000000 } }
  lines { id: 8 name: "Stream #8(Kernel)"
    events { metadata_id: 3 offset_ps: 30000000 duration_ps: 20000000
      stats { metadata_id: 1 str_value: "psum.1" } } }
  lines { id: 9 name: "XLA Modules" events { metadata_id: 1 duration_ps: 100000000 } }
  event_metadata { key: 1 value { id: 1 name: "gemm_bf16" } }
  event_metadata { key: 2 value { id: 2 name: "MemcpyH2D" } }
  event_metadata { key: 3 value { id: 3 name: "ncclDevKernel_AllReduce" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "hlo_module" } }
}
planes {
  name: "/host:CPU"
  lines { id: 1 name: "python"
    events { metadata_id: 1 offset_ps: 0 duration_ps: 50000000 }
    events { metadata_id: 1 offset_ps: 50000000 duration_ps: 50000000 }
    events { metadata_id: 2 offset_ps: 45000000 duration_ps: 10000000 } }
  event_metadata { key: 1 value { id: 1 name: "training step" } }
  event_metadata { key: 2 value { id: 2 name: "fetch batch" } }
}
"""


@pytest.fixture
def read(tmp_path):
    """Return the parts of a trace: microseconds of a step, and why they are unknown."""

    def read_trace(text):
        trace = tmp_path / "gpu.xplane.pb"
        trace.write_bytes(jax.profiler.ProfileData.text_proto_to_serialized_xspace(text))
        step = profile.read_parts(trace, "jit_step", parts.assign_parts(PROGRAM))
        return {part: round(1e6 * s, 3) for part, s in step.seconds.items() if s}, step.unknown

    return read_trace


# An instruction within an asynchronous one stands in the trace, but not in the program's text.
@pytest.mark.parametrize("collective", ["psum.1", "all-reduce.7", "reduce_scatter.72.1"])
def test_the_trace_of_a_gpu_is_read_by_its_streams(read, collective):
    microseconds, unknown = read(GPU_TRACE.replace("psum.1", collective))
    assert not unknown
    assert microseconds == {  # of one of two steps
        "attention": 15,
        "communication": 5,  # the half that no product hides
        "input_wait": 2.5,
        "head_and_loss": 10,
        "other": 2,
        "idle": 15.5,
    }


def test_kernels_in_command_buffers_have_no_part(read):
    """A table would say that the step is "other"."""
    hidden = GPU_TRACE.replace("dot.1", "command_buffer_1").replace("head.1", "command_buffer_2")
    microseconds, unknown = read(hidden)
    assert microseconds == {}
    # 30, 20 and a copy of 4, which names no instruction, of 74 microseconds.
    assert unknown == (
        "73% of the device time belongs to no instruction of the program "
        "(most of it to command_buffer_1)"
    )
    # 20 and 4 of 74: less than half, which is "other".
    microseconds, unknown = read(GPU_TRACE.replace("head.1", "command_buffer_2"))
    assert (microseconds["other"], unknown) == (12, "")


def test_a_trace_without_devices_has_no_parts(read):
    host = GPU_TRACE[GPU_TRACE.rindex("planes {") :]
    assert read(host) == ({}, "the trace has no events of the devices")


@pytest.mark.parametrize(
    ("platform", "expected"), [("gpu", [profile.RECORDING_OPTIONS]), ("cpu", [])]
)
def test_recorded_steps_of_a_gpu_are_compiled_without_command_buffers(platform, expected):
    compiled = []

    def compile_step(compiler_options):
        compiled.append(compiler_options)
        return "recorded"

    program = measure.Program(
        run=SimpleNamespace(devices=[SimpleNamespace(platform=platform)]),
        lowered=SimpleNamespace(compile=compile_step),
        step="timed",
        state=None,
        batches=iter(()),
        objective=None,
        first_loss=0.0,
    )
    recorded = measure.compile_to_record(program)
    assert compiled == expected
    assert recorded.step == ("recorded" if expected else "timed")
