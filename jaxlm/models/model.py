"""The interface of every family: a tuple of pure functions over a plain nested dict of parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax

from jaxlm import config
from jaxlm.nn.cache import Cache
from jaxlm.types import Array, Batch, Tree, is_axes


def no_decoder(*_: Any) -> NoReturn:
    raise ValueError("an encoder reads whole texts: it has no cache")


class Model(NamedTuple):
    """Pure functions of (params, inputs). All of them are deterministic unless a dropout key is given."""

    config: config.ModelConfig
    init: Callable[[jax.Array], Tree]  # key -> params
    axes: Tree  # the logical axes of each parameter
    features: Callable[
        ..., Array
    ]  # (params, batch, dropout_key=None) -> [B, L, D], or [B, M, D] where `batch.predict` is given
    head_weights: Callable[
        [Tree], Tree
    ]  # what `scores` reads, whole; called outside a loop over tiles
    scores: Callable[
        [Tree, Array], Array
    ]  # (head_weights, [..., D]) -> float32 [..., padded V], padded columns far below all others

    kernels: Callable[
        [Batch], dict[str, tuple[str, str]]
    ]  # (batch or its shapes) -> each attention's kernel, and why
    cache: Callable[[int, int], Cache] = (
        no_decoder  # (rows, columns) -> an empty cache; columns are the L of all calls together
    )
    # (params, cache, batch) -> (float32 logits [B, L or M, vocabulary_size], cache): reads the next L tokens of each row, of which
    # `batch.lengths` are real. An encoder-decoder's first call has the source too. The blocks of params may be a list of layers.
    decode: Callable[[Tree, Cache, Batch], tuple[Array, Cache]] = no_decoder

    def head(self, params: Tree, x: Array) -> Array:
        """Float32 logits [..., vocabulary_size]."""
        return self.scores(self.head_weights(params), x)[..., : self.config.vocabulary_size]

    def apply(self, params: Tree, batch: Batch) -> Array:
        """Float32 logits [B, L or M, vocabulary_size]; `batch.targets[b, i]` is what `logits[b, i]` predicts."""
        return self.head(params, self.features(params, batch))

    def parameter_count(self) -> int:
        """Parameters as published tables count them: rows that only pad the vocabulary are left out."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        sizes = jax.tree.map(self._logical_size, self.axes, shapes, is_leaf=is_axes)
        unused = (
            0
            if self.config.first_norm
            else sum(leaf.shape[1] for leaf in jax.tree.leaves(shapes["blocks"]["attention_norm"]))
        )
        return sum(jax.tree.leaves(sizes)) - unused

    def _logical_size(self, names: tuple, leaf: jax.ShapeDtypeStruct) -> int:
        size = 1
        for name, dimension in zip(names, leaf.shape, strict=True):
            size *= self.config.vocabulary_size if name == "vocabulary" else dimension
        return size
