"""The train and eval steps: pure functions of state and batch, compiled once per batch size."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm import config
from jaxlm.losses import LossSums, tile_length, tiled_loss_sums
from jaxlm.models import Model
from jaxlm.sharding import ZERO, Placement
from jaxlm.state import TrainState, state_shapes, state_shardings
from jaxlm.types import Array, Batch, Tree


class StepMetrics(NamedTuple):
    """Float32 scalars of one step, on the device until somebody reads them."""

    loss: Array  # nats per target
    grad_norm: Array  # before clipping
    param_norm: Array  # before the update


def batch_loss(
    model: Model,
    training: config.TrainingConfig,
    devices: int,
    params: Tree,
    batch: Batch,
    key: Array | None,
) -> LossSums:
    """Loss sums of one (micro)batch. `devices` is the number over which its rows are split."""
    rows, targets = batch.targets.shape  # type: ignore[union-attr]
    tile = tile_length(rows, targets, model.config.vocabulary_size, devices, training.loss_tile)
    x = model.features(params, batch, key)
    return tiled_loss_sums(
        model.scores, model.head_weights(params), x, batch.targets, batch.weights, tile
    )


def accumulate_gradients(
    model: Model,
    training: config.TrainingConfig,
    placement: Placement,
    params: Tree,
    batch: Batch,
    key: Array | None,
) -> tuple[LossSums, Tree]:
    """Loss sums and float32 gradients of the loss per target, accumulated over the microbatches."""
    devices = placement.mesh.shape["data"] * placement.mesh.shape["fsdp"]
    kind = placement.tree("gradients", params)
    count = jnp.maximum(jnp.sum(jnp.asarray(batch.weights)), 1.0)

    def objective(params: Tree, part: Batch, key: Array | None) -> tuple[Array, LossSums]:
        sums = batch_loss(model, training, devices, params, part, key)
        return (sums.loss + training.z_loss * sums.z) / count, sums

    def one(part: Batch, index: Any) -> tuple[LossSums, Tree]:
        part_key = None if key is None else jax.random.fold_in(key, index)
        grads, sums = jax.grad(objective, has_aux=True)(params, part, part_key)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        return sums, jax.lax.with_sharding_constraint(grads, kind)

    if training.microbatches == 1:
        return one(batch, 0)

    def accumulate(total: tuple, item: tuple) -> tuple[tuple, None]:
        return jax.tree.map(jnp.add, total, one(*item)), None

    parts = jax.tree.map(lambda a: split_rows(a, training.microbatches, placement), batch)
    zero = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        jax.eval_shape(lambda b: one(b, 0), jax.tree.map(lambda a: a[0], parts)),
    )
    zero = (zero[0], jax.lax.with_sharding_constraint(zero[1], kind))
    total, _ = jax.lax.scan(accumulate, zero, (parts, jnp.arange(training.microbatches)))
    return total


def split_rows(array: Array, parts: int, placement: Placement) -> Array:
    """[B, ...] -> [parts, B / parts, ...], every part with rows of every device, so that no row moves."""
    rows = array.reshape(array.shape[0] // parts, parts, *array.shape[1:])
    sharding = placement.batch()
    return jnp.moveaxis(jax.lax.with_sharding_constraint(rows, sharding), 1, 0)


def train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    training: config.TrainingConfig,
    placement: Placement,
    seed: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """`step(state, batch) -> (state, metrics)`, jitted; the old state's memory is reused. `seed` feeds dropout."""
    dropped = model.config.dropout > 0 or model.config.attention_dropout > 0
    where = state_shardings(model, optimizer, placement)
    kinds = placement.tree("optimizer", state_shapes(model, optimizer).params)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step) if dropped else None
        sums, grads = accumulate_gradients(model, training, placement, state.params, batch, key)
        norm = optax.tree.norm(grads)
        if "optimizer" in ZERO[placement.zero]:
            # Each device updates the part of the weights whose moments it holds.
            grads = jax.lax.with_sharding_constraint(grads, kinds)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(
            sums.loss / jnp.maximum(sums.count, 1.0), norm, optax.tree.norm(state.params)
        )
        return TrainState(state.step + 1, params, moments), metrics

    return jax.jit(
        step,
        in_shardings=(where, placement.batch()),
        out_shardings=(where, placement.replicated()),
        donate_argnums=0,
    )


def eval_step(
    model: Model, training: config.TrainingConfig, placement: Placement, params: Tree
) -> Callable[[Tree, Batch], LossSums]:
    """`step(params, batch) -> LossSums`, jitted, without dropout. `params` gives the shapes."""
    devices = placement.mesh.shape["data"] * placement.mesh.shape["fsdp"]

    def step(params: Tree, batch: Batch) -> LossSums:
        return batch_loss(model, training, devices, params, batch, None)

    return jax.jit(
        step,
        in_shardings=(placement.tree("parameters", params), placement.batch()),
        out_shardings=placement.replicated(),
    )
