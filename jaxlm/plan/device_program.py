"""The training step as one device runs it, traced for devices that are not there.

It is the program of `jaxlm.step`, without arrays. Only cuDNN's attention, which jax traces on a
machine with cuDNN alone, is replaced by an operation that reads and keeps the same arrays.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, Primitive
from jax.sharding import AbstractMesh, AxisType

from jaxlm import losses, mesh_execution, models, sharding, state, step
from jaxlm.config import Config, ModelConfig
from jaxlm.config.mesh import mesh_sizes
from jaxlm.models import Model
from jaxlm.models.adapters import with_frozen
from jaxlm.nn.dot_product import pad_for_cudnn
from jaxlm.nn.embedding import padded_vocabulary
from jaxlm.nn.kernel_choice import GPUS
from jaxlm.parameter_names import without
from jaxlm.quantization import QuantizedWeight, quantized_axes
from jaxlm.run import assemble_optimizer
from jaxlm.run_checks import check_mesh, check_sample
from jaxlm.types import Array, Axes, Batch, Tree

# A name that `models.stack.save_attention` keeps, as it keeps the results of cuDNN's kernel.
FORWARD, BACKWARD = "dot_product_attention_fwd", "dot_product_attention_bwd"


@dataclass(frozen=True)
class Device:
    """The facts that a program depends on of the device that will run it."""

    platform: str = "cuda"
    compute_capability: str = "9.0"


@dataclass
class StateBytes:
    """Bytes that each device holds from step to step, and in every step."""

    parameters: int
    optimizer: int  # with the number of the step
    gradients: int  # float32, of the part whose moments the device has
    batch: int
    copies: int  # of weights whose split dimension is not the first: gathers read copies
    matrices: int  # float32, of the matrices that an optimizer computes with at once


@dataclass
class TracedStep:
    """The program by which a device computes gradients, and how to tell its arrays apart."""

    gradients: Jaxpr  # of all parameters, by all microbatches
    weight_shapes: set[tuple[int, ...]]  # of weights and their parts, stacked and of one layer
    scores_width: int  # columns of the scores that a device computes
    second_scores: int  # bytes of scores that the compiler computes twice
    kernels: dict[str, tuple[str, str]]  # of each kind of attention, and why


# The stand-in for cuDNN


forward_kernel, backward_kernel = Primitive(FORWARD), Primitive(BACKWARD)
forward_kernel.multiple_results = backward_kernel.multiple_results = True


@forward_kernel.def_abstract_eval
def forward_shapes(q: Any, *_: Any) -> tuple[ShapedArray, ShapedArray]:
    """Return the shapes of the output and of a statistic per query, float32 [B, H, L]."""
    B, L, H, _ = q.shape
    return ShapedArray(q.shape, q.dtype), ShapedArray((B, H, L), jnp.dtype(jnp.float32))


@backward_kernel.def_abstract_eval
def backward_shapes(*operands: Any) -> list[ShapedArray]:
    """Return the shapes of the gradients of q, k, v and the bias, if there is one."""
    q, k, v, _, _, _, *bias = operands
    return [ShapedArray(x.shape, x.dtype) for x in (q, k, v, *bias)]


@jax.custom_vjp
def kernel(*operands: Array) -> Array:
    """Return the shape of attention over q, k, v and perhaps a bias."""
    return forward_kernel.bind(*operands)[0]


def kernel_forward(*operands: Array) -> tuple[Array, tuple[tuple[Array, ...], Array, Array]]:
    """Return the output and what the backward pass reads."""
    output, statistics = forward_kernel.bind(*operands)
    return output, (operands, output, statistics)


def kernel_backward(
    saved: tuple[tuple[Array, ...], Array, Array], gradient: Array
) -> tuple[Array, ...]:
    """Return the gradients of the operands."""
    (q, k, v, *bias), output, statistics = saved
    return tuple(backward_kernel.bind(q, k, v, output, statistics, gradient, *bias))


kernel.defvjp(kernel_forward, kernel_backward)


def stand_in(
    function: Any, operands: dict[str, Array], axes: dict[str, Axes], result_axes: Axes
) -> Array:
    """Return the output of a flash kernel over the operands, padded as cuDNN wants them."""
    del function, axes, result_axes
    q, k, v = (pad_for_cudnn(operands[name], (1,)) for name in "qkv")
    bias = operands.get("bias")
    biases = [] if bias is None else [pad_for_cudnn(bias.astype(q.dtype), (2, 3))]
    return kernel(q, k, v, *biases)[:, : operands["q"].shape[1]]


# The program


def measure_state(config: Config, gpus: int) -> StateBytes:
    """Return the bytes of what each of `gpus` devices holds. They are exact.

    ConfigError where the config does not fit so many devices.
    """
    example = check_sample(config)
    check_mesh(config, gpus, 0)
    sizes = mesh_sizes(config.parallel, gpus)
    model, placement = place_model(config, config.model, sizes, Device())
    optimizer = assemble_optimizer(config, model.axes, placement)
    shapes = state.state_shapes(model, optimizer)
    shardings = state.state_shardings(model, optimizer, placement)

    moments = placement.tree("optimizer", shapes.params)
    batch = batch_shapes(example, config.training.batch_size)
    batch_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch))
    return StateBytes(
        parameters=sharding.bytes_per_device(shapes.params, shardings.params),
        optimizer=4 + sharding.bytes_per_device(shapes.optimizer, shardings.optimizer),
        gradients=sharding.bytes_per_device(
            in_float32(placement.trainable(shapes.params)), moments
        ),
        batch=batch_bytes // placement.batch_shards,
        copies=copied_bytes(shapes.params, shardings.params, placement),
        matrices=matrix_bytes(config.optimizer.kind, placement, shapes.params),
    )


def matrix_bytes(kind: str, placement: sharding.Placement, shapes: Tree) -> int:
    """Return the bytes of the matrices that Muon or Shampoo has on a device at once.

    That is a device's share of the largest stack: the matrices, their products and the results.
    """
    if kind not in ("muon", "shampoo"):
        return 0
    stacks = [leaf.size for leaf in jax.tree.leaves(placement.trainable(shapes)) if leaf.ndim > 2]
    return 3 * 4 * max(stacks, default=0) // placement.mesh.size


def trained_bytes(config: Config) -> tuple[float, float, float]:
    """Return the bytes of weights, gradients and optimizer state per parameter of the model.

    Frozen parameters have none. The counters of steps are left out.
    """
    model = models.build(config.model, config.precision, adapter=config.adapter)
    optimizer = assemble_optimizer(config, model.axes)
    shapes = state.state_shapes(model, optimizer)
    frozen = with_frozen(config.optimizer, config.adapter, model.axes).frozen
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    trained = sum(leaf.size for leaf in jax.tree.leaves(without(shapes.params, frozen)))
    held = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes.optimizer) if leaf.ndim
    )
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes.params))
    return weights / parameters, 4 * trained / parameters, held / parameters


def trace_step(
    config: Config, gpus: int, device_memory: int | None, device: Device | None = None
) -> TracedStep:
    """Return how one of `gpus` devices computes the gradients of a step.

    `device_memory` are the bytes that jax takes of each. ValueError if the config asks for a kernel
    of attention that can't do its case.
    """
    sizes = mesh_sizes(config.parallel, gpus)
    device = device or Device()
    batch = batch_shapes(check_sample(config), config.training.batch_size)
    assert batch.targets is not None
    microbatches = config.training.microbatches
    device_rows = config.training.batch_size // (sizes["data"] * sizes["fsdp"] * microbatches)
    tile = losses.tile_length(
        rows=device_rows,
        positions=batch.targets.shape[1],
        vocabulary_size=config.model.outputs,
        requested=config.training.loss_tile,
        tile_bytes=losses.tile_bytes(device_memory),
    )

    # What a device sees of a model that is split over `tensor` is a narrower one.
    local = local_model(config.model, sizes["tensor"])
    config = replace(config, training=replace(config.training, loss_tile=tile))
    model, placement = place_model(config, local, sizes | {"tensor": 1}, device)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shardings = placement.tree("optimizer", shapes)
    rows = config.training.batch_size // microbatches
    is_classifier = config.model.is_classifier
    width = local.outputs if is_classifier else padded_vocabulary(local.vocabulary_size)
    repeats_scores = sizes["tensor"] > 1 and not is_classifier
    return TracedStep(
        gradients=trace_gradients(config, model, placement, batch),
        weight_shapes=weight_shapes(shapes, placement.trainable(shapes), shardings),
        scores_width=width,
        # Where the vocabulary is split, the loss and its gradient each have scores of their own.
        second_scores=4 * device_rows * tile * width if repeats_scores else 0,
        kernels=model.kernels(batch_shapes(check_sample(config), rows)),
    )


def weight_shapes(shapes: Tree, trained: Tree, shardings: Tree) -> set[tuple[int, ...]]:
    """Return the shapes of matrices and of their parts, with and without a first axis of layers.

    `shardings` are those of the `trained` ones of all `shapes`.
    """
    wholes = [x.shape for x in jax.tree.leaves(shapes)]
    pairs = zip(jax.tree.leaves(trained), jax.tree.leaves(shardings), strict=True)
    parts = [sharding.shard_shape(leaf.shape) for leaf, sharding in pairs]
    found = {shape for shape in (*wholes, *parts) if len(shape) > 1}
    found |= {shape[1:] for shape in found if len(shape) > 2}
    return found | {(1, *shape) for shape in found}


def place_model(
    config: Config, model_config: ModelConfig, sizes: dict[str, int], device: Device
) -> tuple[Model, sharding.Placement]:
    """Return a model on a mesh of these sizes, and the shardings of its arrays."""
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3)
    execution = mesh_execution.build_execution(
        mesh,  # type: ignore[arg-type]
        config.parallel,
        config.precision,
        config.runtime.attention,
        width=model_config.width,
        token_width=model_config.token_width,
        rank=config.adapter.rank,
        deterministic=config.runtime.deterministic,
        device=device,
    )
    if device.platform in GPUS:
        execution = execution._replace(per_device=stand_in)
    model = models.build(model_config, config.precision, execution, config.adapter)
    placement = sharding.Placement(
        mesh,  # type: ignore[arg-type]
        model.axes,
        config.parallel.zero,
        config.precision.gradients,
        with_frozen(config.optimizer, config.adapter, model.axes).frozen,
    )
    return model, placement


def trace_gradients(
    config: Config, model: Model, placement: sharding.Placement, batch: Batch
) -> Jaxpr:
    """Return the gradients of all parameters, as every device computes its part of them."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    gradients = step.batch_gradients(model, config.training, placement, params)

    def run(params: Tree, batch: Batch) -> Any:
        key = jax.random.key(0) if step.is_random(model) else None
        return gradients(params, step.number_rows(batch), key)

    return jax.make_jaxpr(run)(params, batch).jaxpr


def local_model(config: ModelConfig, tensor: int) -> ModelConfig:
    """Return the model whose layers are what a device sees of one split over `tensor` devices."""
    if tensor == 1:
        return config
    vocabulary = padded_vocabulary(config.vocabulary_size)
    split = {
        "head_width": config.width_per_head,
        "heads": config.heads // tensor,
        "kv_heads": max(1, config.key_value_heads // tensor),
        "mlp_width": config.hidden_width // tensor,
        "vocabulary_size": vocabulary // tensor if vocabulary % tensor == 0 else vocabulary,
    }
    if config.family == "encoder_decoder":
        encoder = config.encoder
        split["encoder_heads"] = encoder.heads // tensor
        split["encoder_kv_heads"] = max(1, encoder.key_value_heads // tensor)
        split["encoder_mlp_width"] = encoder.hidden_width // tensor
    return replace(config, **split)


def batch_shapes(example: Batch, rows: int) -> Batch:
    """Return the shapes of a batch of so many samples."""

    def shape(array: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype)

    return jax.tree.map(shape, example)


def in_float32(shapes: Tree) -> Tree:
    """Return the shapes of float32 arrays of the same sizes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), shapes)


def copied_bytes(shapes: Tree, shardings: Tree, placement: sharding.Placement) -> int:
    """Return the bytes of a device's parts of weights that XLA copies before it gathers them.

    A gather adds to the first dimension of an array in memory. Where another dimension of a weight
    is split, XLA holds the part in another order for the whole of the step.
    """
    if placement.zero < 3:
        return 0

    def size(axes: Axes, shape: Any, where: Any) -> int:
        if isinstance(shape, QuantizedWeight):
            parts = quantized_axes(axes, shape.bits)
            values = size(parts.values, shape.values, where.values)
            return values + size(parts.scales, shape.scales, where.scales)
        spec = list(where.spec)
        first = 1 if axes[0] == "layers" else 0
        is_split = "fsdp" in spec and placement.mesh.shape["fsdp"] > 1
        if not is_split or spec.index("fsdp") == first:
            return 0
        return int(np.prod(where.shard_shape(shape.shape))) * shape.dtype.itemsize

    sizes = jax.tree.map(
        size, placement.axes, shapes, shardings, is_leaf=lambda x: isinstance(x, tuple)
    )
    return sum(jax.tree.leaves(sizes))
