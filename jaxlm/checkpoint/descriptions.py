"""The arrays of a state, and the errors of Orbax, as text of one line each."""

import jax

from jaxlm.types import Tree

ERROR_CHARACTERS = 240  # of a message of Orbax: its end, which has the reason


def root_cause(error: BaseException) -> str:
    """Return the root of an Orbax error in one line.

    The long specification that TensorStore adds in brackets is left out.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror

    line = (str(error).splitlines() or [""])[0].partition(" [")[0]
    if len(line) > ERROR_CHARACTERS:
        line = f"...{line[-ERROR_CHARACTERS:]}"
    return f"{type(error).__name__}: {line}"


def describe_arrays(tree: Tree) -> dict[str, str]:
    """Return 'float32 [12, 768]' by 'params/blocks/query' for every array in any containers."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        arrays[name] = f"{leaf.dtype} {list(leaf.shape)}"
    return arrays
