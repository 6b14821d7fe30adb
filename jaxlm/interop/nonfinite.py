"""Find weights that are no numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.interop.tensor_mapping import MappedTensor, leaves_by_path
from jaxlm.types import Array, Tree


def find_nonfinite_tensors(mapped: list[MappedTensor], params: Tree) -> list[str]:
    """Return the names of the tensors that have NaN or an infinity, in the order of the table."""
    leaves = leaves_by_path(params)
    bad_paths = {path for path, leaf in leaves.items() if not all_finite(leaf)}

    names = []
    for each in mapped:
        bad_leaves = [leaves[path] for path in each.rule.parameters if path in bad_paths]
        for layer, name in each.layer_names():
            parts = [leaf if layer is None else leaf[layer] for leaf in bad_leaves]
            if not all(np.isfinite(np.asarray(part)).all() for part in parts):
                names.append(name)
    return names


@jax.jit
def all_finite(leaf: Array) -> Array:
    """Return whether all values of an array are numbers."""
    return jnp.isfinite(leaf).all()
