"""The train and eval steps: pure functions of state and batch, compiled once per batch size."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.config import TrainingConfig
from jaxlm.losses import LossSums, tile_length, tiled_loss_sums, zero_sums
from jaxlm.models import Model
from jaxlm.sharding import ZERO, Placement
from jaxlm.state import TrainState, state_shapes, state_shardings
from jaxlm.types import Array, Batch, Tree


class StepMetrics(NamedTuple):
    """Float32 scalars of one step. They stay on the device until somebody reads them."""

    loss: Array  # nats per target
    grad_norm: Array  # before clipping
    param_norm: Array  # before the update


def batch_loss(
    model: Model,
    training: TrainingConfig,
    devices: int,
    targets: Array | float,
    params: Tree,
    batch: Batch,
    key: Array | None,
) -> tuple[Array, LossSums]:
    """Return the loss that is minimised, and the loss sums, of one batch or microbatch.

    The rows are split over `devices`. The loss is divided by `targets`, the number of targets in
    all microbatches together, and includes the z-loss.
    """
    assert batch.targets is not None
    rows, positions = batch.targets.shape
    tile = tile_length(
        rows=rows,
        positions=positions,
        vocabulary_size=model.config.vocabulary_size,
        devices=devices,
        requested=training.loss_tile,
    )

    x = model.features(params, batch, key)
    head = model.head_weights(params)
    sums = tiled_loss_sums(model.scores, head, x, batch.targets, batch.weights, tile)

    return (sums.loss + training.z_loss * sums.z) / targets, sums


def accumulate_gradients(
    model: Model,
    training: TrainingConfig,
    placement: Placement,
    params: Tree,
    batch: Batch,
    key: Array | None,
) -> tuple[LossSums, Tree]:
    """Return the loss sums and the float32 gradients of the loss per target.

    The microbatches run one after another. Every loss is divided by the number of targets of the
    whole batch, so their gradients add up to that of the mean over all targets, however the targets
    are spread over microbatches and devices.
    """
    targets = jnp.maximum(jnp.sum(jnp.asarray(batch.weights)), 1.0)
    loss = partial(batch_loss, model, training, placement.batch_shards, targets)
    gradient = jax.grad(loss, has_aux=True)
    shardings = placement.tree("gradients", params)

    def place(grads: Tree) -> Tree:
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        return jax.lax.with_sharding_constraint(grads, shardings)

    def microbatch_key(index: Array | int) -> Array | None:
        return None if key is None else jax.random.fold_in(key, index)

    if training.microbatches == 1:
        grads, sums = gradient(params, batch, microbatch_key(0))
        return sums, place(grads)

    def add_microbatch(total: tuple, item: tuple[Batch, Array]) -> tuple[tuple, None]:
        microbatch, index = item
        grads, sums = gradient(params, microbatch, microbatch_key(index))
        return jax.tree.map(jnp.add, total, (sums, place(grads))), None

    microbatches = jax.tree.map(lambda a: split_rows(a, training.microbatches, placement), batch)
    zero_grads = place(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))
    total, _ = jax.lax.scan(
        add_microbatch,
        (zero_sums(), zero_grads),
        (microbatches, jnp.arange(training.microbatches)),
    )
    return total


def split_rows(array: Array, parts: int, placement: Placement) -> Array:
    """Reshape [B, ...] to [parts, B / parts, ...].

    Every part has rows of every device, so that no row moves between devices.
    """
    rows = array.reshape(array.shape[0] // parts, parts, *array.shape[1:])
    return jnp.moveaxis(jax.lax.with_sharding_constraint(rows, placement.batch()), 1, 0)


def train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    training: TrainingConfig,
    placement: Placement,
    seed: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """Build the jitted `step(state, batch) -> (state, metrics)`.

    The old state is donated: its memory is reused. `seed` feeds dropout.
    """
    has_dropout = model.config.dropout > 0 or model.config.attention_dropout > 0
    shardings = state_shardings(model, optimizer, placement)
    moment_shardings = placement.tree("optimizer", state_shapes(model, optimizer).params)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step) if has_dropout else None
        sums, grads = accumulate_gradients(model, training, placement, state.params, batch, key)
        grad_norm = optax.tree.norm(grads)

        # Each device updates the part of the weights whose moments it holds.
        if "optimizer" in ZERO[placement.zero]:
            grads = jax.lax.with_sharding_constraint(grads, moment_shardings)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)

        metrics = StepMetrics(
            loss=sums.loss / jnp.maximum(sums.count, 1.0),
            grad_norm=grad_norm,
            param_norm=optax.tree.norm(state.params),
        )
        return TrainState(state.step + 1, params, optimizer_state), metrics

    return jax.jit(
        step,
        in_shardings=(shardings, placement.batch()),
        out_shardings=(shardings, placement.replicated()),
        donate_argnums=0,
    )


def eval_step(
    model: Model, training: TrainingConfig, placement: Placement, params: Tree
) -> Callable[[Tree, Batch], LossSums]:
    """Build the jitted `step(params, batch) -> LossSums`, without dropout.

    Only the shapes of `params` are read.
    """

    def step(params: Tree, batch: Batch) -> LossSums:
        _, sums = batch_loss(model, training, placement.batch_shards, 1.0, params, batch, None)
        return sums

    return jax.jit(
        step,
        in_shardings=(placement.tree("parameters", params), placement.batch()),
        out_shardings=placement.replicated(),
    )
