"""Positions: rotary with scaling, sinusoidal, ALiBi, T5's relative bias.

Sources: rotary arXiv 2104.09864; sinusoidal arXiv 1706.03762 section 3.5; ALiBi arXiv 2108.12409;
relative bias arXiv 1910.10683 section 2.1.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ModelConfig
from jaxlm.nn.execution import Execution
from jaxlm.nn.initializers import normal
from jaxlm.nn.parameters import parameter


class Rotation(NamedTuple):
    """cos and sin of the rotary angles, float32 [B or 1, L, 1, K/2]."""

    cos: jax.Array
    sin: jax.Array


def rotary_frequencies(config: ModelConfig, theta: float) -> np.ndarray:
    """Return the radians per position of each pair of a head's rotated channels, float64."""
    width = config.rotary_width
    frequencies = theta ** (-np.arange(0, width, 2) / width)
    if config.rotary_scaling == "linear":
        return frequencies / config.rotary_scaling_factor
    if config.rotary_scaling == "llama3":
        return llama3_scaling(config, frequencies)
    if config.rotary_scaling == "yarn":
        return yarn_scaling(config, frequencies, theta)
    return frequencies


def llama3_scaling(config: ModelConfig, frequencies: np.ndarray) -> np.ndarray:
    """Return Llama 3.1's scaling of the frequencies (arXiv 2407.21783).

    Slow channels are divided by the factor, fast ones kept, those between blended.
    """
    # Full turns within the original context.
    turns = config.rotary_original_length * frequencies / (2 * math.pi)
    low, high = config.rotary_low_frequency_factor, config.rotary_high_frequency_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / config.rotary_scaling_factor)


def yarn_scaling(config: ModelConfig, frequencies: np.ndarray, theta: float) -> np.ndarray:
    """Return YaRN's scaling of the frequencies (arXiv 2309.00071 section 3.2).

    Like Llama 3.1's, but the blend is linear in the channel's number, between whole numbers.
    """

    def channel(turns: float) -> float:
        """Return the pair of channels that makes `turns` turns within the original context."""
        length = config.rotary_original_length
        return (
            config.rotary_width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))
        )

    first = max(math.floor(channel(config.rotary_high_frequency_factor)), 0)
    last = min(math.ceil(channel(config.rotary_low_frequency_factor)), config.rotary_width - 1)
    divided = np.clip((np.arange(len(frequencies)) - first) / max(last - first, 0.001), 0.0, 1.0)
    return frequencies * (1 - divided + divided / config.rotary_scaling_factor)


def rotation_at(config: ModelConfig, positions_BL: jax.Array, theta: float) -> Rotation:
    """Return the rotation of int32 positions [B or 1, L]."""
    frequencies = jnp.asarray(rotary_frequencies(config, theta), jnp.float32)[None, None, None, :]
    angles = positions_BL.astype(jnp.float32)[:, :, None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if config.rotary_scaling != "yarn":
        return Rotation(cos, sin)

    # YaRN's equation 22.
    scale = 0.1 * math.log(max(config.rotary_scaling_factor, 1.0)) + 1.0
    factor = config.rotary_attention_factor or scale
    return Rotation(cos * factor, sin * factor)


def rotate(x_BLHK: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotate channel i with channel i + K/2, the halves convention of Llama in transformers.

    Of heads that are wider than the rotation only the first channels are rotated (GPT-NeoX).
    """
    rotated = 2 * rotation.cos.shape[-1]
    x32 = x_BLHK.astype(jnp.float32)
    a, b, rest = jnp.split(x32, (rotated // 2, rotated), axis=-1)
    parts = [a * rotation.cos - b * rotation.sin, b * rotation.cos + a * rotation.sin, rest]
    return jnp.concatenate(parts, axis=-1).astype(x_BLHK.dtype)


def sinusoids(positions_BL: jax.Array, width: int) -> jax.Array:
    """Return float32 [B or 1, L, D]: sines in the first half of the channels, then cosines.

    This is the layout of tensor2tensor and Marian.
    """
    frequencies = jnp.asarray(10000.0 ** (-np.arange(0, width, 2) / width), jnp.float32)
    angles = positions_BL.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def alibi_slopes(heads: int) -> np.ndarray:
    """Return the slope of each head, float32 [H]: 2^(-8 i / H) for a power of two.

    Otherwise those of the power below, then every second one of the power above (appendix A).
    """

    def powers(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    below = 2 ** math.floor(math.log2(heads))
    return np.array(powers(below) + powers(2 * below)[0::2][: heads - below], np.float32)


def alibi_bias(heads: int, queries_BL: jax.Array, keys_BS: jax.Array) -> jax.Array:
    """Return float32 [B or 1, H, L, S] of int32 positions: -slope times the distance to the key."""
    distance_BLS = -jnp.abs(keys_BS[:, None, :] - queries_BL[:, :, None])
    slopes = jnp.asarray(alibi_slopes(heads))[None, :, None, None]
    return slopes * distance_BLS.astype(jnp.float32)[:, None]


def relative_buckets(
    distances: np.ndarray, count: int, farthest: int, bidirectional: bool
) -> np.ndarray:
    """Return the bucket (0 to count - 1) of each distance, key minus query.

    Each near distance has its own bucket, then they get ever wider up to `farthest`. In both
    directions half of the buckets are for keys after the query. In one direction such keys share
    the bucket of distance 0.
    """
    if bidirectional:
        count //= 2
        offset, back = np.where(distances > 0, count, 0), np.abs(distances)
    else:
        offset, back = 0, np.maximum(-distances, 0)

    # In float32, like T5: rounding decides at the edges of the buckets.
    near = count // 2
    steps = (
        np.log(np.maximum(back, near).astype(np.float32) / near)
        / np.float32(np.log(farthest / near))
        * (count - near)
    )
    far = np.minimum(near + steps.astype(np.int32), count - 1)
    return (offset + np.where(back < near, back, far)).astype(np.int32)


class RelativeBias(nn.Module):
    """A bias per head and bucket of distances, shared by the layers of a stack."""

    config: ModelConfig
    bidirectional: bool
    execution: Execution = Execution()
    dtype: Any = jnp.float32  # of the parameters

    @nn.compact
    def __call__(
        self, queries: int, keys: int, positions: tuple[jax.Array, jax.Array] | None = None
    ) -> jax.Array:
        """Return float32 [1, H, L, S] of `queries` and `keys` that both count from 0.

        With int32 `positions`, [B, L] of queries and [B, S] of keys, all below `keys`, the bias of
        those: [B, H, L, S].
        """
        config = self.config
        shape, axes = (config.relative_buckets, config.heads), ("position", "heads")
        init = normal(config, "relative", config.width)
        table = parameter(self, "table", init, shape, axes, self.dtype)
        if positions is None:
            return self.of_ranges(table, queries, keys)
        return self.of_positions(table, keys, *positions)

    def of_ranges(self, table: jax.Array, queries: int, keys: int) -> jax.Array:
        """Return the bias of positions that count from 0.

        All values lie on a line with one value per distance, modulo L + S. Row i of the matrix is
        this line moved by i, so that the table's gradient is a sum and not a scatter.
        """
        heads, period = self.config.heads, queries + keys
        distances = np.arange(period)
        distances = np.where(distances < keys, distances, distances - period)
        line_HP = table.astype(jnp.float32)[self.buckets(distances)].T

        # Repeated L times and cut into rows that are one shorter, the line moves by one each row.
        flat = jnp.broadcast_to(line_HP[:, None], (heads, queries, period)).reshape(heads, -1)
        rows = flat[:, : queries * (period - 1)].reshape(heads, queries, period - 1)
        bias_HLS = rows[:, :, :keys]
        return self.execution.constrain(bias_HLS[None], (None, "heads_act", "length", "length"))

    def of_positions(
        self, table: jax.Array, keys: int, queries_BL: jax.Array, keys_BS: jax.Array
    ) -> jax.Array:
        """Return the bias of a cache's positions; keys after the query share distance 0."""
        line = self.buckets(np.arange(keys) - keys + 1)
        back_BLS = jnp.clip(queries_BL[:, :, None] - keys_BS[:, None, :], 0, keys - 1)
        return jnp.moveaxis(table.astype(jnp.float32)[line[::-1]][back_BLS], -1, 1)

    def buckets(self, distances: np.ndarray) -> np.ndarray:
        """Return the bucket of each distance, key minus query."""
        config = self.config
        return relative_buckets(
            distances, config.relative_buckets, config.relative_max_distance, self.bidirectional
        )
