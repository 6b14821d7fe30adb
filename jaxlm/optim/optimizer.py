"""The optax chain that updates the parameters."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

from jaxlm.config import OptimizerConfig
from jaxlm.optim.average import with_average
from jaxlm.optim.schedule import learning_rate_schedule
from jaxlm.types import Array, Axes, Tree, is_axes


def decay_mask(exclude: tuple[str, ...], params: Tree) -> Tree:
    """Return a tree that is True where weight decay applies.

    Parameters are told apart by name, since stacked norms and biases are matrices too.
    """

    def decays(path: tuple, _: object) -> bool:
        return not any(word in str(part.key) for part in path for word in exclude)

    return jax.tree_util.tree_map_with_path(decays, params)


def matrix_view(axes: Axes, weight: Array) -> Array:
    """Return the weight as the matrix or vector that multiplies, its layers in front.

    Heads and the width of each are one dimension: [N, D, H, K] -> [N, D, H * K],
    [N, H, K, D] -> [N, H * K, D] and [N, H, K] -> [N, H * K]. Other weights keep their shape.
    """
    shape: list[int] = []
    for axis, size in zip(axes, weight.shape, strict=True):
        if axis == "head":
            shape[-1] *= size
        else:
            shape.append(size)
    return weight.reshape(shape)


def per_matrix(inner: optax.GradientTransformation, axes: Tree) -> optax.GradientTransformation:
    """Apply `inner`, whose maths is tensor by tensor, to every layer's matrices and vectors alone.

    `axes` are the logical axes of the parameters. The state has the tree of `inner`'s state: its
    tensors belong to the matrix views with the layers in front, its counters are shared.
    """
    axes_by_path = dict(jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes))

    def matrices(tree: Tree) -> Tree:
        # By path, since optax's tree_map_params calls `init` with a tree without leaves. In
        # float32, as in `adam`.
        return jax.tree_util.tree_map_with_path(
            lambda path, x: matrix_view(axes_by_path[path], x).astype(jnp.float32), tree
        )

    def layer_axes(params: Tree) -> Iterator[tuple[Tree, Tree]]:
        """Yield vmap's axes of (parameters, state), once for each number of layers.

        The stacks of an encoder-decoder may differ in their number of layers.
        """
        depths = jax.tree_util.tree_map_with_path(
            lambda path, x: x.shape[0] if axes_by_path[path][0] == "layers" else 0, params
        )
        state = jax.eval_shape(inner.init, params)

        for depth in sorted(set(jax.tree.leaves(depths)) - {0}):
            # vmap runs over the first axis of the tensors that have this number of layers.
            param_axes = jax.tree.map(lambda d: 0 if d == depth else None, depths)  # noqa: B023
            state_axes = optax.tree_utils.tree_map_params(
                inner,
                lambda _, axis: axis,
                state,
                param_axes,
                transform_non_params=lambda _: None,
            )
            yield param_axes, state_axes

    def init(params: Tree) -> optax.OptState:
        params, function = matrices(params), inner.init
        for param_axes, state_axes in layer_axes(params):
            function = jax.vmap(function, in_axes=(param_axes,), out_axes=state_axes)
        return function(params)

    def update(
        updates: Tree, state: optax.OptState, params: Tree | None = None
    ) -> tuple[Tree, optax.OptState]:
        params, function = matrices(params), inner.update
        for param_axes, state_axes in layer_axes(params):
            function = jax.vmap(
                function,
                in_axes=(param_axes, state_axes, param_axes),
                out_axes=(param_axes, state_axes),
            )

        matrix_updates, state = function(matrices(updates), state, params)
        return jax.tree.map(lambda new, old: new.reshape(old.shape), matrix_updates, updates), state

    return optax.GradientTransformation(init, update)


def adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return Adam's direction, with both moments in float32 whatever the parameters' dtype.

    In bfloat16 an average that moves by less than 1/512 a step stands still, and optax would give
    moments that start in bfloat16 the gradients' float32 in the first step.
    """
    inner = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)

    def init(params: Tree) -> optax.OptState:
        return inner.init(jax.tree.map(lambda p: p.astype(jnp.float32), params))

    return optax.GradientTransformation(init, inner.update)


def adafactor() -> optax.GradientTransformation:
    """Return Adafactor's direction, relative to each tensor's RMS, without a first moment.

    Each tensor of the parameters is one matrix or vector. The constants are those of algorithm 6 of
    Shazeer and Stern (arXiv 1804.04235). Matrices are factored if both dimensions are at least 128,
    as in the code that trained T5 (arXiv 1910.10683, section 3.1.2).
    """
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=128, epsilon=1e-30),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(1e-3),
    )


def build_optimizer(
    config: OptimizerConfig, steps: int, axes: Tree
) -> optax.GradientTransformation:
    """Build AdamW or Adafactor, after clipping to a global norm, with decoupled weight decay.

    `axes` are the logical axes of the parameters.
    """
    # Without clipping, an identity keeps its place in the chain: the tree of the state, and so of a
    # checkpoint, does not depend on it.
    if config.gradient_clip is None:
        clip = optax.identity()
    else:
        clip = optax.clip_by_global_norm(config.gradient_clip)

    direction = adam(config) if config.kind == "adamw" else per_matrix(adafactor(), axes)
    decay = optax.add_decayed_weights(
        config.weight_decay, lambda params: decay_mask(config.weight_decay_exclude, params)
    )
    rate = optax.scale_by_learning_rate(learning_rate_schedule(config, steps))
    optimizer = optax.chain(clip, optax.chain(direction, decay, rate))
    return optimizer if config.ema_decay is None else with_average(optimizer, config.ema_decay)
