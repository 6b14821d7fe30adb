"""Give a model more tokens: rows of its tables, columns of its heads and their biases."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax
import numpy as np

from jaxlm.config import ModelConfig
from jaxlm.models.model import Model
from jaxlm.nn.embedding import padded_vocabulary
from jaxlm.types import Array, Axes, Tree, is_axes


def extend_vocabulary(
    model: Model, params: Tree, pieces: Mapping[int, Sequence[int]]
) -> tuple[ModelConfig, Tree]:
    """Return the model's config and parameters with more tokens.

    `pieces` has the id of each new token, and the ids of the tokens whose mean it starts from
    (arXiv 2402.09977): in each array along its axis of the vocabulary. All other numbers are those
    of `params`; rows that only pad a table are zeros. The vocabulary grows to the largest id; it
    stays where the model had room.
    """
    size = max([model.config.vocabulary_size, *(number + 1 for number in pieces)])
    rows = padded_vocabulary(size)

    def extend(axes: Axes, weight: Array) -> Array:
        if "vocabulary" not in axes:
            return weight
        return extend_array(weight, axes.index("vocabulary"), model.config, rows, pieces)

    extended = jax.tree.map(extend, model.axes, params, is_leaf=is_axes)
    return replace(model.config, vocabulary_size=size), extended


def extend_array(
    weight: Array,
    axis: int,
    config: ModelConfig,
    rows: int,
    pieces: Mapping[int, Sequence[int]],
) -> Array:
    """Return an array with `rows` entries along an axis, those of new tokens among them."""
    old = np.moveaxis(np.asarray(weight), axis, 0)
    new = np.zeros((rows, *old.shape[1:]), old.dtype)
    new[: config.vocabulary_size] = old[: config.vocabulary_size]

    for number, ids in pieces.items():
        # One piece keeps its bits: the mean of a number in float64 is that number.
        new[number] = old[list(ids)].astype(np.float64).mean(axis=0).astype(old.dtype)
    return jax.numpy.asarray(np.moveaxis(new, 0, axis))
