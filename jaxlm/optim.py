"""The optax chain and the learning-rate schedule."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import optax

from jaxlm.config import OptimizerConfig
from jaxlm.types import Array, Axes, Tree, is_axes


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the function from a step (from 0) to the learning rate of that step.

    The warmup is a line: it is at `warmup_start_ratio` of the peak one step before the first step,
    and at the peak in its last step. It is cut to the steps.
    """
    peak, final = config.learning_rate, config.learning_rate * config.final_learning_rate_ratio
    start = peak * config.warmup_start_ratio
    warmup = min(config.warmup_steps, steps)
    end = config.decay_steps or steps
    # The last share of the steps, but never a part of the warmup: the rate would jump.
    decay_start = max(warmup, steps - max(1, round(steps * config.decay_share)))

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / max(1, end - warmup), 0.0, 1.0)

        schedules: dict[str, Callable[[], Array]] = {
            "constant": lambda: jnp.full_like(step, peak),
            "linear": lambda: peak + (final - peak) * progress,
            "cosine": lambda: final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress)),
            # Vaswani et al. 2017 section 5.3, scaled to reach the peak where the warmup ends.
            "inverse_sqrt": lambda: (
                peak * jnp.sqrt(max(1, warmup) / jnp.maximum(step, max(1, warmup)))
            ),
            # Warmup-stable-decay, MiniCPM (arXiv 2404.06395).
            "wsd": lambda: (
                peak
                + (final - peak)
                * jnp.clip((step - decay_start) / max(1, steps - decay_start), 0.0, 1.0)
            ),
        }
        after_warmup = schedules[config.schedule]()

        in_warmup = start + (peak - start) * (step + 1) / max(1, warmup)
        return jnp.where(step < warmup, in_warmup, after_warmup)

    return rate


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


def scale_rates(
    direction: optax.GradientTransformation, factors: Tree
) -> optax.GradientTransformation:
    """Multiply the updates of `direction` by a factor for each parameter. The state stays."""

    def scale(update: Array, factor: float) -> Array:
        return update if factor == 1 else update * factor

    def update(
        updates: Tree, state: optax.OptState, params: Tree | None = None
    ) -> tuple[Tree, optax.OptState]:
        updates, state = direction.update(updates, state, params)
        return jax.tree.map(scale, updates, factors), state

    return optax.GradientTransformation(direction.init, update)


def build_optimizer(
    config: OptimizerConfig, steps: int, axes: Tree, rate_factors: Tree | None = None
) -> optax.GradientTransformation:
    """Build AdamW or Adafactor, after clipping to a global norm, with decoupled weight decay.

    `axes` are the logical axes of the parameters. `rate_factors` has a number for each parameter,
    by which its learning rate is multiplied (None: 1). Its weight decay is not: the product of rate
    and decay, which says over how many steps a weight forgets, is the same for all (Wang and
    Aitchison 2024, arXiv 2405.13698; the package of Yang et al. does so, too).
    """
    # Without clipping, an identity keeps its place in the chain: the tree of the state, and so of a
    # checkpoint, does not depend on it.
    if config.gradient_clip is None:
        clip = optax.identity()
    else:
        clip = optax.clip_by_global_norm(config.gradient_clip)

    direction = adam(config) if config.kind == "adamw" else per_matrix(adafactor(), axes)
    if rate_factors is not None:
        direction = scale_rates(direction, rate_factors)
    decay = optax.add_decayed_weights(
        config.weight_decay, lambda params: decay_mask(config.weight_decay_exclude, params)
    )
    rate = optax.scale_by_learning_rate(learning_rate_schedule(config, steps))
    return optax.chain(clip, optax.chain(direction, decay, rate))
