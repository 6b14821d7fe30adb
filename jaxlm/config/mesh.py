"""The mesh that a config asks for: the devices along each axis, and what they must divide.

The devices are only counted here. Imports no jax: a mesh that can't be is refused before it starts.
"""

import math
from collections.abc import Mapping, Sequence

from jaxlm.config.errors import ConfigError
from jaxlm.config.model import ModelConfig
from jaxlm.config.training import EvaluationConfig, ParallelConfig

MESH_AXES = ("data", "fsdp", "tensor")


def mesh_sizes(parallel: ParallelConfig, device_count: int) -> dict[str, int]:
    """Return the size of each mesh axis on so many devices.

    ConfigError if the sizes don't multiply to the number of devices.
    """
    sizes = {name: getattr(parallel, name) for name in MESH_AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if device_count % fixed or (-1 not in sizes.values() and fixed != device_count):
        shape = " x ".join(f"{name} {size}" for name, size in sizes.items() if size != -1)
        reason = f"{shape} does not fit {device_count} devices (runtime.devices)"
        raise ConfigError("parallel", reason)

    sizes = {name: device_count // fixed if size == -1 else size for name, size in sizes.items()}
    if parallel.zero > 0 and sizes["fsdp"] == 1 and device_count > 1:
        raise ConfigError(
            "parallel.zero",
            f"stage {parallel.zero} splits the state over parallel.fsdp, "
            f"which is 1 on {device_count} devices",
        )
    return sizes


def check_tensor(tensor: int, model: ModelConfig) -> None:
    """Raise a ConfigError if `tensor` devices can't split the heads and the MLP of the model."""
    for prefix, stack in model.stacks.items():
        for name, size in (("heads", stack.heads), ("mlp_width", stack.hidden_width)):
            if size % tensor:
                raise ConfigError(
                    "parallel.tensor", f"{tensor} does not divide model.{prefix}{name} ({size})"
                )

    generator = model.generator
    if generator is not None and (generator.heads % tensor or generator.hidden_width % tensor):
        sizes = f"heads ({generator.heads}) or mlp_width ({generator.hidden_width})"
        raise ConfigError("parallel.tensor", f"{tensor} does not divide the generator's {sizes}")


def check_widths(sizes: Mapping[str, int], model: ModelConfig, zero: int) -> None:
    """Raise a ConfigError if ZeRO 3 would split some of ELECTRA's widths and others not.

    A device tells by the logical axis alone whether it has a part of a weight or all of it.
    """
    if zero != 3 or model.generator is None:
        return

    fsdp, widths = sizes["fsdp"], (model.width, model.generator.width, model.token_width)
    if len({width % fsdp == 0 for width in widths}) > 1:
        shown = ", ".join(map(str, widths))
        raise ConfigError(
            "parallel.fsdp",
            f"{fsdp} divides some of the widths of model, generator and embeddings ({shown}), "
            "which parallel.zero=3 can't split: use another mesh or parallel.zero=2",
        )


def check_batches(
    sizes: Mapping[str, int],
    batch_sizes: Sequence[int],
    microbatches: int,
    evaluation: EvaluationConfig,
) -> None:
    """Raise a ConfigError if the mesh does not divide the batches.

    `batch_sizes` are those of the steps still to come.
    """
    rows = sizes["data"] * sizes["fsdp"]
    for size in batch_sizes:
        if size % (rows * microbatches):
            parts = f"{rows} devices"
            if microbatches > 1:
                parts += f" x {microbatches} microbatches"
            raise ConfigError(
                "training.batch_size",
                f"{size} sequences can't be split evenly over {parts} "
                "(parallel.data x parallel.fsdp)",
            )

    if evaluation.batch_size is not None and evaluation.batch_size % rows:
        raise ConfigError(
            "evaluation.batch_size",
            f"{evaluation.batch_size} sequences can't be split evenly over {rows} devices",
        )
