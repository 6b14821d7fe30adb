"""The activations of a model while it trains: what muP keeps the size of."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxlm import models, optim
from jaxlm.config import ModelConfig, OptimizerConfig
from jaxlm.nn import attention
from jaxlm.nn.block import Block
from jaxlm.nn.embedding import Embedding
from jaxlm.nn.mlp import MLP
from jaxlm.optim import rate_factors
from jaxlm.types import Array, Batch, Tree

CAPTURED = {
    (Embedding, "__call__"): "embedding",
    (Block, "__call__"): "block",
    (MLP, "__call__"): "mlp",
    (attention.SelfAttention, "output"): "attention",
    (attention.CrossAttention, "output"): "cross attention",
}


@contextmanager
def capture(activations: dict[str, Array]) -> Iterator[None]:
    """Put the activations of every layer that runs unrolled inside into the dict, by name."""

    def record(name: str, value: Array) -> None:
        count = sum(key.startswith(f"{name} ") for key in activations)
        activations[f"{name} {count}"] = value

    def intercept(method: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        result = method(*args, **kwargs)
        name = CAPTURED.get((type(context.module), context.method_name))
        if name is not None:
            record(name, result[0] if isinstance(result, tuple) else result)
        return result

    attend = attention.attend

    def record_scores(q_BLHK: Array, k_BSGK: Array, *args: Any, scale: float, **options: Any):
        keys = jnp.repeat(k_BSGK, q_BLHK.shape[2] // k_BSGK.shape[2], axis=2)
        record("scores", scale * jnp.einsum("BLHK,BSHK->BHLS", q_BLHK, keys))
        return attend(q_BLHK, k_BSGK, *args, scale=scale, **options)

    with mock.patch.object(attention, "attend", record_scores), nn.intercept_methods(intercept):
        yield


def training_activations(
    config: ModelConfig, optimizer_config: OptimizerConfig, batch: Batch, steps: int, seed: int = 0
) -> list[dict[str, float]]:
    """Return the RMS of each activation at the start and after each step on the same batch.

    Of the logits it is that of their change since the start: those of the start shrink with the
    root of the width (arXiv 2203.03466, appendix D.2).
    """
    model = models.build(config)
    optimizer = optim.build_optimizer(
        optimizer_config, steps, model.axes, rate_factors(config, model.axes, optimizer_config.kind)
    )
    params = jax.jit(model.init)(jax.random.key(seed))

    def loss(params: Tree) -> tuple[Array, tuple[dict[str, Array], Array]]:
        activations: dict[str, Array] = {}
        with capture(activations):
            logits = model.apply(params, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        sizes = {name: jnp.sqrt(jnp.mean(x**2)) for name, x in activations.items()}
        return jnp.mean(losses), (sizes, logits)

    @jax.jit
    def step(params: Tree, state: Tree) -> tuple[Tree, Tree, dict[str, Array], Array]:
        (_, (sizes, logits)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, sizes, logits

    state, history, start = jax.jit(optimizer.init)(params), [], None
    for _ in range(steps + 1):
        params, state, sizes, logits = step(params, state)
        start = logits if start is None else start
        sizes["logits"] = jnp.sqrt(jnp.mean((logits - start) ** 2))
        history.append({name: float(x) for name, x in sizes.items()})
    return history


def growth(histories: list[list[dict[str, float]]]) -> dict[str, np.ndarray]:
    """Return how each activation's RMS changes over the models, relative to the first of them.

    [steps + 1, models]; an activation that is 0 in all models has 1.
    """
    changes = {}
    for name in histories[0][0]:
        sizes = np.array([[step[name] for step in history] for history in histories]).T
        zero = (sizes == 0).all(axis=1, keepdims=True)
        changes[name] = np.where(zero, 1.0, sizes / np.where(zero, 1.0, sizes[:, :1]))
    return changes


def spread(changes: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the largest RMS of each activation over the smallest, in the step where most."""
    return {name: float((x.max(axis=1) / x.min(axis=1)).max()) for name, x in changes.items()}
