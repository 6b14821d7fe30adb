"""Arrays of one rule: the shape of the tensor, and its parameters as views of it."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxlm.interop.mapping import Rule

DimensionSizes = Mapping[str, int]  # of the letters


def split_layout(layout: str) -> list[str]:
    """Return the letters and digits of a layout in order: "d 3hk" gives d, 3, h, k."""
    return [symbol for symbol in layout if symbol != " "]


def dimension_sizes(
    rule: Rule, shapes: Sequence[tuple[int, ...]], vocabulary_size: int
) -> dict[str, int]:
    """Return what the letters stand for, from the parameters' shapes without the layers.

    `v` is the logical size of the vocabulary, not the padded one. Raises ValueError where a shape
    doesn't have the dimensions of the rule.
    """
    sizes: dict[str, int] = {}
    for path, shape in zip(rule.parameters, shapes, strict=True):
        if len(rule.dims) != len(shape):
            raise ValueError(f"{path}: {rule.dims!r} can't describe the shape {shape}")
        for letter, size in zip(rule.dims, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(f"{path}: {letter!r} is {size} and {sizes[letter]} in {rule}")

    if "v" in sizes:
        sizes["v"] = vocabulary_size
    return sizes


def tensor_shape(rule: Rule, sizes: DimensionSizes) -> tuple[int, ...]:
    """Return the shape of the rule's tensor."""
    return tuple(
        math.prod(symbol_size(symbol, sizes) for symbol in dimension)
        for dimension in rule.layout.split()
    )


def parameter_views(rule: Rule, tensor: np.ndarray, sizes: DimensionSizes) -> list[np.ndarray]:
    """Return each parameter of the rule as a view of `tensor`, which is contiguous.

    Writing to a view writes to the tensor. Raises ValueError where layout and dims differ.
    """
    symbols = split_layout(rule.layout)
    unfolded = tensor.reshape([symbol_size(symbol, sizes) for symbol in symbols])

    # A digit is the axis along which the parameters lie.
    parts = [unfolded]
    for axis, symbol in enumerate(symbols):
        if symbol.isdigit():
            before = (slice(None),) * axis
            parts = [unfolded[(*before, number)] for number in range(int(symbol))]
    letters = [symbol for symbol in symbols if not symbol.isdigit()]

    # The one of "o" is dropped unless the parameter has it too.
    dropped = "o" if "o" not in rule.dims else ""
    index = tuple(0 if letter == dropped else slice(None) for letter in letters)
    letters = [letter for letter in letters if letter != dropped]

    same_letters = sorted(letters) == sorted(set(rule.dims)) and len(letters) == len(rule.dims)
    if not same_letters or len(parts) != len(rule.parameters):
        raise ValueError(
            f"{rule.layout!r} and {len(rule.parameters)} x {rule.dims!r} "
            "don't hold the same dimensions"
        )
    order = [letters.index(letter) for letter in rule.dims]
    return [part[index].transpose(order) for part in parts]


def symbol_size(symbol: str, sizes: DimensionSizes) -> int:
    """Return the size of one letter or digit; "o" is 1 unless `sizes` has it."""
    if symbol.isdigit():
        return int(symbol)
    return sizes.get("o", 1) if symbol == "o" else sizes[symbol]
