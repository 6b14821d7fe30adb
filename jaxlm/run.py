"""The parts of a training run that its config alone decides: mesh, model and optimizer."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jaxlm import communication, loss_scaling, losses, models, optim, runtime, sharding
from jaxlm.config import Config, ConfigError
from jaxlm.data.schedule import BatchSchedule
from jaxlm.mesh_execution import build_execution
from jaxlm.models import Model
from jaxlm.models.adapters import with_frozen
from jaxlm.nn.execution import Execution
from jaxlm.parameter_names import merge
from jaxlm.run_checks import check_formats, check_mesh, check_sample
from jaxlm.sharding import Placement
from jaxlm.state import TrainState, abstract_state, state_shapes, state_shardings
from jaxlm.step import StepMetrics, train_step
from jaxlm.types import Batch, Tree

SHOWN_HOSTS = 8  # in the description of a mesh

# The jitted step of a run: (state, batch) -> (next state, metrics).
Update = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


class Run(NamedTuple):
    """The parts of a run that its config alone decides."""

    config: Config
    schedule: BatchSchedule
    placement: Placement
    execution: Execution
    model: Model
    optimizer: optax.GradientTransformation
    tile_bytes: int  # of the scores that a device has at a time
    compiler_options: dict[str, Any]  # of XLA, for the steps
    steps_in_flight: int  # steps that may run while the host prepares the next one
    example: Batch  # one sample, as the objective makes it

    @property
    def devices(self) -> list[Any]:
        """Return the jax devices of the mesh."""
        return list(self.placement.mesh.devices.flat)

    def kernels(self) -> dict[str, tuple[str, str]]:
        """Return the kernel of each kind of attention in a microbatch, and why."""
        rows = self.config.training.batch_size // self.config.training.microbatches

        def repeat(array: np.ndarray) -> np.ndarray:
            return np.broadcast_to(array[:1], (rows, *array.shape[1:]))

        return self.model.kernels(jax.tree.map(repeat, self.example))


def build_run(config: Config, first_step: int, hosts: Sequence[str] = ()) -> Run:
    """Build mesh, model and optimizer. `hosts` are the hosts of the processes.

    Raises ConfigError where they don't fit each other, or the batches from `first_step` on.
    """
    devices = runtime.select_devices(config.runtime, hosts)
    return assemble_run(config, first_step, devices)


def assemble_run(
    config: Config, first_step: int, devices: Sequence[Any], device_memory: int | None = None
) -> Run:
    """Build mesh, model and optimizer on these jax devices, in this order.

    `device_memory` are the bytes that a run may use of each; None: as the devices say. Those of
    GPUs that are only described don't. Raises ConfigError as `build_run` does.
    """
    example = check_sample(config)
    check_mesh(config, len(devices), first_step)
    capability = float(getattr(devices[0], "compute_capability", None) or 0.0)
    check_formats(config, devices[0].platform, capability)
    mesh = sharding.make_mesh(config.parallel, devices)
    if device_memory is None:
        device_memory = runtime.device_memory(mesh.local_devices[0])

    execution = build_execution(
        mesh,
        config.parallel,
        config.precision,
        config.runtime.attention,
        width=config.model.width,
        token_width=config.model.token_width,
        rank=config.adapter.rank,
        deterministic=config.runtime.deterministic,
    )
    model = models.build(config.model, config.precision, execution, config.adapter)
    if config.objective.kind == "preference":
        goal = config.objective
        model = model._replace(preference=losses.PreferenceLoss(goal.preference_loss, goal.beta))
    placement = Placement(
        mesh,
        model.axes,
        config.parallel.zero,
        config.precision.gradients,
        with_frozen(config.optimizer, config.adapter, model.axes).frozen,
    )
    optimizer = assemble_optimizer(config, model.axes, placement)

    # On CPUs the host's work and the step's share the cores, and emulated devices wait for each
    # other with a deadline, which they would miss if steps piled up.
    steps_in_flight = 0 if devices[0].platform == "cpu" else 1
    return Run(
        config=config,
        schedule=BatchSchedule(config.training.batch_size, config.training.batch_schedule),
        placement=placement,
        execution=execution,
        model=model,
        optimizer=optimizer,
        tile_bytes=losses.tile_bytes(device_memory),
        compiler_options=compiler_options(config, mesh),
        steps_in_flight=steps_in_flight,
        example=example,
    )


def assemble_optimizer(
    config: Config, axes: Tree, placement: Placement | None = None
) -> optax.GradientTransformation:
    """Build the optimizer of a run, whose parameters have these logical axes.

    It has the learning rates of the model's parametrization, and scales the loss where the run
    computes in float16.
    """
    factors = optim.rate_factors(config.model, axes, config.optimizer.kind)
    optimizer_config = with_frozen(config.optimizer, config.adapter, axes)
    optimizer = optim.build_optimizer(
        optimizer_config, config.training.steps, axes, factors, placement=placement
    )
    return loss_scaling.apply_loss_scaling(optimizer, config.precision)


def build_update(run: Run) -> Update:
    """Return the jitted step of a run."""
    return train_step(
        run.model,
        run.optimizer,
        run.config.training,
        run.placement,
        run.config.seed,
        tile_bytes=run.tile_bytes,
        compiler_options=run.compiler_options,
    )


def build_evaluation_params(run: Run) -> Callable[[TrainState], Tree]:
    """Return the function from a state to the parameters that are evaluated."""
    config = with_frozen(run.config.optimizer, run.config.adapter, run.model.axes)
    if config.kind != "schedule_free":
        return lambda state: state.params

    shapes = state_shapes(run.model, run.optimizer).params

    def evaluated(state: TrainState) -> Tree:
        optimizer_state = loss_scaling.without_scaling(state.optimizer)
        return optim.evaluation_params(config, state.params, optimizer_state)

    return jax.jit(evaluated, out_shardings=run.placement.tree("parameters", shapes))


def build_averaged_params(run: Run) -> Callable[[TrainState], Tree] | None:
    """Return the function from a state to the average of its weights; None for a run without."""
    if run.config.optimizer.ema_decay is None:
        return None
    shapes = state_shapes(run.model, run.optimizer).params

    def averaged(state: TrainState) -> Tree:
        average = jax.tree.map(
            lambda mean, weight: mean.astype(weight.dtype),
            optim.averaged_weights(loss_scaling.without_scaling(state.optimizer)),
            run.placement.trainable(state.params),
        )
        return merge(state.params, average)

    return jax.jit(averaged, out_shardings=run.placement.tree("parameters", shapes))


def abstract_arguments(run: Run, rows: int) -> tuple[TrainState, Batch]:
    """Return the state and a batch of so many samples as ShapeDtypeStructs with shardings."""
    sharding = run.placement.batch()

    def abstract(array: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype, sharding=sharding)

    state = abstract_state(run.model, run.optimizer, run.placement)
    return state, jax.tree.map(abstract, run.example)


def compiler_options(config: Config, mesh: Mesh) -> dict[str, Any]:
    """Return the options with which XLA compiles the steps."""
    layer_bytes = None
    if config.parallel.zero == 3:
        layer_bytes = communication.layer_bytes(config.model, config.precision, mesh.shape["fsdp"])
    devices, float8 = list(mesh.devices.flat), config.precision.matmul == "float8"
    return runtime.compiler_options(devices, layer_bytes, float8=float8)


def check_memory(run: Run) -> None:
    """Raise ConfigError if the memory can't hold the weights and the optimizer state alone.

    Sizes far beyond it would end this process within XLA.
    """
    device = run.placement.mesh.local_devices[0]
    available, place = runtime.device_memory(device), "each device"
    needed = sum(state_bytes(run))
    if available is None:  # the devices of a CPU share its memory
        available, place = runtime.host_memory(), "this machine"
        needed *= len(run.placement.mesh.local_devices)

    if needed > available:
        reason = f"parameters and optimizer state take {needed:,} bytes"
        remedy = "make the model smaller, or split it over more devices (parallel.zero=3)"
        raise ConfigError("model", f"{reason}, but {place} has {available:,}: {remedy}")


def state_bytes(run: Run) -> tuple[int, int]:
    """Return the bytes that each device holds of the parameters and of the optimizer state."""
    shapes = state_shapes(run.model, run.optimizer)
    shardings = state_shardings(run.model, run.optimizer, run.placement)
    return (
        sharding.bytes_per_device(shapes.params, shardings.params),
        sharding.bytes_per_device(shapes.optimizer, shardings.optimizer),
    )


def describe_run(run: Run, hosts: Sequence[str]) -> list[str]:
    """Return lines on what is about to run: size, mesh, bytes, kernels, and what may surprise."""
    config, mesh = run.config, run.placement.mesh
    devices = runtime.describe_devices(run.devices)
    axes = describe_mesh(mesh, hosts)
    lines = [
        f"{devices}: {axes}, ZeRO {config.parallel.zero}, {config.precision.compute}",
        f"model: {config.model.family}, {run.model.parameter_count():,} parameters",
    ]
    if run.model.generator is not None:
        lines[-1] += f", and {run.model.generator_parameter_count():,} of its generator"

    if config.adapter.rank:
        lines[-1] += f", and {run.model.adapter_parameter_count():,} of adapters"

    params, optimizer = state_bytes(run)
    lines.append(f"bytes per device: parameters {params:,}, optimizer state {optimizer:,}")

    try:
        kernels = run.kernels()
    except ValueError as error:
        raise ConfigError("runtime.attention", str(error)) from error
    lines += [f"{name}: {kernel} ({reason})" for name, (kernel, reason) in kernels.items()]

    lines.append(f"blocks {run.execution.blocks}, remat {run.execution.remat}")
    lines.append(describe_loss(run))

    warmup, steps = config.optimizer.warmup_steps, config.training.steps
    if warmup > steps:
        lines.append(f"warning: optimizer.warmup_steps={warmup} is cut to training.steps={steps}")

    if config.optimizer.kind == "schedule_free" and config.optimizer.schedule != "constant":
        advice = "schedule_free needs no falling rate: optimizer.schedule=constant is its schedule"
        lines.append(f"warning: {advice}")

    if config.parallel.zero:
        shapes = state_shapes(run.model, run.optimizer).params
        optimizer_shardings = run.placement.tree("optimizer", shapes)
        unsplit = sharding.list_replicated(run.placement.trainable(shapes), optimizer_shardings)
        if unsplit:
            names = ", ".join(unsplit)
            share = "more than 1% of the bytes"
            lines.append(f"warning: {share} are not split over parallel.fsdp: {names}")
    return lines


def describe_loss(run: Run) -> str:
    """Return whether the loss is computed in tiles."""
    targets = run.example.targets
    assert targets is not None
    training, positions = run.config.training, targets.shape[1]
    rows = max(run.schedule.sizes(0)) // (run.placement.batch_shards * training.microbatches)
    tile = losses.tile_length(
        rows=rows,
        positions=positions,
        vocabulary_size=run.config.model.outputs,
        requested=training.loss_tile,
        tile_bytes=run.tile_bytes,
    )
    if tile == positions:
        return "loss: scores of all positions at once"
    why = "training.loss_tile" if training.loss_tile else "by the device's memory"
    return f"loss: {tile} of {positions} positions at a time ({why})"


def describe_mesh(mesh: Mesh, hosts: Sequence[str]) -> str:
    """Return 'data 2 (across hosts) x fsdp 4 x tensor 1', and the processes of each host.

    `hosts` are the names of the hosts by process. A single process is not mentioned.
    """
    names = np.vectorize(lambda device: hosts[device.process_index], otypes=[object])(mesh.devices)
    parts = []
    for axis, (name, size) in enumerate(mesh.shape.items()):
        across = (names != np.take(names, [0], axis=axis)).any()
        parts.append(f"{name} {size}" + (" (across hosts)" if across else ""))
    axes = " x ".join(parts)
    if len(hosts) == 1:
        return axes

    processes: dict[str, list[int]] = {}
    for process, host in enumerate(hosts):
        processes.setdefault(host, []).append(process)
    places = [f"{host}: {describe_ranges(numbers)}" for host, numbers in processes.items()]
    shown = "; ".join(places[:SHOWN_HOSTS])
    more = f"; {len(places) - SHOWN_HOSTS} more hosts" if len(places) > SHOWN_HOSTS else ""
    return f"{axes} on {len(hosts)} processes ({shown}{more})"


def describe_ranges(numbers: Sequence[int]) -> str:
    """Return '0-3, 6' for the increasing numbers 0, 1, 2, 3, 6."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    ranges = zip(starts, ends, strict=True)
    return ", ".join(str(start) if start == end else f"{start}-{end}" for start, end in ranges)
