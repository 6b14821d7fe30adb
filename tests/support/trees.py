"""Trees of parameters for tests."""

from typing import Any

import jax
import numpy as np

from jaxlm.models import Model
from jaxlm.types import Tree, is_axes


def random_params(
    model: Model,
    seed: int = 7,
    *,
    std: float = 0.3,
    scales_near_one: bool = False,
    zero_padding: bool = False,
) -> Tree:
    """Return random values in every parameter: none is at a special value such as zero or one.

    `scales_near_one` adds 1 to the scales of norms. `zero_padding` puts zeros in the rows that pad
    the vocabulary, which files of Hugging Face don't have.
    """
    rng = np.random.default_rng(seed)

    def values(path: tuple, names: tuple, shape: Any) -> np.ndarray:
        offset = 1.0 if scales_near_one and path[-1].key == "scale" else 0.0
        array = (std * rng.normal(size=shape.shape) + offset).astype(np.float32)
        if zero_padding and "vocabulary" in names:
            rows = np.moveaxis(array, names.index("vocabulary"), 0)
            rows[model.config.vocabulary_size :] = 0
        return array

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(values, model.axes, shapes, is_leaf=is_axes)


def assert_same(one: Any, other: Any) -> None:
    """Assert that two trees have the same structure and the same leaves, arrays bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    others = jax.tree.leaves(other)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), others, strict=True):
        name = jax.tree_util.keystr(path)
        if not hasattr(a, "dtype"):
            assert a == b, name
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name
