"""The optax chain and the learning-rate schedule."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

from jaxlm import config
from jaxlm.types import Array, Axes, Tree, is_axes


def learning_rate_schedule(optimizer: config.OptimizerConfig, steps: int) -> optax.Schedule:
    """Step (from 0) -> learning rate of that step. The warmup is cut to the steps.

    It is the line through `warmup_start_ratio` of the peak one step before the first, and the peak at the warmup's last step.
    """
    peak, final = (
        optimizer.learning_rate,
        optimizer.learning_rate * optimizer.final_learning_rate_ratio,
    )
    start = peak * optimizer.warmup_start_ratio
    warmup = min(optimizer.warmup_steps, steps)
    end = optimizer.decay_steps or steps
    decay = max(1, round(steps * optimizer.decay_share))

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / max(1, end - warmup), 0.0, 1.0)
        after = {
            "constant": lambda: jnp.full_like(step, peak),
            "linear": lambda: peak + (final - peak) * progress,
            "cosine": lambda: final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress)),
            # Vaswani et al. 2017 section 5.3, scaled to reach the peak where the warmup ends.
            "inverse_sqrt": lambda: (
                peak * jnp.sqrt(max(1, warmup) / jnp.maximum(step, max(1, warmup)))
            ),
            # Warmup-stable-decay, MiniCPM (arXiv 2404.06395).
            "wsd": lambda: (
                peak + (final - peak) * jnp.clip((step - (steps - decay)) / decay, 0.0, 1.0)
            ),
        }[optimizer.schedule]()
        return jnp.where(step < warmup, start + (peak - start) * (step + 1) / max(1, warmup), after)

    return rate


def decay_mask(exclude: tuple[str, ...], params: Tree) -> Tree:
    """True where weight decay applies: by name, since stacked norms and biases are matrices too."""

    def decays(path: tuple, _: object) -> bool:
        return not any(word in str(part.key) for part in path for word in exclude)

    return jax.tree_util.tree_map_with_path(decays, params)


def matrix_view(names: Axes, weight: Array) -> Array:
    """The weight as the matrix or vector that multiplies, its layers in front: heads and the width of each are one dimension.

    [N, D, H, K] -> [N, D, H * K], [N, H, K, D] -> [N, H * K, D], [N, H, K] -> [N, H * K]; others keep their shape.
    """
    shape: list[int] = []
    for name, size in zip(names, weight.shape, strict=True):
        if name == "head":
            shape[-1] *= size
        else:
            shape.append(size)
    return weight.reshape(shape)


def per_matrix(inner: optax.GradientTransformation, axes: Tree) -> optax.GradientTransformation:
    """`inner`, whose maths is tensor by tensor, on every layer's matrices and vectors alone. `axes` are the parameters' logical axes.

    The state has `inner`'s tree. Its tensors are of the matrix view with the layers in front, its counters are shared.
    """
    names = dict(jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes))

    def matrices(tree: Tree) -> Tree:
        # By path: optax's tree_map_params calls `init` with a tree without leaves. Float32, since in bfloat16 an average that
        # moves by less than 1/512 a step stands still.
        return jax.tree_util.tree_map_with_path(
            lambda path, x: matrix_view(names[path], x).astype(jnp.float32), tree
        )

    def layer_axes(params: Tree) -> Iterator[tuple[Tree, Tree]]:
        """vmap's axes of (parameters, state), once for each number of layers: an encoder and its decoder may differ."""
        depths = jax.tree_util.tree_map_with_path(
            lambda path, x: x.shape[0] if names[path][0] == "layers" else 0, params
        )
        state = jax.eval_shape(inner.init, params)
        for depth in sorted(set(jax.tree.leaves(depths)) - {0}):
            at = jax.tree.map(lambda d: 0 if d == depth else None, depths)  # noqa: B023 (called at once)
            yield (
                at,
                optax.tree_utils.tree_map_params(
                    inner, lambda _, axis: axis, state, at, transform_non_params=lambda _: None
                ),
            )

    def init(params: Tree) -> optax.OptState:
        params, function = matrices(params), inner.init
        for at, state_at in layer_axes(params):
            function = jax.vmap(function, in_axes=(at,), out_axes=state_at)
        return function(params)

    def update(
        updates: Tree, state: optax.OptState, params: Tree | None = None
    ) -> tuple[Tree, optax.OptState]:
        params, function = matrices(params), inner.update
        for at, state_at in layer_axes(params):
            function = jax.vmap(function, in_axes=(at, state_at, at), out_axes=(at, state_at))
        found, state = function(matrices(updates), state, params)
        return jax.tree.map(lambda new, old: new.reshape(old.shape), found, updates), state

    return optax.GradientTransformation(init, update)


def adafactor() -> optax.GradientTransformation:
    """Adafactor's direction, relative to each tensor's RMS, without a first moment (Shazeer and Stern, arXiv 1804.04235).

    Each tensor of the parameters is one matrix or vector. The constants are those of the paper's algorithm 6; matrices are factored
    if both dimensions are at least 128, as in the code that trained T5 (arXiv 1910.10683, section 3.1.2).
    """
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=128, epsilon=1e-30),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(1e-3),
    )


def build_optimizer(
    optimizer: config.OptimizerConfig, steps: int, axes: Tree
) -> optax.GradientTransformation:
    """AdamW or Adafactor, after clipping to a global norm; weight decay is decoupled. `axes` are the parameters' logical axes."""
    # No clipping keeps its place in the chain: the state's tree, and so a checkpoint, doesn't depend on it.
    clip = (
        optax.identity()
        if optimizer.gradient_clip is None
        else optax.clip_by_global_norm(optimizer.gradient_clip)
    )
    direction = {
        "adamw": lambda: optax.scale_by_adam(optimizer.beta1, optimizer.beta2, optimizer.epsilon),
        "adafactor": lambda: per_matrix(adafactor(), axes),
    }[optimizer.kind]()
    decay = optax.add_decayed_weights(
        optimizer.weight_decay, lambda params: decay_mask(optimizer.weight_decay_exclude, params)
    )
    return optax.chain(
        clip,
        optax.chain(
            direction, decay, optax.scale_by_learning_rate(learning_rate_schedule(optimizer, steps))
        ),
    )
