"""Describe a GPU of the table to XLA, so that it compiles for one that is not there.

XLA reads the text of a `GpuTargetConfigProto` (openxla/xla,
xla/stream_executor/device_description.proto); its own descriptions are in
xla/backends/gpu/target_config/specs. Imports no jax.
"""

from typing import NamedTuple

from jaxlm.accelerators import Accelerator

# The versions that a step is compiled for: those that jax[cuda13] brings.
CUDNN_VERSION = 9, 10
CUDA_VERSION = 13, 0
# CUDA 13 has no compiler for older GPUs (its release notes). A V100 is compiled for as this one: it
# has the same kernels of XLA, without bfloat16 on tensor cores and without flash attention.
OLDEST_COMPILED = 7.5


class Limits(NamedTuple):
    """Limits of a multiprocessor (CUDA C++ programming guide, table of compute capabilities)."""

    threads: int
    shared_memory: int  # bytes
    shared_memory_optin: int  # bytes that one block may ask for
    float32_units: int


LIMITS = {
    7.5: Limits(1024, 65536, 65536, 64),
    8.0: Limits(2048, 167936, 166912, 64),
    8.6: Limits(1536, 102400, 101376, 128),
    8.9: Limits(1536, 102400, 101376, 128),
    9.0: Limits(2048, 233472, 232448, 128),
    10.0: Limits(2048, 233472, 232448, 128),
    12.0: Limits(1536, 102400, 101376, 128),
}


def describe_target(accelerator: Accelerator) -> str:
    """Return the text of XLA's GpuTargetConfigProto for an accelerator.

    Its compute capability is at least that which CUDA compiles for.
    """
    capability = max(accelerator.compute_capability, OLDEST_COMPILED)
    limits = find_limits(capability)
    major, minor = divmod(round(10 * capability), 10)
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {limits.threads}
  shared_memory_per_block: 49152 shared_memory_per_core: {limits.shared_memory}
  shared_memory_per_block_optin: {limits.shared_memory_optin}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: {accelerator.multiprocessors} fpus_per_core: {limits.float32_units}
  clock_rate_ghz: {accelerator.clock_hertz / 1e9:g}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {round(accelerator.memory_bandwidth)}
  l2_cache_size: {accelerator.cache_bytes} device_memory_size: {accelerator.memory_bytes}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: {CUDNN_VERSION[0]} minor: {CUDNN_VERSION[1]} }}
runtime_version {{ major: {CUDA_VERSION[0]} minor: {CUDA_VERSION[1]} patch: 0 }}
device_description_str: "NVIDIA {accelerator.device_kind}"
"""


def find_limits(compute_capability: float) -> Limits:
    """Return the limits of a compute capability, or of the newest one before it."""
    return LIMITS[max(known for known in LIMITS if known <= compute_capability)]
