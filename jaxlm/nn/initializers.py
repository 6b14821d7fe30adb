"""How every weight starts: a normal distribution whose standard deviation one table gives.

The table is by the weight's role:

    role       weights                     gpt2           normal  fan_in            t5
    embedding  token, position, type rows  std            std     1/sqrt(width)     1
    query      query                       std            std     1/sqrt(in)        1/sqrt(in * K)
    input      key, value, gate, up        std            std     1/sqrt(in)        1/sqrt(in)
    residual   attention output, down      std/sqrt(2 N)  std     1/sqrt(2 N * in)  1/sqrt(in)
    transform  the head's, from D to D     std            std     1/sqrt(in)        1/sqrt(in)
    head       untied head                 std            std     1/sqrt(in)        1/sqrt(in)
    relative   bias per distance           std            std     1/sqrt(width)     1/sqrt(width)

`std` is model.initializer_std, `in` the inputs of each output (fan in), N the layers, K the width
of a head. Norm scales start at 1, all biases but the relative one at 0; so does the head with
model.zero_head. Under muP these are the standard deviations at the base width;
`parametrization.std_factor` has what follows at others.

Sources: gpt2, Radford et al. 2019 section 2.3 (residual layers scaled by 1/sqrt(their number));
normal, Devlin et al. 2018 and the Llama and BLOOM releases (one std for all); fan_in, LeCun et al.
1998 section 4.6, with the same residual scaling; t5, Mesh TensorFlow and T5X, where the query's
start replaces the scaling that attention lacks.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.config import ModelConfig
from jaxlm.nn.parametrization import Role, std_factor


def gpt2_std(role: Role, fan_in: float, config: ModelConfig) -> float:
    """Return one std for all weights, smaller for those that write to the residual stream."""
    return config.initializer_std / (math.sqrt(2 * config.layers) if role == "residual" else 1)


def fan_in_std(role: Role, fan_in: float, config: ModelConfig) -> float:
    """Return 1 / sqrt(fan in), smaller for weights that write to the residual stream."""
    return 1 / math.sqrt(fan_in * (2 * config.layers if role == "residual" else 1))


def t5_std(role: Role, fan_in: float, config: ModelConfig) -> float:
    """Return 1 / sqrt(fan in), with the score's scale in the query; 1 for embeddings."""
    if role == "embedding":
        return 1.0
    head_width = config.width_per_head / config.head_width_ratio
    return 1 / math.sqrt(fan_in * (head_width if role == "query" else 1))


STD: dict[str, Callable[[Role, float, ModelConfig], float]] = {
    "gpt2": gpt2_std,
    "normal": lambda role, fan_in, config: config.initializer_std,
    "fan_in": fan_in_std,
    "t5": t5_std,
}


def normal(config: ModelConfig, role: Role, fan_in: int):
    """Return the initializer `(key, shape, dtype) -> array` of a weight.

    `fan_in` is the number of inputs of each of its outputs.
    """
    base_std = STD[config.initializer](role, fan_in / config.width_ratio, config)
    std = base_std * std_factor(config, role)
    if role == "head" and config.zero_head:
        return jax.nn.initializers.zeros

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return (jax.random.normal(key, shape, jnp.float32) * std).astype(dtype)

    return init
