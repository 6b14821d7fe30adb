"""Counts of what a training step sends between devices: how often, how many bytes, which dtypes.

The volumes are those of ZeRO (arXiv 1910.02054, section 7): with P parameters a reduce-scatter of P
gradients, and an all-gather of P parameters once per step (stages 1 and 2) or twice per microbatch
(stage 3). `jaxlm.mesh_execution` carries them out; `tests/test_compiled_collectives.py`
finds them in compiled programs.
"""

from typing import NamedTuple

from jaxlm.config import ModelConfig, PrecisionConfig
from jaxlm.flops import projection_products, reads_source_alone

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Weights(NamedTuple):
    """Weight matrices that travel together."""

    elements: int  # of one layer, or of a part of the model that is outside the layers
    width: int  # length of the dimension that ZeRO splits
    layers: int = 0  # with as many elements each; 0: outside the layers
    uses: int = 1  # outside the layers: places of the forward pass that read them

    @property
    def total(self) -> int:
        """Return the elements of all layers."""
        return self.elements * max(1, self.layers)


class Transfer(NamedTuple):
    """A collective operation of a training step."""

    kind: str  # "all-gather", "reduce-scatter" or "all-reduce"
    dtype: str
    elements: int  # of the whole arrays: after a gather, before a scatter
    devices: int  # that take part together
    times: int  # per step
    layers: int  # of the stack whose layers travel one by one; 0: all at once, or none

    @property
    def bytes(self) -> int:
        """Return the bytes of the whole arrays, of all times together."""
        return self.elements * ITEM_BYTES[self.dtype] * self.times

    @property
    def sent_bytes(self) -> int:
        """Return the bytes that each device sends in a step, in a ring of the devices.

        Each of a gather's and of a reduce-scatter's n - 1 rounds sends 1/n of the arrays; an
        all-reduce is both.
        """
        rounds = self.devices - 1
        return self.bytes * (2 * rounds if self.kind == "all-reduce" else rounds) // self.devices


def step_transfers(
    config: ModelConfig,
    precision: PrecisionConfig,
    *,
    zero: int,
    fsdp: int,
    data: int = 1,
    microbatches: int = 1,
) -> list[Transfer]:
    """Return what a step sends over the mesh axes `data` and `fsdp`, as counted on each device.

    Under ZeRO 3 every policy of `parallel.remat` gathers a layer's weights forward and again
    backward: none keeps gathered weights. Rows that pad the vocabulary, norms and biases, which
    every device has whole and sums once per step, are left out (about a thousandth), and so is
    `parallel.tensor`.
    """
    transfers = []
    for weights in model_weights(config):
        is_split = zero > 0 and fsdp > 1 and weights.width % fsdp == 0
        if zero == 3 and is_split:
            transfers += microbatch_transfers(weights, precision, fsdp, microbatches)
        elif is_split:
            scatters = microbatches if zero == 2 else 1
            gradients = (precision.gradients, weights.total, fsdp, scatters, 0)
            transfers.append(Transfer("reduce-scatter", *gradients))
            transfers.append(Transfer("all-gather", precision.params, weights.total, fsdp, 1, 0))

        # What is split over fsdp is summed between the replicas in parts.
        devices, elements = data * fsdp, weights.total
        if is_split:
            devices, elements = data, elements // fsdp
        if devices > 1:
            transfers.append(Transfer("all-reduce", precision.gradients, elements, devices, 1, 0))

    return transfers


def microbatch_transfers(
    weights: Weights, precision: PrecisionConfig, fsdp: int, microbatches: int
) -> list[Transfer]:
    """Return what ZeRO 3 sends of weights: a gather before each use, a reduce-scatter after it."""
    uses = microbatches * (weights.layers or weights.uses)
    gathers = 2 * uses if weights.layers else uses
    arrays = (weights.elements, fsdp)
    return [
        Transfer("all-gather", precision.compute, *arrays, gathers, weights.layers),
        Transfer("reduce-scatter", precision.gradients, *arrays, uses, weights.layers),
    ]


def layer_bytes(config: ModelConfig, precision: PrecisionConfig, fsdp: int) -> tuple[int, int]:
    """Return the bytes of a layer's gathered weights, and of a device's part of its gradients.

    The largest layer counts.
    """
    elements = max(weights.elements for weights in model_weights(config) if weights.layers)
    return (
        elements * ITEM_BYTES[precision.compute],
        elements * ITEM_BYTES[precision.gradients] // fsdp,
    )


# The matrices of a model


def model_weights(config: ModelConfig) -> list[Weights]:
    """Return the weight matrices of a model, without norms and biases."""
    if config.is_classifier:
        return classifier_weights(config)
    if config.generator_share is not None:
        return electra_weights(config)

    is_shared = config.family == "encoder_decoder" and config.shared_embedding
    tokens = config.vocabulary_size * config.token_width
    uses = 1 + is_shared + config.tied_head
    weights = [Weights(tokens, config.token_width, uses=uses)]
    if not config.tied_head:
        weights.append(Weights(tokens, config.token_width))
    if config.family == "encoder_decoder" and not is_shared:
        weights.append(Weights(tokens, config.token_width))

    for stack in config.stacks.values():
        weights.append(layer_weights(stack))
        weights += position_weights(stack)
    projections = len(config.stacks) + 1  # into each stack, and out before the head
    if config.embedding_width is not None:
        weights += projections * [Weights(config.width * config.token_width, config.width)]
    if config.head_transform:
        weights.append(Weights(config.width * config.width, config.width))
    return weights


def classifier_weights(config: ModelConfig) -> list[Weights]:
    """Return the weights of a classifier, which has no head over the vocabulary."""
    tokens, width = config.vocabulary_size * config.token_width, config.width
    if config.generator_share is not None:
        *weights, _ = electra_weights(config)  # without the head of ELECTRA
    else:
        stacks = list(config.stacks.values())
        if reads_source_alone(config):
            stacks = [config.encoder]
        tables = 1 if config.shared_embedding else len(stacks)
        weights = tables * [Weights(tokens, config.token_width, uses=len(stacks) // tables)]
        for stack in stacks:
            weights.append(layer_weights(stack))
            weights += position_weights(stack)
        if config.embedding_width is not None:
            weights += len(stacks) * [Weights(width * config.token_width, width)]

    if config.label_head.transform != "none":
        weights.append(Weights(width * width, width))
    return [*weights, Weights(width * config.outputs, width)]


def layer_weights(stack: ModelConfig) -> Weights:
    """Return the weights of the layers of a stack: attention, cross attention and MLP."""
    attentions = 2 if stack.family == "encoder_decoder" else 1
    mlp = (3 if stack.gated else 2) * stack.width * stack.hidden_width
    elements = attentions * sum(projection_products(stack)) + mlp
    return Weights(elements, stack.width, layers=stack.layers)


def position_weights(stack: ModelConfig, uses: int = 1) -> list[Weights]:
    """Return the tables of positions and of token types."""
    width = stack.width
    rows = [stack.token_types] if stack.token_types else []
    if stack.positions == "learned":
        rows.append(stack.context_length + stack.position_offset)
    return [Weights(count * width, width, uses=uses) for count in rows]


def electra_weights(config: ModelConfig) -> list[Weights]:
    """Return the weights of ELECTRA's networks, which read the same embeddings."""
    generator, width = config.generator, config.token_width
    networks = [config] if generator is None else [config, generator]
    reads_table = generator is not None and generator.tied_head
    tokens = config.vocabulary_size * width

    weights = [Weights(tokens, width, uses=len(networks) + reads_table)]
    for table in position_weights(config, len(networks)):
        rows = table.elements // config.width  # at the width of the embeddings
        weights.append(Weights(rows * width, width, uses=table.uses))
    for network in networks:
        weights.append(layer_weights(network))
        if width != network.width:
            weights.append(Weights(width * network.width, network.width))

    weights.append(Weights(config.width * config.width + config.width, config.width))
    if generator is not None:
        weights.append(Weights(generator.width * width, generator.width))
        if not generator.tied_head:
            weights.append(Weights(tokens, width))
    return weights
