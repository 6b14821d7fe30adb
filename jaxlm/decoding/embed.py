"""Turn a text into one vector: pool the features of an encoder or a decoder over its tokens."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.decoding.engine import check_finite
from jaxlm.decoding.fill_mask import pad_texts
from jaxlm.models import Model
from jaxlm.types import Array, Batch, Tree

Pooling = Callable[[Array, Array], Array]  # (features [B, L, D], lengths [B]) -> [B, D]


class Embedder:
    """A model whose features become one vector per text."""

    def __init__(self, model: Model, params: Tree, *, pool: str, batch_size: int):
        """Prepare for batches of `batch_size` texts; `pool` is a name in `POOLINGS`."""
        self.model, self.params, self.batch_size = model, params, batch_size
        self._embed = jax.jit(partial(embed_texts, model, POOLINGS[pool]))

    def __call__(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Return float32 [B, D] for rows of token ids; DivergedError where they are not finite."""
        tokens, lengths = pad_texts(self.model, rows, self.batch_size)
        vectors = self._embed(self.params, Batch(tokens=tokens, lengths=lengths))
        vectors = np.asarray(vectors)[: len(rows)]
        check_finite(np.isfinite(vectors).all())
        return vectors


def embed_texts(model: Model, pooling: Pooling, params: Tree, batch: Batch) -> Array:
    """Return float32 [B, D]: the pooled features of each row."""
    features_BLD = model.features(params, batch).astype(jnp.float32)
    return pooling(features_BLD, jnp.asarray(batch.lengths))


def pool_mean(x_BLD: Array, lengths_B: Array) -> Array:
    """Return the mean over the tokens of each row."""
    real_BL1 = (jnp.arange(x_BLD.shape[1])[None] < lengths_B[:, None])[:, :, None]
    return jnp.sum(jnp.where(real_BL1, x_BLD, 0.0), axis=1) / lengths_B[:, None]


def pool_first(x_BLD: Array, lengths_B: Array) -> Array:
    """Return the features of the first token."""
    del lengths_B
    return x_BLD[:, 0]


def pool_last(x_BLD: Array, lengths_B: Array) -> Array:
    """Return the features of the last token of each row."""
    return jnp.take_along_axis(x_BLD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]


POOLINGS: dict[str, Pooling] = {"mean": pool_mean, "first": pool_first, "last": pool_last}
