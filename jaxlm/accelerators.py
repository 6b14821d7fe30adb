"""Table of accelerators: compute, memory and links, each with its source. Imports no jax.

Bandwidths are one direction: what a GPU can send while it receives as much. The links are those of
the servers that NVIDIA or a cloud sells with these GPUs; `hardware.find_accelerator` reads others
from a file. Memory is what CUDA reports, which is a little less than the name says.
"""

from typing import NamedTuple


class Accelerator(NamedTuple):
    """One GPU, and the links that it has in its usual server."""

    name: str
    device_kind: str  # the part of jax's `device_kind` that names it; its first word must be whole
    memory_bytes: int
    # Dense FLOP/s by dtype, without sparsity, sums in float32. "tf32" are float32 products on
    # tensor cores; a dtype that the tensor cores lack is missing.
    peak_flops: dict[str, float]
    memory_bandwidth: float  # bytes/s
    node_bandwidth: float  # bytes/s of a GPU to the others of its server, one direction
    network_bandwidth: float  # bytes/s of a GPU to other servers, one direction
    gpus_per_node: int
    compute_capability: float
    multiprocessors: int
    cache_bytes: int  # of level 2
    clock_hertz: float  # boost
    source: str

    @property
    def tensor_dtype(self) -> str:
        """Return the 16-bit dtype of the tensor cores: bfloat16 where they have it."""
        return "bfloat16" if "bfloat16" in self.peak_flops else "float16"


def tera(**flops: float) -> dict[str, float]:
    """Return TFLOP/s by dtype as FLOP/s."""
    return {dtype: 1e12 * number for dtype, number in flops.items()}


# Sources that several entries share. XLA's own descriptions of GPUs (openxla/xla,
# xla/backends/gpu/target_config/specs) give memory, multiprocessors, cache and clock.
PCIE_4 = "PCIe 4.0 x16"
HUNDRED_GIGABIT = "servers of 8 with 100 Gb/s between them (a usual offer of clouds)"

ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator(
        name="h100",
        device_kind="H100",
        memory_bytes=84_929_347_584,
        peak_flops=tera(float32=66.9, tf32=494.7, bfloat16=989.4, float16=989.4, float8=1978.9),
        memory_bandwidth=3.35e12,
        node_bandwidth=450e9,
        network_bandwidth=50e9,
        gpus_per_node=8,
        compute_capability=9.0,
        multiprocessors=132,
        cache_bytes=52_428_800,
        clock_hertz=1.98e9,
        source="NVIDIA H100 data sheet (2023), SXM; DGX H100: NVLink 4, 400 Gb/s a GPU",
    ),
    Accelerator(
        name="h100-pcie",
        device_kind="H100 PCIe",
        memory_bytes=84_929_347_584,
        peak_flops=tera(float32=51.2, tf32=378, bfloat16=756, float16=756, float8=1513),
        memory_bandwidth=2.039e12,
        node_bandwidth=64e9,
        network_bandwidth=25e9,
        gpus_per_node=8,
        compute_capability=9.0,
        multiprocessors=114,
        cache_bytes=52_428_800,
        clock_hertz=1.755e9,
        source="NVIDIA H100 PCIe product brief (2022); PCIe 5.0 x16 without NVLink bridges",
    ),
    Accelerator(
        name="h200",
        device_kind="H200",
        memory_bytes=150_754_820_096,
        peak_flops=tera(float32=66.9, tf32=494.7, bfloat16=989.4, float16=989.4, float8=1978.9),
        memory_bandwidth=4.8e12,
        node_bandwidth=450e9,
        network_bandwidth=50e9,
        gpus_per_node=8,
        compute_capability=9.0,
        multiprocessors=132,
        cache_bytes=62_914_560,
        clock_hertz=1.98e9,
        source="NVIDIA H200 data sheet (2024), SXM; DGX H200: NVLink 4, 400 Gb/s a GPU",
    ),
    Accelerator(
        name="b200",
        device_kind="B200",
        memory_bytes=191_514_411_008,
        peak_flops=tera(float32=75, tf32=1125, bfloat16=2250, float16=2250, float8=4500),
        memory_bandwidth=7.67e12,
        node_bandwidth=900e9,
        network_bandwidth=50e9,
        gpus_per_node=8,
        compute_capability=10.0,
        multiprocessors=148,
        cache_bytes=132_644_864,
        clock_hertz=1.965e9,
        source="NVIDIA HGX B200 data sheet (2024); DGX B200: NVLink 5, 400 Gb/s a GPU",
    ),
    Accelerator(
        name="a100",
        device_kind="A100",
        memory_bytes=85_098_954_752,
        peak_flops=tera(float32=19.5, tf32=156, bfloat16=312, float16=312),
        memory_bandwidth=2.039e12,
        node_bandwidth=300e9,
        network_bandwidth=25e9,
        gpus_per_node=8,
        compute_capability=8.0,
        multiprocessors=108,
        cache_bytes=41_943_040,
        clock_hertz=1.41e9,
        source="NVIDIA A100 data sheet (2020), SXM 80 GB; DGX A100: NVLink 3, 200 Gb/s a GPU",
    ),
    Accelerator(
        name="a100-40gb",
        device_kind="A100-SXM4-40GB",
        memory_bytes=42_298_834_944,
        peak_flops=tera(float32=19.5, tf32=156, bfloat16=312, float16=312),
        memory_bandwidth=1.555e12,
        node_bandwidth=300e9,
        network_bandwidth=25e9,
        gpus_per_node=8,
        compute_capability=8.0,
        multiprocessors=108,
        cache_bytes=41_943_040,
        clock_hertz=1.41e9,
        source="NVIDIA A100 data sheet (2020), SXM 40 GB; DGX A100: NVLink 3, 200 Gb/s a GPU",
    ),
    Accelerator(
        name="v100",
        device_kind="V100",
        memory_bytes=34_089_730_048,
        peak_flops=tera(float32=15.7, float16=125),
        memory_bandwidth=0.9e12,
        node_bandwidth=150e9,
        network_bandwidth=6.25e9,
        gpus_per_node=8,
        compute_capability=7.0,
        multiprocessors=80,
        cache_bytes=6_291_456,
        clock_hertz=1.53e9,
        source="NVIDIA V100 data sheet (2018), SXM2 32 GB; DGX-1: NVLink 2, 4 x 100 Gb/s",
    ),
    Accelerator(
        name="v100-16gb",
        device_kind="V100-SXM2-16GB",
        memory_bytes=16_935_682_048,
        peak_flops=tera(float32=15.7, float16=125),
        memory_bandwidth=0.9e12,
        node_bandwidth=150e9,
        network_bandwidth=6.25e9,
        gpus_per_node=8,
        compute_capability=7.0,
        multiprocessors=80,
        cache_bytes=6_291_456,
        clock_hertz=1.53e9,
        source="NVIDIA V100 data sheet (2018), SXM2 16 GB; DGX-1: NVLink 2, 4 x 100 Gb/s",
    ),
    Accelerator(
        name="l40s",
        device_kind="L40S",
        memory_bytes=47_803_000_000,
        peak_flops=tera(float32=91.6, tf32=183, bfloat16=362, float16=362, float8=733),
        memory_bandwidth=864e9,
        node_bandwidth=32e9,
        network_bandwidth=12.5e9,
        gpus_per_node=8,
        compute_capability=8.9,
        multiprocessors=142,
        cache_bytes=100_663_296,
        clock_hertz=2.52e9,
        source=f"NVIDIA L40S data sheet (2023); {PCIE_4}, 100 Gb/s a GPU (OVX servers)",
    ),
    Accelerator(
        name="l4",
        device_kind="L4",
        memory_bytes=23_570_000_000,
        peak_flops=tera(float32=30.3, tf32=60, bfloat16=121, float16=121, float8=242),
        memory_bandwidth=300e9,
        node_bandwidth=32e9,
        network_bandwidth=1.5625e9,
        gpus_per_node=8,
        compute_capability=8.9,
        multiprocessors=58,
        cache_bytes=50_331_648,
        clock_hertz=2.04e9,
        source=f"NVIDIA L4 data sheet (2023); {PCIE_4}, {HUNDRED_GIGABIT}",
    ),
    Accelerator(
        name="a10",
        device_kind="A10",
        memory_bytes=23_609_000_000,
        peak_flops=tera(float32=31.2, tf32=62.5, bfloat16=125, float16=125),
        memory_bandwidth=600e9,
        node_bandwidth=32e9,
        network_bandwidth=1.5625e9,
        gpus_per_node=8,
        compute_capability=8.6,
        multiprocessors=72,
        cache_bytes=6_291_456,
        clock_hertz=1.695e9,
        source=f"NVIDIA A10 data sheet (2021); {PCIE_4}, {HUNDRED_GIGABIT}",
    ),
    Accelerator(
        name="t4",
        device_kind="T4",
        memory_bytes=15_828_320_256,
        peak_flops=tera(float32=8.1, float16=65),
        memory_bandwidth=320e9,
        node_bandwidth=16e9,
        network_bandwidth=1.5625e9,
        gpus_per_node=8,
        compute_capability=7.5,
        multiprocessors=40,
        cache_bytes=4_194_304,
        clock_hertz=1.59e9,
        source=f"NVIDIA T4 data sheet (2019); PCIe 3.0 x16, {HUNDRED_GIGABIT}",
    ),
    Accelerator(
        name="rtx4090",
        device_kind="RTX 4090",
        memory_bytes=25_393_000_000,
        peak_flops=tera(float32=82.6, tf32=82.6, bfloat16=165.2, float16=165.2, float8=330.3),
        memory_bandwidth=1.008e12,
        node_bandwidth=32e9,
        network_bandwidth=1.5625e9,
        gpus_per_node=8,
        compute_capability=8.9,
        multiprocessors=128,
        cache_bytes=75_497_472,
        clock_hertz=2.52e9,
        source=f"NVIDIA Ada whitepaper (2022); {PCIE_4} through the host, {HUNDRED_GIGABIT}",
    ),
    Accelerator(
        name="rtx3090",
        device_kind="RTX 3090",
        memory_bytes=25_437_000_000,
        peak_flops=tera(float32=35.6, tf32=35.6, bfloat16=71, float16=71),
        memory_bandwidth=936e9,
        node_bandwidth=32e9,
        network_bandwidth=1.5625e9,
        gpus_per_node=8,
        compute_capability=8.6,
        multiprocessors=82,
        cache_bytes=6_291_456,
        clock_hertz=1.695e9,
        source=f"NVIDIA Ampere GA102 whitepaper (2020); {PCIE_4}, {HUNDRED_GIGABIT}",
    ),
)
# Other spellings, without dashes, underscores and spaces.
ALIASES = {
    "h100sxm": "h100",
    "h100sxm5": "h100",
    "h10080gb": "h100",
    "h200sxm": "h200",
    "a100sxm": "a100",
    "a10080gb": "a100",
    "v10032gb": "v100",
    "4090": "rtx4090",
    "3090": "rtx3090",
}
