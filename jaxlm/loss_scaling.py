"""Dynamic scaling of the loss, for training in float16.

The smallest number of float16 is 6e-8, and many gradients of activations are smaller. The loss is
multiplied by a scale before the backward pass, and the gradients are divided by it afterwards
(Micikevicius et al., arXiv 1710.03740, section 3.2). A step whose gradients overflow is skipped and
halves the scale; many good steps in a row double it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.config import PrecisionConfig
from jaxlm.types import Array, Tree

GROWTH = 2.0  # factor of the scale after many good steps, as in torch.amp.GradScaler

# The smallest scale. A step that overflows at this scale would overflow without scaling too.
SMALLEST_SCALE = 1.0


class LossScale(NamedTuple):
    """The scale of the loss and what it depends on. The names are paths inside checkpoints."""

    scale: Array  # float32
    good_steps: Array  # int32: steps with finite gradients since the scale last changed
    skipped_steps: Array  # int32: steps of the whole run whose gradients overflowed


class ScaledState(NamedTuple):
    """The state of an optimizer whose gradients come from a scaled loss."""

    loss_scale: LossScale
    inner: optax.OptState


class ScalingMetrics(NamedTuple):
    """The scale of a step's loss, and whether its gradients overflow."""

    scale: Array  # float32: by which this step's loss was multiplied
    next_scale: Array  # float32: for the next step
    skipped_steps: Array  # int32: of the whole run, this one included
    overflows: Tree  # bool per parameter: whether its gradient is not finite


def initial_scale(precision: PrecisionConfig) -> LossScale:
    """Return the scale of the first step."""
    zero = jnp.zeros((), jnp.int32)
    return LossScale(jnp.float32(precision.loss_scale_start), zero, zero)


def next_scale(current: LossScale, is_finite: Array, precision: PrecisionConfig) -> LossScale:
    """Return the scale of the next step, as torch.amp.GradScaler changes it.

    After `loss_scale_growth_interval` finite steps in a row it doubles, unless float32 can't hold
    that; after any other step it is multiplied by `loss_scale_backoff`.
    """
    good_steps = jnp.where(is_finite, current.good_steps + 1, 0)
    grows = good_steps >= precision.loss_scale_growth_interval

    larger = current.scale * GROWTH
    grown = jnp.where(grows & jnp.isfinite(larger), larger, current.scale)
    scale = jnp.where(is_finite, grown, current.scale * precision.loss_scale_backoff)
    return LossScale(
        scale=scale,
        good_steps=jnp.where(grows, 0, good_steps),
        skipped_steps=current.skipped_steps + jnp.where(is_finite, 0, 1),
    )


def find_overflows(grads: Tree) -> Tree:
    """Return for each gradient whether it has an infinite value or NaN, on whichever device."""
    return jax.tree.map(lambda gradient: ~jnp.all(jnp.isfinite(gradient)), grads)


def skip_overflows(
    optimizer: optax.GradientTransformation, precision: PrecisionConfig
) -> optax.GradientTransformation:
    """Return the optimizer for gradients of a scaled loss, which have been divided by the scale.

    Where one is not finite, parameters and the state of `optimizer` stay as they are, to the bit:
    its count of steps too, so that the learning rate waits.
    """

    def init(params: Tree) -> ScaledState:
        return ScaledState(initial_scale(precision), optimizer.init(params))

    def update(
        grads: Tree, state: ScaledState, params: Tree | None = None
    ) -> tuple[Tree, ScaledState]:
        is_finite = ~jnp.any(jnp.stack(jax.tree.leaves(find_overflows(grads))))
        updates, inner = optimizer.update(grads, state.inner, params)

        # A sum with -0.0 is the other number, to the bit. With 0.0 a weight of -0.0 would change.
        updates = jax.tree.map(lambda u: jnp.where(is_finite, u, jnp.array(-0.0, u.dtype)), updates)
        inner = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), inner, state.inner)
        return updates, ScaledState(next_scale(state.loss_scale, is_finite, precision), inner)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def apply_loss_scaling(
    optimizer: optax.GradientTransformation, precision: PrecisionConfig
) -> optax.GradientTransformation:
    """Return the optimizer of a run: for gradients of a scaled loss if it computes in float16."""
    return skip_overflows(optimizer, precision) if precision.compute == "float16" else optimizer


def without_scaling(optimizer_state: Tree) -> Tree:
    """Return the state of the optimizer itself, without the scale of a loss, if there is one."""
    return optimizer_state.inner if isinstance(optimizer_state, ScaledState) else optimizer_state


def current_scale(optimizer_state: Tree) -> Array | None:
    """Return the scale of the loss, or None where the optimizer knows none."""
    is_scaled = isinstance(optimizer_state, ScaledState)
    return optimizer_state.loss_scale.scale if is_scaled else None


def unscale_gradients(grads: Tree, scale: Array | None) -> Tree:
    """Return float32 gradients divided by the scale of the loss (None: as they are)."""
    if scale is None:
        return grads
    inverse = 1 / scale
    return jax.tree.map(lambda gradient: gradient * inverse, grads)


def scaling_metrics(before: Tree, after: Tree, grads: Tree) -> ScalingMetrics | None:
    """Return what a step reports, given the optimizer's state before and after; None unscaled."""
    if not isinstance(before, ScaledState):
        return None
    return ScalingMetrics(
        scale=before.loss_scale.scale,
        next_scale=after.loss_scale.scale,
        skipped_steps=after.loss_scale.skipped_steps,
        overflows=find_overflows(grads),
    )
