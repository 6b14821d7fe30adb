"""How every weight starts: one table, by the weight's role.

    role        weights                                  gpt2                    normal      fan_in
    embedding   token and position tables                N(0, std)               N(0, std)   N(0, 1/sqrt(width))
    input       query, key, value, gate, up              N(0, std)               N(0, std)   N(0, 1/sqrt(fan in))
    residual    attention output, down                   N(0, std/sqrt(2 layers))  N(0, std)   N(0, 1/sqrt(2 layers * fan in))
    head        an untied head                           N(0, std)               N(0, std)   N(0, 1/sqrt(fan in))

Norm scales start at 1, every bias at 0. Sources: gpt2, Radford et al. 2019 section 2.3 (residual layers scaled by 1/sqrt(their number));
normal, Devlin et al. 2018 and the Llama and BLOOM releases (one std for all); fan_in, LeCun et al. 1998 section 4.6, with the same
residual scaling.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlm import config

Role = Literal["embedding", "input", "residual", "head"]

STD = {
    "gpt2": lambda role, std, fan_in, layers: std / math.sqrt(2 * layers) if role == "residual" else std,
    "normal": lambda role, std, fan_in, layers: std,
    "fan_in": lambda role, std, fan_in, layers: 1 / math.sqrt(fan_in * (2 * layers if role == "residual" else 1)),
}


def normal(model: config.Model, role: Role, fan_in: int):
    """The initializer `(key, shape, dtype) -> array` of a weight with `fan_in` inputs per output."""
    std = STD[model.initializer](role, model.initializer_std, fan_in, model.layers)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return (jax.random.normal(key, shape, jnp.float32) * std).astype(dtype)

    return init
