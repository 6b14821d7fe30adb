"""Peak FLOP/s of accelerators, with sources, and the abilities of this CPU. Imports no jax."""

import hashlib
import os
import platform
from pathlib import Path

# Dense bfloat16 FLOP/s without sparsity, by a part of jax's `device_kind`. The longest match wins.
# Sources: NVIDIA data sheets: A100 (2020), A10 (2021), H100, H100 PCIe, L4 and L40S (2023), H200
# and B200 (2024). GeForce: whitepapers of Ampere GA102 and of Ada, tensor FLOP/s with float32
# accumulation.
PEAK_FLOPS: dict[str, float] = {
    "A100": 312e12,
    "H100": 989.4e12,
    "H100 PCIe": 756e12,
    "H200": 989.4e12,
    "B200": 2250e12,
    "L4": 121e12,
    "L40S": 362e12,
    "A10": 125e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165.2e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Return the peak bfloat16 FLOP/s of one device, or None where it isn't known (CPUs, others).

    A name must begin with a whole word of `device_kind` ("H100-SXM" has the word "H100"), so that
    an L40 is no L4.
    """
    words = {word.partition("-")[0] for word in device_kind.split()}
    matches = []
    for name in PEAK_FLOPS:
        if name in device_kind and name.split()[0] in words:
            matches.append(name)
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def cpu_devices(most: int = 2) -> int:
    """Return how many CPU devices to emulate: one per core, up to `most`.

    Small models run faster on two devices than on one with two threads.
    """
    return min(most, os.cpu_count() or 1)


def cpu_has_bfloat16() -> bool:
    """Return True where bfloat16 products are faster than float32 products.

    That takes instructions for them and more than one core.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags and (os.cpu_count() or 1) > 1


def cpu_identity() -> str:
    """Return a hash of what programs for this CPU depend on: its model, abilities and cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.machine(), platform.processor()]
    told = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    text = "\n".join([*sorted(told), str(os.cpu_count())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
