"""The learning rates of muP: how that of each parameter changes with the width of the model.

The rules of initial values and scales are in `nn/parametrization.py`, with their source. `m` is the
width divided by the base width.
"""

from typing import NamedTuple

import jax

from jaxlm.config import ConfigError, ModelConfig
from jaxlm.types import Axes, Tree, is_axes

# Parameters whose inputs and outputs both grow with the width, by name. All others are vectors,
# tables or the head.
HIDDEN_NAMES = {
    *("query_kernel", "key_kernel", "value_kernel", "output_kernel"),
    *("gate_kernel", "up_kernel", "down_kernel"),
    *("transform_kernel", "dense_kernel", "projection"),
}
OTHER_NAMES = {"tokens", "types", "positions", "table", "kernel", "scale", "bias"}


class RateExponents(NamedTuple):
    """The powers of m by which learning rates are multiplied, by the kind of parameter."""

    blocks: float  # matrices of the blocks
    hidden: float  # other matrices of width to width
    rest: float  # tables, head, biases, norms


# By optimizer. The updates of AdamW and Lion have a fixed size in each element, and add up over the
# inputs. Adafactor's are in proportion to the weights, which start with 1 / sqrt(m). Muon's have a
# fixed size in each element, too, but singular values that are all alike: their size is sqrt(m)
# where that of AdamW's largest is m (Yang et al. 2023, arXiv 2310.17813, wants 1). Other matrices
# than those of the blocks are AdamW's there. SGD is that of table 8.
RATE_EXPONENTS = {
    "adamw": RateExponents(-1.0, -1.0, 0.0),
    "lion": RateExponents(-1.0, -1.0, 0.0),
    "schedule_free": RateExponents(-1.0, -1.0, 0.0),
    "adafactor": RateExponents(-0.5, -0.5, 0.0),
    "muon": RateExponents(-0.5, -1.0, 0.0),
    "sgd": RateExponents(0.0, 0.0, 1.0),
}


def rate_factors(config: ModelConfig, axes: Tree, kind: str = "adamw") -> Tree | None:
    """Return the factor of each parameter's learning rate, None for a standard model.

    `axes` is the tree of logical axes of the parameters, `kind` that of the optimizer. Weight decay
    keeps the common rate. Raises ConfigError for an optimizer whose factors are not known.
    """
    if config.parametrization == "standard":
        return None
    if kind not in RATE_EXPONENTS:
        known = ", ".join(map(repr, RATE_EXPONENTS))
        reason = f"{config.parametrization!r} has no learning rates for optimizer.kind={kind!r}"
        raise ConfigError("model.parametrization", f"{reason}, only for {known}")
    exponents = RATE_EXPONENTS[kind]

    def parameter_factor(path: tuple, axes: Axes) -> float:
        exponent = exponents.rest
        if is_hidden(path, axes):
            exponent = exponents.blocks if axes[0] == "layers" else exponents.hidden
        return config.width_ratio**exponent

    return jax.tree_util.tree_map_with_path(parameter_factor, axes, is_leaf=is_axes)


def is_hidden(path: tuple, axes: Axes) -> bool:
    """Return whether both the inputs and the outputs of a parameter grow with the width.

    Raises ValueError for a parameter that has no place in the tables above.
    """
    name, owner = path[-1].key, path[-2].key
    if owner == "projection":  # ELECTRA's, from the width of the token table
        return name == "kernel"
    if name in HIDDEN_NAMES:
        return True
    if name in OTHER_NAMES or name.endswith("_bias"):
        return False
    raise ValueError(f"{jax.tree_util.keystr(path)} {axes}: muP has no learning rate for it")
