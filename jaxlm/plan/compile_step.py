"""Compile the training step of a config for GPUs that are not there.

It is the step of a run, on a mesh of the devices that XLA describes for a target. The CUDA plugin
of jax compiles it (extra `cuda`); no GPU is needed.
"""

import time
from typing import Any, NamedTuple

from jax.experimental import topologies

from jaxlm import hardware
from jaxlm.config import Config, ConfigError
from jaxlm.hardware import Cluster
from jaxlm.plan.targets import describe_target
from jaxlm.run import Run, abstract_arguments, assemble_run, build_update


class CompiledStep(NamedTuple):
    """A compiled training step. Bytes are those of each GPU."""

    run: Run
    cluster: Cluster
    text: str  # of the compiled program
    argument_bytes: int  # the state and a batch
    temp_bytes: int
    peak_bytes: int  # of both, and of what the program gives
    seconds: float  # that the compilation took, tracing included


def compile_step(config: Config, cluster: Cluster) -> CompiledStep:
    """Compile the training step of a config for a cluster.

    Where `training.batch_schedule` changes the batch it is the step of the largest one. Raises
    ConfigError where the config does not fit the cluster, or asks for a kernel that it can't have.
    """
    start = time.perf_counter()
    run = build_target_run(config, cluster)
    program = lower_step(run).compile()
    seconds = time.perf_counter() - start

    memory = program.memory_analysis()
    return CompiledStep(
        run=run,
        cluster=cluster,
        text=program.as_text(),
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
        seconds=seconds,
    )


def build_target_run(config: Config, cluster: Cluster) -> Run:
    """Build mesh, model and optimizer of a config for a cluster. Raises ConfigError."""
    devices = describe_devices(cluster)
    memory = hardware.usable_memory(cluster.accelerator)
    run = assemble_run(config, 0, devices, device_memory=memory)

    try:
        run.kernels()
    except ValueError as error:
        raise ConfigError("runtime.attention", str(error)) from error
    return run


def describe_devices(cluster: Cluster) -> list[Any]:
    """Return jax devices that stand for the GPUs of a cluster, those of a node together."""
    topology = topologies.get_topology_desc(
        platform="cuda",
        target_config=describe_target(cluster.accelerator),
        topology=f"{cluster.nodes}x{cluster.gpus_per_node}x1",
    )
    return topology.devices


def lower_step(run: Run) -> Any:
    """Return the training step of a run before it is compiled, a jax.stages.Lowered."""
    arguments = abstract_arguments(run, max(run.schedule.sizes(0)))
    traced = build_update(run).trace(*arguments)  # type: ignore[attr-defined]
    return traced.lower(lowering_platforms=("cuda",))
