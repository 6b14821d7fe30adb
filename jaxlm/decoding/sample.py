"""Sampling by running the whole context for every token: simple, and quick enough for the few samples of a training run."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.models import Model
from jaxlm.sharding import replicated_sharding
from jaxlm.types import Batch, Tree


def sample(
    model: Model,
    params: Tree,
    prompt: np.ndarray,
    count: int,
    new_tokens: int,
    window: int,
    temperature: float,
    seed: int,
) -> np.ndarray:
    """int32 [count, new_tokens]: continuations of the token ids `prompt` [P], each seeing at most `window` tokens before it.

    `temperature` 0 takes the likeliest token each time.
    """
    size = min(window, len(prompt) + new_tokens)
    start = prompt[-size + 1 :] if size > 1 else prompt[:0]
    context = np.zeros((count, size), np.int32)
    context[:, : len(start)] = start
    run = jax.jit(
        partial(continuations, model, new_tokens, temperature), out_shardings=replicated_sharding(params)
    )
    return np.asarray(run(params, context, np.int32(len(start)), jax.random.key(seed)))


def continuations(
    model: Model,
    new_tokens: int,
    temperature: float,
    params: Tree,
    context: jax.Array,
    filled: jax.Array,
    key: jax.Array,
):
    """int32 [B, new_tokens]. `context` [B, W] holds `filled` tokens; once it is full it moves on by one a token."""
    width = context.shape[1]

    def one(carry: tuple, key: jax.Array) -> tuple:
        context, filled = carry
        features = model.features(params, Batch(tokens=context))
        last = jax.lax.dynamic_slice_in_dim(features, filled - 1, 1, axis=1)
        logits = model.head(params, last)[:, 0]
        token = (
            jnp.argmax(logits, -1)
            if temperature == 0
            else jax.random.categorical(key, logits / temperature)
        )
        token = token.astype(jnp.int32)
        moved = jnp.concatenate([context[:, 1:], token[:, None]], axis=1)
        placed = jax.lax.dynamic_update_slice_in_dim(
            context, token[:, None], jnp.minimum(filled, width - 1), axis=1
        )
        return (jnp.where(filled < width, placed, moved), jnp.minimum(filled + 1, width)), token

    _, tokens = jax.lax.scan(one, (context, filled), jax.random.split(key, new_tokens))
    return tokens.T
