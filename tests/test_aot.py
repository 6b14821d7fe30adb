"""The train step compiled for 8 GPUs that are not there: its kernels, collectives and memory.

Needs the CUDA plugin of jax (extra `cuda`), no GPU. Run with: pytest -m aot
"""

import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest

from jaxlm import (
    config,
    losses,
    mesh_execution,
    models,
    objectives,
    optim,
    runtime,
    sharding,
    state,
    step,
)

pytestmark = pytest.mark.aot
pytest.importorskip("jax_cuda13_plugin", reason="needs the extra `cuda`")

from jax.experimental import topologies

# An H100 SXM (NVIDIA H100 data sheet and tuning guide) as XLA's GpuTargetConfigProto.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3350000000000 l2_cache_size: 52428800 device_memory_size: 84929347584
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
H100_BYTES = int(0.75 * 84929347584)  # what jax takes of its memory
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


class Program(NamedTuple):
    """A compiled step."""

    text: str
    peak_bytes: int

    def counts(self) -> dict[str, int]:
        return {
            name: len(re.findall(rf"[ )]{name}(?:-start)?\(", self.text)) for name in COLLECTIVES
        }

    def lines(self, name: str) -> list[str]:
        """The instructions of a collective."""
        return [
            line for line in self.text.splitlines() if re.search(rf" {name}(?:-start)?\(", line)
        ]

    def gathered_shapes(self) -> set[tuple[int, ...]]:
        """Shapes of what all-gathers give."""
        results = re.findall(r"= (.*?) all-gather(?:-start)?\(", self.text)
        return {
            tuple(map(int, dims.split(",")))
            for result in results
            for dims in re.findall(r"\[([\d,]+)\]", result)
        }


def groups_of(instruction: str) -> list[list[int]]:
    """The devices that take part together, of replica_groups={{0,1},{2,3}}, [2,2]<=[4], or
    mesh['a'=2,'b'=2], device_ids=([4]) {'b'}.
    """
    text = re.search(r"replica_groups=(.*)", instruction).group(1)  # type: ignore[union-attr]
    if text.startswith("{{"):
        return [
            [int(n) for n in group.split(",")]
            for group in re.findall(r"\{([\d,]+)\}", text.partition("}}")[0] + "}")
        ]
    order = re.search(
        r"<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
        if text.startswith("[")
        else r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)",
        text,
    )
    if text.startswith("mesh"):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", text.partition("]")[0]))
        names = re.search(r"\{(.*?)\}", text).group(1)  # type: ignore[union-attr]
        grouped = re.findall(r"'(\w+)'", names)
        sizes = [int(size) for size in axes.values()]
        ids = np.arange(math.prod(sizes)) if order is None else iota(order)
        last = [n for n, axis in enumerate(axes) if axis in grouped]
        rest = [n for n in range(len(axes)) if n not in last]
        return (
            ids.reshape(sizes)
            .transpose(rest + last)
            .reshape(-1, math.prod(sizes[n] for n in last))
            .tolist()
        )
    sizes = [int(size) for size in text[1:].partition("]")[0].split(",")]
    return iota(order).reshape(sizes).tolist()


def iota(order: re.Match) -> np.ndarray:
    """[4,2]T(1,0): 0, 1, ... in that shape, its axes in that order."""
    sizes = [int(size) for size in order.group(1).split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return (
        ids.transpose([int(axis) for axis in order.group(2).split(",")]) if order.group(2) else ids
    )


def compiled(run_config: config.Config, devices: int, machines: int = 1) -> Program:
    """The train step of `run_config` on machines with `devices` H100 each."""
    several = [SimpleNamespace(platform="gpu")] * devices * machines
    options = runtime.compiler_options(several)
    found = topologies.get_topology_desc(
        platform="cuda", target_config=H100, topology=f"{machines}x{devices}x1"
    ).devices
    mesh = sharding.make_mesh(run_config.parallel, found)
    execution = mesh_execution.build_execution(
        mesh,
        run_config.parallel,
        run_config.precision,
        "cudnn",
        width=run_config.model.width,
    )
    model = models.build(run_config.model, run_config.precision, execution)
    placement = sharding.Placement(
        mesh, model.axes, run_config.parallel.zero, run_config.precision.gradients
    )
    optimizer = optim.build_optimizer(run_config.optimizer, 100, model.axes)
    rows = run_config.training.batch_size
    example = objectives.example(
        run_config.objective, run_config.data.sequence_length, run_config.tokenizer.sentinels
    )
    batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype, sharding=placement.batch()),
        example,
    )
    run = step.train_step(
        model,
        optimizer,
        run_config.training,
        placement,
        seed=0,
        tile_bytes=losses.tile_bytes(H100_BYTES),
        compiler_options=options,
    )
    arguments = state.abstract_state(model, optimizer, placement), batch
    program = run.trace(*arguments).lower(lowering_platforms=("cuda",)).compile()
    return Program(program.as_text(), program.memory_analysis().peak_memory_in_bytes)


def recipe(name: str, *edits: str) -> config.Config:
    return config.load(Path(__file__).parent.parent / "configs" / f"{name}.py", edits)


def test_llama_1b_under_zero_3():
    run_config = recipe("llama_1b", "training.batch_size=32", "training.microbatches=1")
    assert run_config.parallel.zero == 3 and run_config.parallel.remat == "full"
    program = compiled(run_config, 8)
    counts = program.counts()
    assert "__cudnn$fmhaSoftmax" in program.text and "__cudnn$fmhaSoftmaxBackward" in program.text
    assert counts["all-to-all"] == counts["collective-permute"] == 0
    assert counts["all-gather"] <= 16 and 1 <= counts["reduce-scatter"] <= 4
    # 4 sequences of 2048 per GPU: no gathered array has their shape, or that of all 32.
    assert not [
        shape
        for shape in program.gathered_shapes()
        if shape[:2] in ((4, 2048), (32, 2048)) and len(shape) > 2
    ]
    assert program.peak_bytes <= 5.5 * 2**30
    # Gradients are summed over the GPUs in float32, as precision.gradients says.
    reduced = [
        line
        for line in program.text.splitlines()
        if re.search(r"[ )]reduce-scatter(?:-start)?\(", line)
    ]
    assert reduced and not [
        line for line in reduced if "bf16[" in line.split("reduce-scatter-start(")[0]
    ]


def test_gpt2_under_zero_1_with_tensor_parallelism():
    run_config = recipe(
        "gpt2_124m", "training.batch_size=32", "training.microbatches=1", "parallel.tensor=2"
    )
    program = compiled(run_config, 8)
    assert "__cudnn$fmhaSoftmaxBackward" in program.text and program.counts()["all-to-all"] == 0


def test_one_gpu_has_no_collectives():
    run_config = recipe(
        "gpt2_124m", "training.batch_size=12", "training.microbatches=1", "parallel.zero=0"
    )
    program = compiled(run_config, 1)
    assert sum(program.counts().values()) == 0 and "__cudnn$fmhaSoftmax" in program.text


def test_sliding_windows_and_alibi_use_the_flash_kernel():
    base = recipe(
        "gpt2_124m", "training.batch_size=16", "training.microbatches=1", "model.layers=2"
    )
    for changes in (dict(sliding_window=256), dict(positions="alibi")):
        program = compiled(replace(base, model=replace(base.model, **changes)), 8)
        assert "__cudnn$fmha" in program.text and program.counts()["all-to-all"] == 0


def attention_kernels(program: Program) -> dict[str, int]:
    """Calls of cuDNN's flash kernels by their names."""
    found = re.findall(r"__cudnn\$fmha\w+", program.text)
    return {name: found.count(name) for name in set(found)}


@pytest.mark.parametrize("name", ["bert_base", "roberta_base", "t5_base", "bart_base"])
def test_encoders_and_encoder_decoders_under_zero_3(name):
    """Attention runs in flash kernels, both ways, and nothing of the batch moves between GPUs."""
    edits = [
        "training.batch_size=128",
        "training.microbatches=1",
        "parallel.zero=3",
        "parallel.remat=full",
    ]
    run_config = recipe(name, *edits)
    program = compiled(run_config, 8)
    kinds = (
        3 if run_config.model.family == "encoder_decoder" else 1
    )  # encoder, decoder and cross attention
    kernels = attention_kernels(program)
    backward = sum(count for kernel, count in kernels.items() if "Backward" in kernel)
    assert backward >= kinds and sum(kernels.values()) >= 3 * kinds, (
        kernels
    )  # scanned: once forward, once recomputed, once backward
    counts, length = program.counts(), run_config.data.sequence_length
    assert counts["all-to-all"] == counts["collective-permute"] == 0
    # 16 sequences per GPU: no gathered array has their shape, or that of all 128.
    assert not [
        shape
        for shape in program.gathered_shapes()
        if shape[:2] in ((16, length), (128, length)) and len(shape) > 2
    ]


def test_the_gradient_of_relative_positions_comes_from_the_flash_kernel():
    """T5's bias is learned: its gradient is among what the backward kernel gives."""
    program = compiled(
        recipe("t5_base", "training.batch_size=16", "training.microbatches=1", "model.layers=1"), 8
    )
    assert {
        "__cudnn$fmhaScaleBiasSoftmax",
        "__cudnn$fmhaScaleBiasSoftmaxBackward",
    } <= attention_kernels(program).keys()


def test_llama_1b_on_two_machines():
    """Parameters are gathered inside a machine; only shards of gradients cross between (HSDP)."""
    run_config = recipe(
        "llama_1b", "parallel.data=2", "training.batch_size=64", "training.microbatches=1"
    )
    program = compiled(run_config, 8, machines=2)
    counts = program.counts()
    assert counts["all-to-all"] == counts["collective-permute"] == 0
    assert counts["reduce-scatter"] >= 1
    groups = {
        name: [groups_of(line) for line in program.lines(name)]
        for name in ("all-gather", "reduce-scatter", "all-reduce")
    }
    machine = [list(range(8)), list(range(8, 16))]
    assert groups["all-gather"] and all(found == machine for found in groups["all-gather"])
    assert all(found == machine for found in groups["reduce-scatter"])
    assert [[gpu, gpu + 8] for gpu in range(8)] in groups["all-reduce"]
    # Summed over all GPUs: the tables of tokens, norms and scalars, nothing of a layer's kernels.
    whole = [line for line in program.lines("all-reduce") if groups_of(line) == [list(range(16))]]
    largest = {
        dims
        for line in whole
        for dims in re.findall(r"f32\[([\d,]+)\]", line.partition("all-reduce")[0])
        if "," in dims
    }
    assert largest <= {"2048,32000", "32000,2048"}
