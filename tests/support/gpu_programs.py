"""Steps compiled for H100 that are not there. They need the extra `cuda`, but no GPU."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from jaxlm import (
    config,
    losses,
    mesh_execution,
    models,
    objectives,
    optim,
    sharding,
    state,
    step,
)
from jaxlm.evaluation.validation import evaluation_batch_size
from jaxlm.run import compiler_options
from jaxlm.types import Batch
from support.compiled_text import COLLECTIVES

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


class Program(NamedTuple):
    """A compiled step."""

    text: str
    peak_bytes: int  # on each GPU
    temp_bytes: int  # of these, beside state and batch

    def kernel_operands(self) -> list[list[tuple[int, ...]]]:
        """Return the shapes of q, k, v and the bias, if there is one, of each forward kernel."""
        kernels = []
        for line in self.text.splitlines():
            if re.search(r'custom_call_target="__cudnn\$fmha(ScaleBias)?Softmax"', line):
                operands = line.partition("operand_layout_constraints={")[2].partition("}, api")[0]
                shapes = re.findall(r"bf16\[([\d,]+)\]", operands)
                kernels.append([tuple(map(int, dims.split(","))) for dims in shapes])
        return kernels

    def attention_kernels(self) -> dict[str, int]:
        """Return the calls of cuDNN's flash kernels by their names."""
        found = re.findall(r"__cudnn\$fmha\w+", self.text)
        return {name: found.count(name) for name in set(found)}

    def loop_lines(self) -> list[str]:
        """Return the instructions in bodies of loops, and in what these call."""
        computations, name = {}, ""
        for line in self.text.splitlines():
            if line and not line.startswith((" ", "}")):
                name = line.removeprefix("ENTRY ").split(" ")[0].lstrip("%")
                computations[name] = []
            elif name:
                computations[name].append(line)

        reached = re.findall(r"body=%?([\w.\-]+)", self.text)
        for name in reached:  # grows
            for line in computations.get(name, []):
                calls = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", line)
                reached += [call for call in calls if call not in reached]
        return [line for name in dict.fromkeys(reached) for line in computations.get(name, [])]

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


class Parts(NamedTuple):
    """What a step on GPUs that are not there is built from."""

    config: config.Config
    model: models.Model
    placement: sharding.Placement
    options: dict[str, Any]  # of the compiler

    def batch(self, rows: int) -> Batch:
        """Return the shapes of a batch of the objective."""
        sentinels = self.config.tokenizer.sentinels
        length, where = self.config.data.sequence_length, self.placement.batch()
        sequences = self.config.data.sequences
        example = objectives.example(self.config.objective, length, sentinels, sequences)
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype, sharding=where), example
        )


def build_parts(
    run_config: config.Config, devices: int, machines: int = 1, attention: str = "cudnn"
) -> Parts:
    """Build the parts for machines with `devices` H100 each."""
    topology = f"{machines}x{devices}x1"
    described = topologies.get_topology_desc(
        platform="cuda", target_config=H100, topology=topology
    ).devices
    parallel, precision = run_config.parallel, run_config.precision
    mesh = sharding.make_mesh(parallel, described)
    execution = mesh_execution.build_execution(
        mesh,
        parallel,
        precision,
        attention,
        width=run_config.model.width,
        token_width=run_config.model.token_width,
    )
    model = models.build(run_config.model, precision, execution)
    placement = sharding.Placement(mesh, model.axes, parallel.zero, precision.gradients)
    return Parts(run_config, model, placement, compiler_options(run_config, mesh))


def compile_program(function: Any, *arguments: Any) -> Program:
    return compile_lowered(function.trace(*arguments).lower(lowering_platforms=("cuda",)))


def compile_lowered(lowered: Any) -> Program:
    program = lowered.compile()
    memory = program.memory_analysis()
    return Program(program.as_text(), memory.peak_memory_in_bytes, memory.temp_size_in_bytes)


def compiled(
    run_config: config.Config, devices: int, machines: int = 1, attention: str = "cudnn"
) -> Program:
    """The train step of `run_config` on machines with `devices` H100 each."""
    return compile_lowered(lowered_step(run_config, devices, machines, attention))


def lowered_step(
    run_config: config.Config, devices: int, machines: int = 1, attention: str = "cudnn"
) -> Any:
    """The same step before it is compiled, a jax.stages.Lowered."""
    parts = build_parts(run_config, devices, machines, attention)
    optimizer = optim.build_optimizer(run_config.optimizer, 100, parts.model.axes)
    run = step.train_step(
        parts.model,
        optimizer,
        run_config.training,
        parts.placement,
        seed=0,
        tile_bytes=losses.tile_bytes(H100_BYTES),
        compiler_options=parts.options,
    )
    state_shapes = state.abstract_state(parts.model, optimizer, parts.placement)
    batch = parts.batch(run_config.training.batch_size)
    return run.trace(state_shapes, batch).lower(lowering_platforms=("cuda",))


def compiled_evaluation(
    run_config: config.Config, devices: int, attention: str = "cudnn"
) -> Program:
    """The evaluation step of `run_config` on `devices` H100."""
    parts = build_parts(run_config, devices, attention=attention)
    optimizer = optim.build_optimizer(run_config.optimizer, 100, parts.model.axes)
    params = state.abstract_state(parts.model, optimizer, parts.placement).params
    run = step.eval_step(
        parts.model,
        run_config.training,
        parts.placement,
        params,
        compiler_options=parts.options,
    )
    return compile_program(run, params, parts.batch(evaluation_batch_size(run_config)))


def recipe(name: str, *edits: str) -> config.Config:
    return config.load(Path(__file__).parents[2] / "configs" / f"{name}.py", edits)
