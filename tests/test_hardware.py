"""Accelerators and clusters by name, and a user's own entries."""

import json
import os

import pytest

from jaxlm import hardware
from jaxlm.accelerators import ACCELERATORS
from jaxlm.config import UserError


@pytest.mark.parametrize(
    ("text", "name", "gpus", "nodes"),
    [
        ("h100", "h100", 1, 1),
        ("8xh100", "h100", 8, 1),
        ("h100:64", "h100", 64, 8),
        ("H100:8x8", "h100", 64, 8),
        ("h100:2x6", "h100", 12, 2),
        ("RTX-4090:2", "rtx4090", 2, 1),
        ("a100-80gb:8", "a100", 8, 1),
        ("512xa100-40gb", "a100-40gb", 512, 64),
    ],
)
def test_a_cluster_is_named_by_gpus_or_by_nodes_and_gpus(text, name, gpus, nodes):
    cluster = hardware.parse_cluster(text)
    assert (cluster.accelerator.name, cluster.gpus, cluster.nodes) == (name, gpus, nodes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h1000:8", "there is no GPU 'h1000' in the table (did you mean 'h100'?)"),
        ("tpu", "there are: h100, h100-pcie"),
        ("h100:12", "12 GPUs don't fill servers of 8 h100"),
        ("h100:0", "a cluster has 1 to 1,000,000 GPUs"),
        ("h100:0x8", "a cluster has 1 to 1,000,000 GPUs"),
        ("h100:-8", "'h100:-8' is no cluster: name it as"),
        ("h100:8x", "'h100:8x' is no cluster: name it as"),
        ("8xh100:8", "'8xh100:8' is no cluster: name it as"),
        ("", "'' is no cluster: name it as"),
    ],
)
def test_a_mistake_in_a_cluster_is_told_in_one_line(text, message):
    with pytest.raises(UserError) as caught:
        hardware.parse_cluster(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensor_cores_are_faster_than_float32_and_links_slower_than_memory():
    for gpu in ACCELERATORS:
        assert gpu.peak_flops[gpu.tensor_dtype] > gpu.peak_flops["float32"], gpu.name
        assert gpu.memory_bandwidth > gpu.node_bandwidth > gpu.network_bandwidth, gpu.name
        assert ("bfloat16" in gpu.peak_flops) == (gpu.compute_capability >= 8.0), gpu.name
        assert ("float8" in gpu.peak_flops) == (gpu.compute_capability >= 8.9), gpu.name


def test_clock_and_multiprocessors_give_the_peak_of_float32():
    """A multiprocessor has 128 units for float32, or 64 on V100, T4 and A100; each does 2 FLOPs.

    Data sheets round clocks and FLOP/s; those of H100, H200 and B200 count a lower clock of all
    units at once.
    """
    for gpu in ACCELERATORS:
        units = 64 if gpu.compute_capability in (7.0, 7.5, 8.0) else 128
        counted = 2 * units * gpu.multiprocessors * gpu.clock_hertz
        assert gpu.peak_flops["float32"] == pytest.approx(counted, rel=0.03), gpu.name


def test_a_file_adds_accelerators_and_links(tmp_path):
    file = tmp_path / "gpus.json"
    entries = {
        "h100-ethernet": {"based_on": "h100", "network_bandwidth": 12.5e9},
        "h100": {"memory_bytes": 94_000_000_000},
        "own": dict(zip(hardware.Accelerator._fields[2:-1], OWN, strict=True)),
    }
    file.write_text(json.dumps(entries))

    cluster = hardware.parse_cluster("h100-ethernet:16", file)
    assert cluster.accelerator.network_bandwidth == 12.5e9
    assert cluster.accelerator.node_bandwidth == hardware.find_accelerator("h100").node_bandwidth
    assert hardware.find_accelerator("h100", file).memory_bytes == 94_000_000_000
    assert hardware.find_accelerator("OWN", file).peak_flops == {"bfloat16": 1e15}


OWN = (10**11, {"bfloat16": 1e15}, 1e12, 1e11, 1e10, 4, 9.0, 100, 10**7, 1.5e9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not a JSON file"),
        ("[]", "must be an object with an entry for each GPU"),
        ('{"mine": 1}', "mine: must be an object"),
        ('{"mine": {"based_on": "h101"}}', "mine: based_on='h101' is not known"),
        ('{"mine": {"gpus_per_node": 8}}', "mine: peak_flops is missing"),
        ('{"mine": {"memory_bandwith": 1}}', "mine.memory_bandwith: unknown field (did you mean"),
        ('{"h100": {"memory_bytes": 0}}', "h100.memory_bytes: must be a number above 0, got 0"),
        ('{"h100": {"memory_bytes": 1.5}}', "h100.memory_bytes: must be a whole number, got 1.5"),
        ('{"h100": {"memory_bytes": NaN}}', "h100.memory_bytes: must be a number above 0"),
        ('{"h100": {"source": 1}}', "h100.source: must be a string"),
        ('{"h100": {"peak_flops": 1}}', "h100.peak_flops: must be an object"),
        ('{"h100": {"peak_flops": {"fp8": 1}}}', "h100.peak_flops.fp8: unknown dtype"),
    ],
)
def test_a_mistake_in_a_file_names_its_key(tmp_path, text, message):
    file = tmp_path / "gpus.json"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        hardware.find_accelerator("h100", file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: No such file"):
        hardware.find_accelerator("h100", tmp_path / "none.json")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this platform")
def test_a_process_counts_the_cores_it_may_use(monkeypatch):
    """Not those of the machine: on one core bfloat16 is no faster, and two devices are slower."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5})
    assert hardware.count_cores() == hardware.cpu_devices() == 1
    assert not hardware.cpu_has_bfloat16()
