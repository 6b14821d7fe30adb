"""Which part of a step an instruction belongs to, and how the time of parts adds up."""

import pytest

from jaxlm.benchmark import parts, profile
from jaxlm.benchmark.profile import COMMUNICATES, COMPUTES, CONTAINS, WAITS, Event

PROGRAM = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[4]{0})->f32[4]{0}}

%cast (param_0.1: f32[4,4]) -> bf16[4,4] {
  %param_0.1 = f32[4,4]{1,0} parameter(0)
  ROOT %convert.1 = bf16[4,4]{1,0} convert(%param_0.1), metadata={op_name="jit(step)/jvp(Block)/mlp/convert"}
}

%summed (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.9 = f32[] add(%x, %y)
}

ENTRY %main (w: f32[4,4], v: f32[4]) -> (f32[4], f32[4]) {
  %w = f32[4,4]{1,0} parameter(0), metadata={op_name="state.params"}
  %dot.1 = f32[4]{0} dot(%w, %v), metadata={op_name="jit(step)/jvp(Block)/attention/attention.attend/dot_general" stack_frame_id=3}
  %copy.1 = f32[4]{0} copy(%dot.1)
  %fusion.1 = bf16[4,4]{1,0} fusion(%w), kind=kLoop, calls=%cast
  %norm.1 = f32[4]{0} multiply(%v, %v), metadata={op_name="jit(step)/transpose(jvp(Block))/Block.norm_before/mlp_norm/mul"}
  %head.1 = f32[4]{0} dot(%w, %v), metadata={op_name="jit(step)/shard_map/transpose(jvp(loss))/Head/dot_general"}
  %copy.2 = f32[4]{0} copy(%v)
  %adam.1 = f32[4]{0} add(%copy.2, %v), metadata={op_name="jit(step)/optimizer/add"}
  %while.1 = (s32[], f32[4]{0}) while(%copy.2), condition=%cond, body=%cast, metadata={op_name="jit(step)/jvp(loss)/while"}
  %psum.1 = f32[4]{0} all-reduce(%adam.1), replica_groups={{0,1}}, to_apply=%summed, metadata={op_name="jit(step)/optimizer/psum"}
  %stack.1 = f32[4]{0} concatenate(%v, %v), dimensions={0}, metadata={op_name="jit(step)/transpose(jvp())/stack"}
  ROOT %tuple.1 = (f32[4]{0}, /*index=1*/f32[4]{0}) tuple(%psum.1, %stack.1)
}
"""  # noqa: E501


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
