"""What an encoder makes of a text: the likeliest tokens for each mask, or one vector."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import config
from jaxlm.decoding.engine import bucket, padded, whole
from jaxlm.models import Model
from jaxlm.types import Array, Batch, Tree


class Candidates(NamedTuple):
    """The likeliest tokens for one mask, best first."""

    position: int
    ids: np.ndarray  # int32 [top]
    probabilities: np.ndarray  # float32 [top]


class Filler:
    """An encoder that fills masks."""

    def __init__(self, model: Model, params: Tree, mask: int, top: int, size: int):
        """Of `size` texts at once; `top` candidates for each mask."""
        self.model, self.params, self.mask, self.size = model, params, mask, size
        self._best = jax.jit(partial(best, model, min(top, model.config.vocabulary_size)))

    def __call__(self, rows: Sequence[np.ndarray]) -> list[list[Candidates]]:
        """For the masks of each row of token ids in their order; a batch that is not full is filled up."""
        places = [np.flatnonzero(row == self.mask) for row in rows]
        tokens, lengths = batch_of(self.model.config, rows, self.size)
        predict, _ = padded(
            [*places, *[np.zeros(0, np.int32)] * (self.size - len(rows))],
            bucket(max(map(len, places))),
        )
        probabilities, ids = map(
            np.asarray,
            self._best(self.params, Batch(tokens=tokens, lengths=lengths, predict=predict)),
        )
        return [
            [
                Candidates(int(at), ids[row, number], probabilities[row, number])
                for number, at in enumerate(places[row])
            ]
            for row in range(len(rows))
        ]


def best(model: Model, top: int, params: Tree, batch: Batch) -> tuple[Array, Array]:
    return jax.lax.top_k(jax.nn.softmax(model.apply(params, batch), axis=-1), top)


class Embedder:
    """A model whose features become a vector a text: their mean over its tokens, or those of the first or the last token."""

    def __init__(self, model: Model, params: Tree, pool: str, size: int):
        self.model, self.params, self.size = model, params, size
        self._pooled = jax.jit(partial(pooled, model, POOLED[pool]))

    def __call__(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [B, D]; a batch that is not full is filled up."""
        tokens, lengths = batch_of(self.model.config, rows, self.size)
        return np.asarray(self._pooled(self.params, Batch(tokens=tokens, lengths=lengths)))[
            : len(rows)
        ]


def pooled(
    model: Model, pool: Callable[[Array, Array], Array], params: Tree, batch: Batch
) -> Array:
    return pool(model.features(params, batch).astype(jnp.float32), jnp.asarray(batch.lengths))


def mean(x_BLD: Array, lengths_B: Array) -> Array:
    real_BL1 = (jnp.arange(x_BLD.shape[1])[None] < lengths_B[:, None])[:, :, None]
    return jnp.sum(jnp.where(real_BL1, x_BLD, 0.0), axis=1) / lengths_B[:, None]


def first(x_BLD: Array, lengths_B: Array) -> Array:
    del lengths_B
    return x_BLD[:, 0]


def last(x_BLD: Array, lengths_B: Array) -> Array:
    return jnp.take_along_axis(x_BLD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]


POOLED: dict[str, Callable[[Array, Array], Array]] = {"mean": mean, "first": first, "last": last}


def batch_of(
    model: config.ModelConfig, rows: Sequence[np.ndarray], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [size, L], lengths [size]); rows that fill it up have one token."""
    filled = [*rows, *[np.zeros(1, np.int32)] * (size - len(rows))]
    return padded(filled, whole(model, max(map(len, rows))))
