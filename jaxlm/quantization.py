"""Weights rounded to 8 or 4 bits, with a float scale for each output channel or group of inputs.

Rounding is symmetric: a scale is the largest absolute value that it stands for, divided by the
largest level (127 or 7), and a weight is the nearest multiple of its scale. Export, inference and
training with rounded weights (`precision.weights`) round by the same function.

    8 bits    int8, of the weight's shape; a scale for each output channel
    4 bits    uint8, two levels in a byte: the inputs are [groups, group / 2], and low and high
              bits are the first and the second half of a group; a scale for each group and channel

Only matrices along the width are rounded: projections, MLPs, tables of tokens and positions, the
head. Norms, biases, T5's table of relative positions and the scores of a classifier stay float32.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.config.training import INT4_GROUP
from jaxlm.types import Array, Axes, Tree, is_axes

WIDTH_AXES = {"embed", "token_embed"}  # a matrix reads or writes the width
TABLE_AXES = {"vocabulary", "position"}  # first axis of tables, whose rows are output channels
LABELS_AXIS = "labels"  # the scores of a classifier stay float32
LARGEST_LEVEL = {8: 127, 4: 7}
DEFAULT_GROUP = INT4_GROUP  # inputs that share a scale at 4 bits
TRAINED_BITS = {"int8": 8, "int4": 4}  # by the names of `precision.weights`


@jax.tree_util.register_pytree_with_keys_class
class QuantizedWeight:
    """A rounded weight, in place of its array in a tree of parameters.

    Layers hand it to `nn.matmul` and to `nn.quantized_product.lookup_rows`. A stack of layers has
    the axis of the layers first in both arrays.
    """

    def __init__(self, values: Any, scales: Any):
        self.values = values  # int8, or uint8 with two levels in a byte
        self.scales = scales  # float32

    def tree_flatten_with_keys(self) -> tuple[tuple, None]:
        """Return both arrays with their names, which are part of the tensors' names in files."""
        key = jax.tree_util.GetAttrKey
        return ((key("values"), self.values), (key("scales"), self.scales)), None

    @classmethod
    def tree_unflatten(cls, _: None, arrays: tuple[Any, Any]) -> "QuantizedWeight":
        """Return the weight of two arrays, or of what stands for them in a tree."""
        return cls(*arrays)

    @property
    def bits(self) -> int:
        """Return the bits of a level."""
        return 8 if self.values.dtype == jnp.int8 else 4


class InputAxes(NamedTuple):
    """The axes of a weight, of one layer or of a stack, that a product sums over."""

    start: int
    stop: int


def input_axes(axes: Axes) -> InputAxes | None:
    """Return the input axes of a weight with these logical axes, None for one that stays float.

    They are the last one of tables, the heads and their channels in the output of attention, and
    the first one elsewhere.
    """
    first = int(axes[:1] == ("layers",))
    names = axes[first:]
    if len(names) < 2 or not WIDTH_AXES & set(names) or LABELS_AXIS in names:
        return None
    if names[0] in TABLE_AXES:
        return InputAxes(len(axes) - 1, len(axes))
    return InputAxes(first, first + (2 if names[:2] == ("heads", "head") else 1))


def split_groups(shape: tuple[int, ...], inputs: InputAxes, group: int) -> tuple[int, ...]:
    """Return a weight's shape with its input axes as [groups, group].

    Raises ValueError where the group doesn't divide the number of inputs.
    """
    size = 1
    for length in shape[inputs.start : inputs.stop]:
        size *= length
    if size % group:
        raise ValueError(f"a group of {group} does not divide its {size} inputs")
    return (*shape[: inputs.start], size // group, group, *shape[inputs.stop :])


def round_to_levels(weight: Array, over: tuple[int, ...], bits: int) -> tuple[Array, Array]:
    """Return float32 levels, and scales that keep the axes `over` with length 1.

    The scale of zeros is 1.
    """
    largest = LARGEST_LEVEL[bits]
    weight = weight.astype(jnp.float32)
    # A product, since compilers turn a division by a constant into one.
    scales = jnp.max(jnp.abs(weight), over, keepdims=True) * jnp.float32(1 / largest)
    scales = jnp.where(scales > 0, scales, jnp.float32(1))
    return jnp.clip(jnp.round(weight / scales), -largest, largest), scales


def quantize(weight: Array, axes: Axes, bits: int, group: int = DEFAULT_GROUP) -> QuantizedWeight:
    """Return a matrix with these logical axes, rounded. `group` is read at 4 bits alone."""
    inputs = input_axes(axes)
    assert inputs is not None, axes
    if bits == 8:
        over = tuple(range(*inputs))
        levels, scales = round_to_levels(weight, over, bits)
        return QuantizedWeight(levels.astype(jnp.int8), jnp.squeeze(scales, over))

    place = inputs.start
    grouped = weight.reshape(split_groups(weight.shape, inputs, group))
    levels, scales = round_to_levels(grouped, (place + 1,), bits)
    low, high = jnp.split(levels.astype(jnp.int8).view(jnp.uint8) & 15, 2, place + 1)
    return QuantizedWeight(low | high << 4, jnp.squeeze(scales, place + 1))


def split_levels(packed: Array) -> tuple[Array, Array]:
    """Return the int8 levels in the low and in the high bits of bytes."""
    # A signed shift copies the sign.
    return (packed << 4).view(jnp.int8) >> 4, packed.view(jnp.int8) >> 4


def unpack_levels(packed: Array, axis: int) -> Array:
    """Return int8 levels of uint8 pairs along `axis`, which becomes twice as long."""
    return jnp.concatenate(split_levels(packed), axis)


def dequantize(weight: QuantizedWeight, axes: Axes, shape: tuple[int, ...]) -> Array:
    """Return the float32 weight of this shape that a rounded one stands for."""
    inputs = input_axes(axes)
    assert inputs is not None, axes
    if weight.bits == 8:
        over = tuple(range(*inputs))
        return weight.values.astype(jnp.float32) * jnp.expand_dims(weight.scales, over)
    levels = unpack_levels(weight.values, inputs.start + 1).astype(jnp.float32)
    return (levels * jnp.expand_dims(weight.scales, inputs.start + 1)).reshape(shape)


def quantized_axes(axes: Axes, bits: int) -> QuantizedWeight:
    """Return the logical axes of both arrays of a rounded weight. Those of inputs are whole."""
    inputs = input_axes(axes)
    assert inputs is not None, axes
    before, after = axes[: inputs.start], axes[inputs.stop :]
    if bits == 8:
        return QuantizedWeight(axes, before + after)
    return QuantizedWeight((*before, None, None, *after), (*before, None, *after))


def quantize_params(axes: Tree, params: Tree, bits: int, group: int = DEFAULT_GROUP) -> Tree:
    """Return parameters whose matrices are rounded, and the others float32.

    Raises ValueError, with the parameter's path, where the group doesn't divide its inputs.
    """

    def rounded(path: tuple, axes: Axes, weight: Array) -> Any:
        if input_axes(axes) is None:
            return weight.astype(jnp.float32)
        try:
            return quantize(weight, axes, bits, group)
        except ValueError as error:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(f"{name}: {error}") from None

    return jax.tree_util.tree_map_with_path(rounded, axes, params, is_leaf=is_axes)


# Training with rounded weights


class Rounding(NamedTuple):
    """How a model is trained with rounded weights."""

    weights: str  # a name in `TRAINED_BITS`
    start: float  # share of the steps before the first one with rounded weights

    def params(self, axes: Tree, params: Tree) -> Tree:
        """Return the parameters with rounded matrices, each in its own dtype."""
        return round_params(axes, params, self.weights)


def round_params(axes: Tree, params: Tree, weights: str) -> Tree:
    """Return parameters rounded as `precision.weights` says, in their own dtype.

    A gradient at the rounded values updates the unrounded ones (straight-through: Bengio et al.,
    arXiv 1308.3432).
    """

    def rounded(names: Axes, weight: Array) -> Array:
        if input_axes(names) is None:
            return weight
        levels = quantize(weight, names, TRAINED_BITS[weights])
        return dequantize(levels, names, weight.shape).astype(weight.dtype)

    return jax.tree.map(rounded, axes, params, is_leaf=is_axes)
