"""The text in which a GPU of the table is described to XLA."""

import re

import pytest

from jaxlm import hardware
from jaxlm.accelerators import ACCELERATORS
from jaxlm.plan.targets import describe_target


def read_numbers(text: str) -> dict[str, float]:
    """Return the numbers of a proto text by field; of fields that repeat, the last."""
    return {name: float(number) for name, number in re.findall(r"(\w+): ([\d.]+)", text)}


def test_a_target_has_what_xla_says_of_an_h100():
    """From openxla/xla, xla/backends/gpu/target_config/specs/h100_sxm.txtpb."""
    expected = {
        "threads_per_core_limit": 2048,
        "shared_memory_per_core": 233472,
        "shared_memory_per_block_optin": 232448,
        "core_count": 132,
        "fpus_per_core": 128,
        "clock_rate_ghz": 1.98,
        "l2_cache_size": 52428800,
    }
    text = describe_target(hardware.find_accelerator("h100"))
    numbers = read_numbers(text)
    assert {name: numbers[name] for name in expected} == expected
    # Data sheets round the bandwidth, and drivers reserve other shares of the memory.
    assert numbers["memory_bandwidth"] == pytest.approx(3352320000000, rel=1e-3)
    assert numbers["device_memory_size"] == pytest.approx(84942979072, rel=1e-3)
    assert "cuda_compute_capability { major: 9 minor: 0 }" in text


def test_a_target_has_what_xla_says_of_an_a6000_s_multiprocessors():
    """Compute capability 8.6, specs/a6000.txtpb; an RTX 3090 has it too."""
    numbers = read_numbers(describe_target(hardware.find_accelerator("rtx3090")))
    assert numbers["threads_per_core_limit"] == 1536
    assert numbers["shared_memory_per_core"] == 102400
    assert numbers["shared_memory_per_block_optin"] == 101376


def test_every_accelerator_is_described_with_braces_that_close():
    for gpu in ACCELERATORS:
        text = describe_target(gpu)
        assert text.count("{") == text.count("}") > 0
        assert read_numbers(text)["device_memory_size"] == gpu.memory_bytes


def test_a_gpu_that_cuda_no_longer_compiles_for_is_described_as_the_oldest_that_it_does():
    text = describe_target(hardware.find_accelerator("v100"))
    assert "cuda_compute_capability { major: 7 minor: 5 }" in text
    assert read_numbers(text)["core_count"] == 80


def test_a_newer_compute_capability_has_the_limits_of_the_newest_known():
    gpu = hardware.find_accelerator("b200")._replace(compute_capability=10.3)
    text = describe_target(gpu)
    assert "major: 10 minor: 3" in text
    assert read_numbers(text)["shared_memory_per_core"] == 233472
