"""The optax chain and the learning-rate schedule."""

import jax
import jax.numpy as jnp
import optax

from jaxlm import config
from jaxlm.types import Tree


def schedule(optimizer: config.Optimizer, steps: int) -> optax.Schedule:
    """Step (from 0) -> learning rate of that step. The warmup rises linearly, reaches the peak at its last step and is cut to the steps."""
    peak, final = optimizer.learning_rate, optimizer.learning_rate * optimizer.final_learning_rate_ratio
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
            "inverse_sqrt": lambda: peak * jnp.sqrt(max(1, warmup) / jnp.maximum(step, max(1, warmup))),
            # Warmup-stable-decay, MiniCPM (arXiv 2404.06395).
            "wsd": lambda: peak + (final - peak) * jnp.clip((step - (steps - decay)) / decay, 0.0, 1.0),
        }[optimizer.schedule]()
        return jnp.where(step < warmup, peak * (step + 1) / max(1, warmup), after)

    return rate


def decay_mask(exclude: tuple[str, ...], params: Tree) -> Tree:
    """True where weight decay applies: by name, since stacked norms and biases are matrices too."""

    def decays(path: tuple, _: object) -> bool:
        return not any(word in str(part.key) for part in path for word in exclude)

    return jax.tree_util.tree_map_with_path(decays, params)


def build(optimizer: config.Optimizer, steps: int) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay, after clipping to a global norm."""
    # No clipping keeps its place in the chain: the state's tree, and so a checkpoint, doesn't depend on it.
    clip = optax.identity() if optimizer.gradient_clip is None else optax.clip_by_global_norm(optimizer.gradient_clip)
    return optax.chain(
        clip,
        optax.adamw(
            schedule(optimizer, steps),
            b1=optimizer.beta1,
            b2=optimizer.beta2,
            eps=optimizer.epsilon,
            weight_decay=optimizer.weight_decay,
            mask=lambda params: decay_mask(optimizer.weight_decay_exclude, params),
        ),
    )
