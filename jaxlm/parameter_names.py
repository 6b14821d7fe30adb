"""Parameters by their dotted names: which a pattern means, and trees without some of them."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from jaxlm.types import Tree


def name_of(path: Sequence[Any]) -> str:
    """Return the dotted name of a path of jax's trees."""
    return ".".join(str(part.key) for part in path)


def matches(name: str, pattern: str) -> bool:
    """Return whether a pattern means a parameter: by its name, or by a part of the tree it is in.

    `*` and `?` stand for any characters, dots too.
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def without(tree: Tree, patterns: Sequence[str]) -> Tree:
    """Return a nested dict without the leaves that a pattern means.

    Other trees are returned as they are: optax asks with placeholders.
    """
    if not patterns:
        return tree
    return drop(tree, lambda name: any(matches(name, pattern) for pattern in patterns))


def drop(tree: Tree, is_dropped: Callable[[str], bool], prefix: str = "") -> Tree:
    """Return a nested dict without the leaves of these dotted names, and without empty dicts."""
    if not isinstance(tree, dict):
        return tree

    kept = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict):
            value = drop(value, is_dropped, name)
            if value:
                kept[key] = value
        elif not is_dropped(name):
            kept[key] = value
    return kept


def merge(tree: Tree, part: Tree) -> Tree:
    """Return a nested dict with the leaves of `part` in the place of its own."""
    if not isinstance(part, dict):
        return part
    return {key: merge(value, part[key]) if key in part else value for key, value in tree.items()}
