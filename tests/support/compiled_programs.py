"""Small programs in the form in which XLA prints compiled ones."""

GROUPS = "replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true"
STATE = "(s32[], bf16[8192,4096]{1,0}, bf16[4096,4096]{1,0}, bf16[16777216]{0})"

# A product [8192, 4096] x [4096, 4096] in a loop of 4 turns, each beside a gather of 256 MiB; then
# a row of a table.
OVERLAP = f"""HloModule jit_step, is_scheduled=true

%fused_slice (param_0.1: f32[32,1048576], param_1.1: s32[]) -> f32[1,1048576] {{
  %param_0.1 = f32[32,1048576]{{1,0}} parameter(0)
  %param_1.1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  ROOT %slice.1 = f32[1,1048576]{{1,0}} dynamic-slice(%param_0.1, %param_1.1, %zero.1)
}}

%gemm (param_0.2: bf16[8192,4096], param_1.2: bf16[4096,4096]) -> bf16[8192,4096] {{
  %param_0.2 = bf16[8192,4096]{{1,0}} parameter(0)
  %param_1.2 = bf16[4096,4096]{{1,0}} parameter(1)
  ROOT %dot.1 = bf16[8192,4096]{{1,0}} dot(%param_0.2, %param_1.2), \
lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}

%body (state: {STATE}) -> {STATE} {{
  %state = {STATE} parameter(0)
  %number = s32[] get-tuple-element(%state), index=0
  %x = bf16[8192,4096]{{1,0}} get-tuple-element(%state), index=1
  %w = bf16[4096,4096]{{1,0}} get-tuple-element(%state), index=2
  %part = bf16[16777216]{{0}} get-tuple-element(%state), index=3
  %all-gather-start.1 = (bf16[16777216]{{0}}, bf16[134217728]{{0}}) \
all-gather-start(%part), channel_id=1, {GROUPS}, dimensions={{0}}
  %gemm.1 = bf16[8192,4096]{{1,0}} fusion(%x, %w), kind=kCustom, calls=%gemm
  %all-gather-done.1 = bf16[134217728]{{0}} all-gather-done(%all-gather-start.1)
  ROOT %tuple.1 = {STATE} tuple(%number, %gemm.1, %w, %part)
}}

%condition (state.1: {STATE}) -> pred[] {{
  %state.1 = {STATE} parameter(0)
  %number.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(4)
  ROOT %less = pred[] compare(%number.1, %limit), direction=LT
}}

ENTRY %main (x.1: bf16[8192,4096], w.1: bf16[4096,4096]) -> f32[1,1048576] {{
  %x.1 = bf16[8192,4096]{{1,0}} parameter(0)
  %w.1 = bf16[4096,4096]{{1,0}} parameter(1)
  %part.1 = bf16[16777216]{{0}} parameter(2)
  %table = f32[32,1048576]{{1,0}} parameter(3)
  %start = s32[] constant(0)
  %tuple.2 = {STATE} tuple(%start, %x.1, %w.1, %part.1)
  %while.1 = {STATE} while(%tuple.2), condition=%condition, body=%body, \
backend_config={{"known_trip_count":{{"n":"4"}}}}
  ROOT %slice.2 = f32[1,1048576]{{1,0}} fusion(%table, %start), kind=kLoop, calls=%fused_slice
}}
"""

ATTENTION = """HloModule jit_attention, is_scheduled=true

ENTRY %main (q: bf16[2,4096,32,128], k: bf16[2,4096,8,128]) -> bf16[2,4096,32,128] {{
  %q = bf16[2,4096,32,128]{{3,2,1,0}} parameter(0)
  %k = bf16[2,4096,8,128]{{3,2,1,0}} parameter(1)
  ROOT %flash = bf16[2,4096,32,128]{{3,2,1,0}} custom-call(%q, %k, %k), \
custom_call_target="__cudnn$fmha{kernel}", \
backend_config={{"mask_type": "{mask}", "sliding_window_length": {window}}}
}}
"""
