"""Roles of parameters, and the rate and the decay of each."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.config import ConfigError, GroupConfig, OptimizerConfig
from jaxlm.config.fields import list_names, nearest
from jaxlm.parameter_names import matches, name_of, without
from jaxlm.types import Array, Axes, Tree, is_axes

Role = Literal["embeddings", "head", "norms", "biases", "matrices"]
ROLES: tuple[Role, ...] = ("embeddings", "head", "norms", "biases", "matrices")


def role_of(name: str, axes: Axes) -> Role:
    """Return the role of a parameter, by its name and its logical axes.

    Tables of relative positions count as embeddings. Matrices are those of the blocks.
    """
    parts = name.split(".")
    if any("norm" in part for part in parts):
        return "norms"
    if parts[-1].endswith("bias"):
        return "biases"
    if "head" in parts:
        return "head"
    return "matrices" if axes[0] == "layers" else "embeddings"


def names_parameter(pattern: str, name: str, axes: Axes) -> bool:
    """Return whether a role or a pattern means a parameter."""
    return role_of(name, axes) == pattern if pattern in ROLES else matches(name, pattern)


def check_names(config: OptimizerConfig, axes: Tree) -> None:
    """Raise ConfigError where a name or pattern of the config means no parameter of the model."""
    leaves = jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes)
    by_name = {name_of(path): leaf for path, leaf in leaves}
    names = list(by_name)
    patterns = {f"frozen.{i}": pattern for i, pattern in enumerate(config.frozen)}
    patterns |= {f"groups.{i}.parameters": g.parameters for i, g in enumerate(config.groups)}

    for key, pattern in patterns.items():
        if key.startswith("frozen"):
            hits = any(matches(name, pattern) for name in names)
        else:
            hits = any(names_parameter(pattern, name, a) for name, a in by_name.items())
        if not hits:
            close = nearest(pattern, names)
            hint = f" (did you mean {close!r}?)" if close else ""
            reason = f"{pattern!r} means no parameter of the model{hint}"
            raise ConfigError(f"optimizer.{key}", f"{reason}; there are {list_names(names)}")

    if config.frozen and not without(axes, config.frozen):
        raise ConfigError("optimizer.frozen", "leaves no parameter to train")


def find_group(config: OptimizerConfig, name: str, axes: Axes) -> GroupConfig | None:
    """Return the first group that means a parameter."""
    hits = (g for g in config.groups if names_parameter(g.parameters, name, axes))
    return next(hits, None)


# Rates


def layer_factor(decay: float, name: str, axes: Axes, leaf: Array, deepest: int) -> Any:
    """Return the factor of layer-wise decay: `decay` to the power of the layers up to the head.

    It is 1 for the head and the last norm, `decay` for the last layer, and smallest for the
    embeddings, as in BEiT (arXiv 2106.08254). Each stack counts from its own top; the embeddings
    lie below the `deepest`. Stacked layers get one factor each, [N, 1, ...].
    """
    if axes[0] == "layers":
        factors = decay ** np.arange(leaf.shape[0], 0, -1, dtype=np.float64)
        return factors.astype(np.float32).reshape(-1, *[1] * (leaf.ndim - 1))
    is_input = not {"embedding", "relative_bias"}.isdisjoint(name.split("."))
    return decay ** (deepest + 1) if is_input else 1.0


def build_rate_factors(config: OptimizerConfig, axes: Tree) -> Callable[[Tree], Tree] | None:
    """Return the function from parameters to the factors of their rates; None if all are 1.

    A factor is a number, or one for each layer that broadcasts to the parameter.
    """
    rest_ratio = (config.rest_learning_rate or config.learning_rate) / config.learning_rate
    ratios = [group.learning_rate_ratio for group in config.groups]
    if {rest_ratio, config.layer_decay, *ratios} == {1.0}:
        return None

    axes_by_path = dict(jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes))

    def factors(params: Tree) -> Tree:
        leaves = jax.tree_util.tree_leaves_with_path(params)
        depths = [leaf.shape[0] for path, leaf in leaves if axes_by_path[path][0] == "layers"]

        def factor(path: tuple, leaf: Array) -> Any:
            name, axes = name_of(path), axes_by_path[path]
            group = find_group(config, name, axes)
            number = 1.0 if group is None else group.learning_rate_ratio
            if role_of(name, axes) != "matrices":
                number *= rest_ratio
            return number * layer_factor(
                config.layer_decay, name, axes, leaf, max(depths, default=0)
            )

        return jax.tree_util.tree_map_with_path(factor, params)

    return factors


def scale_direction(
    direction: optax.GradientTransformation, factors: Tree | None
) -> optax.GradientTransformation:
    """Multiply the updates of `direction` by a number for each parameter (None: as they are).

    Weight decay, which comes later, keeps the common rate: the product of rate and decay, which
    says over how many steps a weight forgets, is the same for all (Wang and Aitchison 2024, arXiv
    2405.13698, section 4; the package of Yang et al. does so, too). The state stays.
    """
    if factors is None:
        return direction

    def scale(update: Array, factor: float) -> Array:
        return update if factor == 1 else update * factor

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        updates, state = direction.update(updates, state, params)
        return jax.tree.map(scale, updates, factors), state

    return optax.GradientTransformation(direction.init, update)


def scale_by_rates(
    schedule: optax.Schedule, factors: Callable[[Tree], Tree] | None
) -> optax.GradientTransformation:
    """Return the step down: minus the schedule's rate, times the factor of each parameter.

    The state has the tree of `optax.scale_by_learning_rate`, with factors and without.
    """
    inner = optax.scale_by_learning_rate(schedule)
    if factors is None:
        return inner

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        updates = jax.tree.map(lambda u, f: u * jnp.asarray(f, u.dtype), updates, factors(updates))
        return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


# Decay


def decay_mask(exclude: tuple[str, ...], params: Tree) -> Tree:
    """Return a tree that is True where weight decay applies.

    Parameters are told apart by name, since stacked norms and biases are matrices too.
    """

    def decays(path: tuple, _: object) -> bool:
        return not any(word in str(part.key) for part in path for word in exclude)

    return jax.tree_util.tree_map_with_path(decays, params)


def decay_weights(config: OptimizerConfig, axes: Tree) -> optax.GradientTransformation:
    """Return decoupled weight decay: of each group's own strength, or the config's.

    The state has the same tree with groups and without.
    """
    exclude = config.weight_decay_exclude
    plain = optax.add_decayed_weights(
        config.weight_decay, lambda params: decay_mask(exclude, params)
    )
    if all(group.weight_decay is None for group in config.groups):
        return plain

    axes_by_path = dict(jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes))

    def strength(path: tuple, decays: bool) -> float:
        group = find_group(config, name_of(path), axes_by_path[path])
        if group is not None and group.weight_decay is not None:
            return group.weight_decay
        return config.weight_decay if decays else 0.0

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        mask = decay_mask(exclude, params)
        strengths = jax.tree_util.tree_map_with_path(strength, mask)
        return jax.tree.map(lambda u, p, s: u + s * p, updates, params, strengths), state

    return optax.GradientTransformation(plain.init, update)
