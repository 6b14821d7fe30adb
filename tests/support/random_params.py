"""Parameters for tests."""

import jax
import numpy as np

from jaxlm import models
from jaxlm.types import Tree


def random_params(model: models.Model) -> Tree:
    """Random values in every parameter: none is at a special value such as zero or one."""
    rng = np.random.default_rng(7)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)
