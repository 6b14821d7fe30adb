"""One row of a table on arrays: the shape of a tensor of theirs, and ours as views into it."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxlm.interop.mapping import Rule

Sizes = Mapping[str, int]  # of the letters


def atoms(layout: str) -> list[str]:
    """The letters and the digit of a layout in order, whatever dimensions they are joined to."""
    return [atom for atom in layout if atom != " "]


def sizes(rule: Rule, shapes: Sequence[tuple[int, ...]], vocabulary_size: int) -> dict[str, int]:
    """What the letters stand for, from the shapes of ours without the layers; `v` is the logical size of the vocabulary."""
    found: dict[str, int] = {}
    for path, shape in zip(rule.ours, shapes, strict=True):
        if len(rule.dims) != len(shape):
            raise ValueError(f"{path}: {rule.dims!r} can't describe the shape {shape}")
        for letter, size in zip(rule.dims, shape, strict=True):
            if found.setdefault(letter, size) != size:
                raise ValueError(f"{path}: {letter!r} is {size} and {found[letter]} in {rule}")
    return found | ({"v": vocabulary_size} if "v" in found else {})


def shape(rule: Rule, sizes: Sizes) -> tuple[int, ...]:
    """The shape of theirs."""
    return tuple(
        math.prod(size(atom, sizes) for atom in dimension) for dimension in rule.layout.split()
    )


def views(rule: Rule, theirs: np.ndarray, sizes: Sizes) -> list[np.ndarray]:
    """Each of ours as a view of `theirs`, which is contiguous; what is written there is written to theirs."""
    names = atoms(rule.layout)
    whole = theirs.reshape([size(atom, sizes) for atom in names])
    parts = [whole]
    for axis, atom in enumerate(names):
        if atom.isdigit():
            parts = [whole[(slice(None),) * axis + (index,)] for index in range(int(atom))]
    letters = [atom for atom in names if not atom.isdigit()]
    single = tuple(
        0 if letter == "o" and "o" not in rule.dims else slice(None) for letter in letters
    )
    letters = [letter for letter, index in zip(letters, single, strict=True) if index != 0]
    if (
        sorted(letters) != sorted(set(rule.dims))
        or len(rule.dims) != len(letters)
        or len(parts) != len(rule.ours)
    ):
        raise ValueError(
            f"{rule.layout!r} and {len(rule.ours)} x {rule.dims!r} don't hold the same dimensions"
        )
    return [
        part[single].transpose([letters.index(letter) for letter in rule.dims]) for part in parts
    ]


def size(atom: str, sizes: Sizes) -> int:
    return int(atom) if atom.isdigit() else sizes.get(atom, 1) if atom == "o" else sizes[atom]
