"""What a model puts where text was hidden: the likeliest token for each mask, or the likeliest target token by token."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.models import Model
from jaxlm.sharding import replicated_sharding
from jaxlm.types import Array, Batch, Tree


def fill(model: Model, params: Tree, batch: Batch) -> np.ndarray:
    """int32 [B, M]: an encoder's likeliest token at each position of `batch.predict`."""
    likeliest = lambda params, batch: jnp.argmax(model.apply(params, batch), axis=-1).astype(
        jnp.int32
    )  # noqa: E731
    run = jax.jit(likeliest, out_shardings=replicated_sharding(params))
    return np.asarray(run(params, batch))


def write(model: Model, params: Tree, batch: Batch) -> np.ndarray:
    """int32 [B, L]: what an encoder-decoder writes for `batch.source`, the likeliest token each time.

    `batch.tokens` [B, L] gives the length and, in its first column, the token that the decoder starts from.
    """
    return np.asarray(
        jax.jit(partial(targets, model), out_shardings=replicated_sharding(params))(params, batch)
    )


def targets(model: Model, params: Tree, batch: Batch) -> Array:
    """Runs the whole model for every token: simple, and quick enough for the few samples of a training run."""
    length = batch.tokens.shape[1]

    def one(tokens_BL: Array, position: Array) -> tuple[Array, Array]:
        at = jnp.full((tokens_BL.shape[0], 1), position)
        features_B1D = model.features(
            params, batch._replace(tokens=tokens_BL, lengths=None, predict=at)
        )
        token_B = jnp.argmax(model.head(params, features_B1D)[:, 0], axis=-1).astype(jnp.int32)
        # The last token has no place among the inputs: clipped, it overwrites what nobody reads any more.
        return jax.lax.dynamic_update_slice_in_dim(
            tokens_BL, token_B[:, None], jnp.minimum(position + 1, length - 1), axis=1
        ), token_B

    start = jnp.zeros_like(batch.tokens).at[:, 0].set(batch.tokens[:, 0])
    _, tokens_LB = jax.lax.scan(one, start, jnp.arange(length))
    return tokens_LB.T
