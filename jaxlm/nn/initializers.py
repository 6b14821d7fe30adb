"""How every weight starts: a normal distribution whose standard deviation one table gives, by the weight's role.

    role        weights                     gpt2                normal   fan_in                      t5
    embedding   token, position, type rows  std                 std      1/sqrt(width)               1
    query       query                       std                 std      1/sqrt(fan in)              1/sqrt(fan in * head width)
    input       key, value, gate, up        std                 std      1/sqrt(fan in)              1/sqrt(fan in)
    residual    attention output, down      std/sqrt(2 layers)  std      1/sqrt(2 layers * fan in)   1/sqrt(fan in)
    head        untied head, its transform  std                 std      1/sqrt(fan in)              1/sqrt(fan in)
    relative    bias per distance           std                 std      1/sqrt(width)               1/sqrt(width)

Norm scales start at 1, every other bias at 0. Sources: gpt2, Radford et al. 2019 section 2.3 (residual layers scaled by
1/sqrt(their number)); normal, Devlin et al. 2018 and the Llama and BLOOM releases (one std for all); fan_in, LeCun et al. 1998
section 4.6, with the same residual scaling; t5, Mesh TensorFlow and T5X, where the query's start stands for the scaling that
attention lacks.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlm import config

Role = Literal["embedding", "query", "input", "residual", "head", "relative"]

STD: dict[str, Callable[[Role, int, config.ModelConfig], float]] = {
    "gpt2": lambda role, fan_in, model: (
        model.initializer_std / (math.sqrt(2 * model.layers) if role == "residual" else 1)
    ),
    "normal": lambda role, fan_in, model: model.initializer_std,
    "fan_in": lambda role, fan_in, model: (
        1 / math.sqrt(fan_in * (2 * model.layers if role == "residual" else 1))
    ),
    "t5": lambda role, fan_in, model: (
        1.0
        if role == "embedding"
        else 1 / math.sqrt(fan_in * (model.width_per_head if role == "query" else 1))
    ),
}


def normal(model: config.ModelConfig, role: Role, fan_in: int):
    """The initializer `(key, shape, dtype) -> array` of a weight with `fan_in` inputs per output."""
    std = STD[model.initializer](role, fan_in, model)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return (jax.random.normal(key, shape, jnp.float32) * std).astype(dtype)

    return init
