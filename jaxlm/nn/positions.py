"""Positions: rotary (arXiv 2104.09864) with scaling, sinusoidal (arXiv 1706.03762 section 3.5), ALiBi (arXiv 2108.12409), T5's relative
bias (arXiv 1910.10683 section 2.1)."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import config
from jaxlm.nn.execution import Execution
from jaxlm.nn.initializers import normal
from jaxlm.nn.parameters import parameter


class Rotation(NamedTuple):
    """cos and sin of the rotary angles, float32 [B or 1, L, 1, K/2]."""

    cos: jax.Array
    sin: jax.Array


def rotary_frequencies(model: config.ModelConfig, theta: float) -> np.ndarray:
    """Radians per position of each pair of a head's rotated channels, float64."""
    width = model.rotary_width
    frequencies = theta ** (-np.arange(0, width, 2) / width)
    scaled = {
        "none": lambda: frequencies,
        "linear": lambda: frequencies / model.rotary_scaling_factor,
        "llama3": lambda: llama3_scaling(model, frequencies),
        "yarn": lambda: yarn_scaling(model, frequencies, theta),
    }
    return scaled[model.rotary_scaling]()


def llama3_scaling(model: config.ModelConfig, frequencies: np.ndarray) -> np.ndarray:
    """Llama 3.1's scaling: slow channels are divided by the factor, fast ones kept, those between blended (arXiv 2407.21783)."""
    turns = (
        model.rotary_original_length * frequencies / (2 * math.pi)
    )  # full turns within the original context
    low, high = model.rotary_low_frequency_factor, model.rotary_high_frequency_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / model.rotary_scaling_factor)


def yarn_scaling(model: config.ModelConfig, frequencies: np.ndarray, theta: float) -> np.ndarray:
    """YaRN (arXiv 2309.00071 section 3.2): as Llama 3.1's, but blended by the number of the channel, between whole numbers."""

    def channel(turns: float) -> float:
        """The pair of channels that makes so many turns within the original context."""
        return (
            model.rotary_width
            * math.log(model.rotary_original_length / (turns * 2 * math.pi))
            / (2 * math.log(theta))
        )

    first = max(math.floor(channel(model.rotary_high_frequency_factor)), 0)
    last = min(math.ceil(channel(model.rotary_low_frequency_factor)), model.rotary_width - 1)
    divided = np.clip((np.arange(len(frequencies)) - first) / max(last - first, 0.001), 0.0, 1.0)
    return frequencies * (1 - divided + divided / model.rotary_scaling_factor)


def rotation(model: config.ModelConfig, positions_BL: jax.Array, theta: float) -> Rotation:
    """Angles of int32 positions [B or 1, L]."""
    frequencies = jnp.asarray(rotary_frequencies(model, theta), jnp.float32)[None, None, None, :]
    angles = positions_BL.astype(jnp.float32)[:, :, None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if model.rotary_scaling != "yarn":
        return Rotation(cos, sin)
    factor = (
        model.rotary_attention_factor or 0.1 * math.log(max(model.rotary_scaling_factor, 1.0)) + 1.0
    )  # its equation 22
    return Rotation(cos * factor, sin * factor)


def rotate(x_BLHK: jax.Array, rotation: Rotation) -> jax.Array:
    """Turns channel i with channel i + K/2 (the halves convention of the Llama release in transformers); of heads that are wider than
    the rotation the first channels only (GPT-NeoX)."""
    rotated = 2 * rotation.cos.shape[-1]
    x32 = x_BLHK.astype(jnp.float32)
    a, b, rest = jnp.split(x32, (rotated // 2, rotated), axis=-1)
    parts = [a * rotation.cos - b * rotation.sin, b * rotation.cos + a * rotation.sin, rest]
    return jnp.concatenate(parts, axis=-1).astype(x_BLHK.dtype)


def sinusoids(positions_BL: jax.Array, width: int) -> jax.Array:
    """float32 [B or 1, L, D]: sines in the first half of the channels, cosines in the second (as tensor2tensor and Marian lay them out)."""
    frequencies = jnp.asarray(10000.0 ** (-np.arange(0, width, 2) / width), jnp.float32)[
        None, None, :
    ]
    angles = positions_BL.astype(jnp.float32)[:, :, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def alibi_slopes(heads: int) -> np.ndarray:
    """float32 [H]: 2^(-8 i / H) for a power of two; else those of the power below and every other one of the power above (appendix A)."""

    def powers(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    below = 2 ** math.floor(math.log2(heads))
    return np.array(powers(below) + powers(2 * below)[0::2][: heads - below], np.float32)


def alibi_bias(heads: int, queries_BL: jax.Array, keys_BS: jax.Array) -> jax.Array:
    """float32 [B or 1, H, L, S] of int32 positions: -slope times the distance to the key."""
    distance_BLS = -jnp.abs(keys_BS[:, None, :] - queries_BL[:, :, None])
    return (
        jnp.asarray(alibi_slopes(heads))[None, :, None, None]
        * distance_BLS.astype(jnp.float32)[:, None]
    )


def relative_buckets(
    distances: np.ndarray, count: int, farthest: int, bidirectional: bool
) -> np.ndarray:
    """The bucket (0 to count - 1) of each distance, key minus query: one for each near one, then ever wider ones up to `farthest`.

    In both directions half of the buckets are for keys behind the query; in one direction those share the bucket of distance 0.
    """
    if bidirectional:
        count //= 2
        offset, back = np.where(distances > 0, count, 0), np.abs(distances)
    else:
        offset, back = 0, np.maximum(-distances, 0)
    near = count // 2
    # float32, as T5 computes it: the buckets' edges decide.
    steps = (
        np.log(np.maximum(back, near).astype(np.float32) / near)
        / np.float32(np.log(farthest / near))
        * (count - near)
    )
    far = np.minimum(near + steps.astype(np.int32), count - 1)
    return (offset + np.where(back < near, back, far)).astype(np.int32)


class RelativeBias(nn.Module):
    """A bias per head and bucket of distances, shared by the layers of a stack: float32 [1, H, L, S]."""

    config: config.ModelConfig
    bidirectional: bool
    execution: Execution = Execution()
    dtype: Any = jnp.float32  # of the parameters

    @nn.compact
    def __call__(
        self, queries: int, keys: int, positions: tuple[jax.Array, jax.Array] | None = None
    ) -> jax.Array:
        """Of `queries` and `keys` that both count from 0, or of int32 `positions` [B, L] and [B, S] below `keys`: [B, H, L, S]."""
        model = self.config
        shape = (model.relative_buckets, model.heads)
        table = parameter(
            self,
            "table",
            normal(model, "relative", model.width),
            shape,
            ("position", "heads"),
            self.dtype,
        )
        if positions is not None:
            line = relative_buckets(
                np.arange(keys) - keys + 1,
                model.relative_buckets,
                model.relative_max_distance,
                self.bidirectional,
            )
            back_BLS = jnp.clip(positions[0][:, :, None] - positions[1][:, None, :], 0, keys - 1)
            return jnp.moveaxis(table.astype(jnp.float32)[line[::-1]][back_BLS], -1, 1)
        # One value per distance, modulo L + S: row i of the matrix is this line moved by i, so its gradient is a sum, not a scatter.
        period = queries + keys
        distances = np.arange(period)
        distances = np.where(distances < keys, distances, distances - period)
        buckets = relative_buckets(
            distances, model.relative_buckets, model.relative_max_distance, self.bidirectional
        )
        line_HP = table.astype(jnp.float32)[buckets].T
        rows = jnp.broadcast_to(line_HP[:, None], (model.heads, queries, period)).reshape(
            model.heads, queries * period
        )
        bias_HLS = rows[:, : queries * (period - 1)].reshape(model.heads, queries, period - 1)[
            :, :, :keys
        ]
        return self.execution.constrain(bias_HLS[None], (None, "heads_act", "length", "length"))
