"""The train and eval steps: pure functions of state and batch, compiled once per batch size."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from jaxlm.config import TrainingConfig
from jaxlm.detection import judged_tokens, replaced_token_loss
from jaxlm.loss_scaling import ScalingMetrics, current_scale, scaling_metrics, unscale_gradients
from jaxlm.losses import (
    LABEL_LOSSES,
    TILE_BYTES,
    LossSums,
    label_loss,
    tile_length,
    tiled_loss,
    zero_sums,
)
from jaxlm.mesh_execution import (
    gradient_specs,
    on_each_device,
    scatter_dimensions,
    scatter_microbatch,
    sum_gradients,
    sum_over_rows,
    zero_gradients,
)
from jaxlm.models import Model
from jaxlm.nn.dropout import fold_rows
from jaxlm.parameter_names import merge
from jaxlm.preference import count_pairs, preference_loss
from jaxlm.sharding import BATCH, ZERO, Placement
from jaxlm.state import TrainState, state_shapes, state_shardings
from jaxlm.types import Array, Batch, Tree


class DetectionMetrics(NamedTuple):
    """Float32 scalars of replaced-token detection."""

    generator_loss: Array  # nats per target
    loss: Array  # nats per token
    accuracy: Array  # share of the tokens that are judged right
    replaced: Array  # share of the tokens that are not those of the text


class RewardMetrics(NamedTuple):
    """Float32 scalars of the pairs of answers of a step: means over the pairs."""

    chosen: Array  # reward of the chosen answers
    rejected: Array  # and of the rejected ones
    accuracy: Array  # share of the pairs whose chosen answer has the higher reward


class StepMetrics(NamedTuple):
    """Float32 scalars of one step. They stay on the device until somebody reads them."""

    loss: Array  # nats per target; with a detection, the sum of both losses by their weights
    grad_norm: Array  # before clipping
    param_norm: Array  # before the update
    detection: DetectionMetrics | None = None
    scaling: ScalingMetrics | None = None  # of the loss, in float16
    rewards: RewardMetrics | None = None  # of an objective of preferences


class Counts(NamedTuple):
    """The numbers by which the sums of the losses are divided."""

    targets: Array | float
    judged: Array | float = 1.0  # tokens that a detection judges


def batch_loss(
    model: Model,
    training: TrainingConfig,
    tile_bytes: int,
    counts: Counts,
    params: Tree,
    batch: Batch,
    key: Array | None,
    scale: Array | None = None,
    all_params: Tree | None = None,
) -> tuple[Array, LossSums]:
    """Return the loss that is minimised, and the loss sums, of the rows of one device.

    The loss is divided by the `counts` of all microbatches and on all devices together, and
    includes the z-loss and a detection; it is multiplied by `scale`, where there is one. Scores
    take at most `tile_bytes` at a time. Where some parameters are frozen, `params` are the others,
    and `all_params` has all of them.
    """
    assert batch.targets is not None
    if all_params is not None:
        params = merge(all_params, params)
    rows, positions = batch.targets.shape[:2]
    tile = tile_length(
        rows=rows,
        positions=positions,
        vocabulary_size=model.config.outputs,
        requested=training.loss_tile,
        tile_bytes=tile_bytes,
    )

    if model.preference is not None:
        loss, sums = preference_loss(model, params, batch, key, tile)
    elif model.generator is None:
        x = model.features(params, batch, key)
        head, problem = model.head_weights(params), model.config.classifier.problem
        if problem in LABEL_LOSSES:
            scores = model.scores(head, x)
            loss, sums = label_loss(problem, scores, batch.targets, batch.weights)
        else:
            loss, sums = tiled_loss(
                model.scores, head, x, batch.targets, batch.weights, tile, training.z_loss
            )
    else:
        loss, sums = replaced_token_loss(model, params, batch, key, tile, training.z_loss)

    loss /= counts.targets
    if sums.detection is not None:
        loss += training.detection_weight * sums.detection.loss / counts.judged
    return (loss if scale is None else loss * scale), sums


def batch_gradients(
    model: Model,
    training: TrainingConfig,
    placement: Placement,
    params: Tree,
    *,
    tile_bytes: int = TILE_BYTES,
) -> Callable[..., tuple[LossSums, Tree]]:
    """Build `gradients(params, (batch, row numbers), key, scale)`, for a jitted function.

    It returns the loss sums and the float32 gradients of the loss per target, which a `scale`
    multiplies (None: 1). Every loss is divided by the number of targets of the whole batch, so the
    gradients of all microbatches and devices add up to that of the mean over all targets, however
    the targets are spread. Each device accumulates those of its own rows; they are summed over
    devices once, at the end. Dropout, and what a generator samples, depend on the key and the row's
    number. Frozen parameters have no gradients. Only the shapes of `params` are read.
    """
    detects, prefers = model.generator is not None, model.preference is not None
    specs = gradient_specs(placement, params)
    dimensions = scatter_dimensions(specs)

    def gradients(
        params: Tree, rows: tuple[Batch, Array], key: Array | None, scale: Array | None = None
    ) -> tuple[LossSums, Tree]:
        batch, row_numbers = rows
        row_keys = None if key is None else fold_rows(key, row_numbers)
        targets = count_pairs(batch) if prefers else jnp.sum(jnp.asarray(batch.weights))
        targets = sum_over_rows(placement, targets)
        counts = Counts(jnp.maximum(targets, 1.0))
        if detects:
            judged = sum_over_rows(placement, jnp.sum(judged_tokens(batch)))
            counts = counts._replace(judged=jnp.maximum(judged, 1.0))
        loss = partial(batch_loss, model, training, tile_bytes, counts, all_params=params)
        gradient = jax.grad(loss, has_aux=True)
        trained = placement.trainable(params)

        if training.microbatches == 1:
            grads, sums = gradient(trained, batch, row_keys, scale)
            grads = scatter_microbatch(placement, dimensions, grads)
        else:

            def add_microbatch(total: tuple, part: tuple) -> tuple[tuple, None]:
                grads, sums = gradient(trained, *part, scale)
                grads = scatter_microbatch(placement, dimensions, grads)
                return jax.tree.map(jnp.add, total, (sums, grads)), None

            parts = jax.tree.map(lambda x: split_rows(x, training.microbatches), (batch, row_keys))
            zeros = zeros_of(model), zero_gradients(placement, dimensions, trained)
            (sums, grads), _ = jax.lax.scan(add_microbatch, zeros, parts)

        return sum_over_rows(placement, sums), sum_gradients(placement, dimensions, grads)

    return on_each_device(placement, gradients, params, out=(sum_specs(model), specs))


def number_rows(batch: Batch) -> tuple[Batch, Array]:
    """Return the batch and the numbers of its rows, int32 [B]."""
    return batch, jnp.arange(batch.tokens.shape[0], dtype=jnp.int32)


def split_rows(array: Array, parts: int) -> Array:
    """Reshape a device's rows [B, ...] to [parts, B / parts, ...]: every part takes each n-th."""
    return jnp.moveaxis(array.reshape(array.shape[0] // parts, parts, *array.shape[1:]), 1, 0)


def train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    training: TrainingConfig,
    placement: Placement,
    seed: int,
    *,
    tile_bytes: int = TILE_BYTES,
    compiler_options: dict[str, Any] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """Build the jitted `step(state, batch) -> (state, metrics)`.

    The old state is donated: its memory is reused. Where `optimizer` scales the loss, a step whose
    gradients overflow changes the scale and its counters alone. `seed` feeds dropout and the
    choices of a generator. Scores take at most `tile_bytes` at a time on each device.
    """
    shardings = state_shardings(model, optimizer, placement)
    shapes = state_shapes(model, optimizer).params
    gradients = batch_gradients(model, training, placement, shapes, tile_bytes=tile_bytes)
    moment_shardings = placement.tree("optimizer", shapes)

    def measured(params: Tree) -> Tree:
        # Beside adapters the frozen weights would hide all that changes, and may be rounded.
        return placement.trainable(params) if model.adapter.rank else params

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step) if is_random(model) else None
        scale = current_scale(state.optimizer)
        used = round_from_start(model, training, state)
        sums, grads = gradients(used, number_rows(batch), key, scale)
        with jax.named_scope("optimizer"):  # the name in profiles
            grads = unscale_gradients(grads, scale)
            grad_norm = optax.tree.norm(grads)

            # Each device updates the part of the weights whose moments it holds.
            if "optimizer" in ZERO[placement.zero]:
                grads = jax.lax.with_sharding_constraint(grads, moment_shardings)
            updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
            trained = optax.apply_updates(placement.trainable(state.params), updates)
            params = merge(state.params, trained)

            loss, detection = mean_loss(training, sums)
            metrics = StepMetrics(
                loss=loss,
                grad_norm=grad_norm,
                param_norm=optax.tree.norm(jax.tree.map(jnp.float32, measured(state.params))),
                detection=detection,
                scaling=scaling_metrics(state.optimizer, optimizer_state, grads),
                rewards=mean_rewards(sums),
            )
        return TrainState(state.step + 1, params, optimizer_state), metrics

    return jax.jit(
        step,
        in_shardings=(shardings, placement.batch()),
        out_shardings=(shardings, placement.replicated()),
        donate_argnums=0,
        compiler_options=compiler_options,
    )


def is_random(model: Model) -> bool:
    """Return whether a training step needs a key: for dropout, or for what a generator chooses."""
    config = model.config
    rates = [config.dropout, config.attention_dropout, model.adapter.dropout]
    if config.is_classifier:
        rates.append(config.label_head.dropout or 0.0)
    return any(rates) or model.generator is not None


def round_from_start(model: Model, training: TrainingConfig, state: TrainState) -> Tree:
    """Return the parameters that a step reads: rounded ones from `precision.weights_start` on.

    The gradient at these updates the parameters of the state.
    """
    if model.rounding is None:
        return state.params
    is_rounded = state.step >= int(model.rounding.start * training.steps)
    rounded = model.rounding.params(model.axes, state.params)
    return jax.tree.map(lambda r, p: jnp.where(is_rounded, r, p), rounded, state.params)


def eval_step(
    model: Model,
    training: TrainingConfig,
    placement: Placement,
    params: Tree,
    *,
    tile_bytes: int = TILE_BYTES,
    compiler_options: dict[str, Any] | None = None,
) -> Callable[[Tree, Batch], LossSums]:
    """Build the jitted `step(params, batch) -> LossSums`, without dropout.

    A model that is trained with rounded weights is evaluated with them at every step. Only the
    shapes of `params` are read.
    """

    def device_sums(params: Tree, batch: Batch) -> LossSums:
        _, sums = batch_loss(model, training, tile_bytes, Counts(1.0), params, batch, None)
        return sum_over_rows(placement, sums)

    sums_of = on_each_device(placement, device_sums, params, out=sum_specs(model))

    def rounded_sums(params: Tree, batch: Batch) -> LossSums:
        assert model.rounding is not None
        return sums_of(model.rounding.params(model.axes, params), batch)

    return jax.jit(
        sums_of if model.rounding is None else rounded_sums,
        in_shardings=(placement.tree("parameters", params), placement.batch()),
        out_shardings=placement.replicated(),
        compiler_options=compiler_options,
    )


def score_step(
    model: Model,
    placement: Placement,
    params: Tree,
    *,
    compiler_options: dict[str, Any] | None = None,
) -> Callable[[Tree, Batch], Array]:
    """Build the jitted `step(params, batch) -> scores` of a classifier, without dropout.

    The scores are float32, [B, C] for texts and [B, L, C] for tokens, whole on every device. As in
    `eval_step`, weights are rounded where they are in training, and only the shapes of `params` are
    read.
    """

    def rounded_scores(params: Tree, batch: Batch) -> Array:
        if model.rounding is not None:
            params = model.rounding.params(model.axes, params)
        return scores_of(params, batch)

    scores_of = on_each_device(placement, model.apply, params, out=P(BATCH))
    return jax.jit(
        rounded_scores,
        in_shardings=(placement.tree("parameters", params), placement.batch()),
        out_shardings=placement.replicated(),
        compiler_options=compiler_options,
    )


def mean_loss(training: TrainingConfig, sums: LossSums) -> tuple[Array, DetectionMetrics | None]:
    """Return the loss of a step without its z-loss, and the metrics of a detection."""
    loss = sums.loss / jnp.maximum(sums.count, 1.0)
    if sums.detection is None:
        return loss, None

    judged = jnp.maximum(sums.detection.count, 1.0)
    means = jax.tree.map(lambda total: total / judged, sums.detection)
    detection = DetectionMetrics(loss, means.loss, means.correct, means.replaced)
    return loss + training.detection_weight * means.loss, detection


def mean_rewards(sums: LossSums) -> RewardMetrics | None:
    """Return the metrics of pairs of answers; None for other objectives."""
    if sums.rewards is None:
        return None
    pairs = jnp.maximum(sums.count, 1.0)
    return RewardMetrics(
        sums.rewards.chosen / pairs, sums.rewards.rejected / pairs, sums.correct / pairs
    )


def zeros_of(model: Model) -> LossSums:
    """Return the sums of a model's loss over no targets."""
    return zero_sums(detects=model.generator is not None, prefers=model.preference is not None)


def sum_specs(model: Model) -> LossSums:
    """Return the PartitionSpecs of sums that every device has."""
    return jax.tree.map(lambda _: P(), zeros_of(model))
