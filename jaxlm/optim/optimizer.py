"""The optax chain that updates the parameters, as the config asks for it."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm.config import OptimizerConfig
from jaxlm.optim import directions
from jaxlm.optim.average import with_average
from jaxlm.optim.groups import (
    build_rate_factors,
    check_names,
    decay_weights,
    role_of,
    scale_by_rates,
    scale_direction,
)
from jaxlm.optim.matrices import per_matrix
from jaxlm.optim.muon import muon
from jaxlm.optim.schedule import learning_rate_schedule
from jaxlm.optim.schedule_free import schedule_free, second_moment
from jaxlm.optim.shampoo import shampoo
from jaxlm.parameter_names import name_of, without
from jaxlm.sharding import Placement
from jaxlm.types import Tree, is_axes

# (config, logical axes of the parameters, placement) -> the direction of an update, before decay
# and rate.
Direction = Callable[[OptimizerConfig, Tree, Placement | None], optax.GradientTransformation]

DIRECTIONS: dict[str, Direction] = {
    "adamw": lambda config, axes, placement: directions.adam(config),
    "adafactor": lambda config, axes, placement: per_matrix(directions.adafactor(), axes),
    "lion": lambda config, axes, placement: directions.lion(config),
    "muon": lambda config, axes, placement: matrices_apart(config, axes, muon, placement),
    "schedule_free": lambda config, axes, placement: second_moment(config),
    "shampoo": lambda config, axes, placement: matrices_apart(config, axes, shampoo, placement),
    "sgd": lambda config, axes, placement: directions.sgd(config),
}


def build_optimizer(
    config: OptimizerConfig,
    steps: int,
    axes: Tree,
    rate_factors: Tree | None = None,
    *,
    placement: Placement | None = None,
) -> optax.GradientTransformation:
    """Build the optimizer, after clipping to a global norm, with decoupled weight decay.

    `axes` are the logical axes of the parameters. `rate_factors` is a tree like them of numbers
    that multiply the learning rate, but not that of weight decay. A `placement` spreads work on
    whole matrices over its devices. The state holds nothing of frozen parameters; gradients and
    updates come without them. Raises ConfigError where a name or pattern of the config means no
    parameter.
    """
    check_names(config, axes)
    axes, rate_factors = without(axes, config.frozen), without(rate_factors, config.frozen)

    # Without clipping, an identity keeps its place in the chain: the tree of the state, and so of a
    # checkpoint, does not depend on it.
    if config.gradient_clip is None:
        clip = optax.identity()
    else:
        clip = optax.clip_by_global_norm(config.gradient_clip)

    decay = decay_weights(config, axes)
    schedule = learning_rate_schedule(config, steps)
    rate = scale_by_rates(schedule, build_rate_factors(config, axes))
    direction = DIRECTIONS[config.kind](config, axes, placement)
    direction = scale_direction(direction, rate_factors)
    if config.kind == "schedule_free":
        step = schedule_free(config, schedule, optax.chain(direction, decay, rate))
    elif config.kind == "adafactor" and config.momentum:
        average = optax.ema(config.momentum, debias=False, accumulator_dtype=config.first_moment)
        step = add(optax.chain(direction, rate, average), optax.chain(decay, rate))
    else:
        step = optax.chain(direction, decay, rate)
    optimizer = optax.chain(clip, step)
    if config.ema_decay is not None:
        optimizer = with_average(optimizer, config.ema_decay)
    return of_trainable(optimizer, config.frozen)


def matrices_apart(
    config: OptimizerConfig,
    axes: Tree,
    build: Callable[[OptimizerConfig, Tree, Placement | None], optax.GradientTransformation],
    placement: Placement | None,
) -> optax.GradientTransformation:
    """Return an optimizer for the matrices of the blocks, and Adam for all other parameters."""
    axes_by_path = dict(jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes))

    def label(path: tuple, _: object) -> str:
        role = role_of(name_of(path), axes_by_path[path])
        return "matrices" if role == "matrices" else "rest"

    transforms: dict[Hashable, optax.GradientTransformation] = {
        "matrices": build(config, axes, placement),
        "rest": directions.adam(config),
    }
    return optax.partition(
        transforms, lambda params: jax.tree_util.tree_map_with_path(label, params)
    )


def add(
    first: optax.GradientTransformation, second: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Return the sum of two optimizers, of which the second sees gradients of zero.

    Adafactor averages updates with their rates, as its authors' code does, and decay is no part of
    the average.
    """

    def init(params: Tree) -> Any:
        return first.init(params), second.init(params)

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        zeros = jax.tree.map(jnp.zeros_like, updates)
        step, first_state = first.update(updates, state[0], params)
        other, second_state = second.update(zeros, state[1], params)
        return jax.tree.map(jnp.add, step, other), (first_state, second_state)

    return optax.GradientTransformation(init, update)


def of_trainable(
    inner: optax.GradientTransformation, frozen: tuple[str, ...]
) -> optax.GradientTransformation:
    """Return the optimizer of all parameters but the frozen ones, called with all of them.

    Its updates are those of the others.
    """
    if not frozen:
        return inner

    def init(params: Tree) -> Any:
        return inner.init(without(params, frozen))

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        return inner.update(updates, state, without(params, frozen))

    return optax.GradientTransformation(init, update)
