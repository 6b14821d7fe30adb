"""Bytes of the state of a run by ZeRO stage, from the number of parameters alone. Imports no jax.

ZeRO (arXiv 1910.02054, figure 1) with data parallelism over all GPUs: stage 1 splits the optimizer
state over them, stage 2 the gradients too, stage 3 the weights too.
"""

from typing import NamedTuple

STAGES = (0, 1, 2, 3)

# Bytes of a number by dtype.
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}

# The usual allowance for activations and temporary arrays, for a short context: half as much again
# as weights, gradients and Adam's moments take in float32.
ALLOWANCE = 0.5


class BytesPerParameter(NamedTuple):
    """Bytes that a parameter takes in each part of the state."""

    weights: float = 4
    gradients: float = 4
    optimizer: float = 8  # Adam: two moments in float32

    @property
    def total(self) -> float:
        return sum(self)


class State(NamedTuple):
    """Bytes on each GPU."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return sum(self)


def state_of(parameters: float, gpus: int, zero: int, each: BytesPerParameter) -> State:
    """Return the bytes on each of `gpus` GPUs for so many parameters."""
    shares = {"optimizer": zero >= 1, "gradients": zero >= 2, "weights": zero >= 3}

    def part(name: str) -> int:
        return round(parameters * getattr(each, name) / (gpus if shares[name] else 1))

    return State(part("weights"), part("gradients"), part("optimizer"))


def largest_model(memory: int, gpus: int, zero: int, each: BytesPerParameter) -> int:
    """Return the parameters whose state alone fills so many bytes of each GPU."""
    weights, gradients, optimizer = each
    replicated = weights * (zero < 3) + gradients * (zero < 2) + optimizer * (zero < 1)
    return int(memory / (replicated + (each.total - replicated) / gpus))


class Shape(NamedTuple):
    """A decoder's layers and width."""

    layers: int
    width: int


def usual_shape(parameters: float) -> Shape:
    """Return the shape of a decoder of that size: 12 layers * width^2, 128 channels a layer."""
    width = max(128, 128 * round((parameters * 128 / 12) ** (1 / 3) / 128))
    return Shape(max(1, round(parameters / (12 * width**2))), width)


class Activations(NamedTuple):
    """Bytes that one sequence takes in training, on the GPU that computes it."""

    length: int
    flash: int  # what all layers keep, with flash attention
    scores: int  # what attention keeps beside it, where it stores its weights
    recomputed: int  # the layers' inputs alone


def activations_of(
    shape: Shape, length: int, item_bytes: int, head_width: int = 128
) -> Activations:
    """Return the bytes of the activations of one sequence.

    A layer keeps 16 numbers of each channel of a token for the backward pass: its two inputs, their
    norms, queries, keys, values and the output of attention, and the hidden layer of the MLP (4
    times as wide) before and after the activation. Without flash attention each head keeps its
    weights in float32 too, [L, L]. Korthikanti et al. (arXiv 2205.05198, section 4.1) count alike:
    34 bytes in 16 bits with dropout's masks, and 5 bytes per pair of positions and head.
    """
    channel = shape.layers * shape.width * length * item_bytes
    heads = max(1, shape.width // head_width)
    pairs = shape.layers * heads * length * length * 4
    return Activations(length, 16 * channel, pairs, channel)
