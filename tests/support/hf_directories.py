"""Hugging Face directories of random models, and changes to them. Needs no torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxlm.config import ModelConfig
from jaxlm.interop.architectures import ARCHITECTURES
from jaxlm.interop.hf_config import HFConfig
from jaxlm.interop.match_architecture import parameter_shapes
from jaxlm.types import Tree


class NoTensors:
    """The tensors of a directory that has none."""

    def __contains__(self, name: object) -> bool:
        return False

    def any(self, name: str) -> bool:
        return False


def read_values(model_type: str, values: dict[str, Any]) -> ModelConfig:
    """Return the model of a config.json with these values."""
    return ARCHITECTURES[model_type].read(HFConfig(Path("config.json"), values), NoTensors())


def random_weights(model: ModelConfig) -> Tree:
    """Return random numbers, around 1 in the scales of norms.

    Rows that pad the vocabulary are zeros: what reading gives for them.
    """
    rng = np.random.default_rng(0)
    padded = -(-model.vocabulary_size // 128) * 128

    def random_leaf(path: Any, shape: Any) -> np.ndarray:
        is_scale = path[-1].key == "scale"
        leaf = (0.25 * rng.normal(size=shape.shape) + is_scale).astype(np.float32)
        for axis in np.flatnonzero(np.array(leaf.shape) == padded):
            np.moveaxis(leaf, axis, 0)[model.vocabulary_size :] = 0
        return leaf

    return jax.tree_util.tree_map_with_path(random_leaf, parameter_shapes(model))


def assert_same(one: Tree, other: Tree) -> None:
    """Fail unless two trees have the same leaves, bit by bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    leaves = zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True)
    for (path, a), b in leaves:
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def assert_same_model(one: tuple[ModelConfig, Tree], other: tuple[ModelConfig, Tree]) -> None:
    """Fail unless two results of `interop.load` are equal."""
    assert one[0] == other[0]
    assert_same(one[1], other[1])


def change_config(directory: Path, changes: dict[str, Any]) -> Path:
    """Change keys of a directory's config.json and return the directory; None removes a key."""
    path = directory / "config.json"
    values = json.loads(path.read_text()) | changes
    removed = {key for key, value in changes.items() if value is None}
    path.write_text(json.dumps({k: value for k, value in values.items() if k not in removed}))
    return directory


def change_tensors(directory: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> Path:
    """Change the tensors of model.safetensors and return the directory.

    `change` returns the new ones, or changes the dict in place and returns None.
    """
    path = directory / "model.safetensors"
    tensors = {name: tensor.copy() for name, tensor in load_file(path).items()}
    changed = change(tensors)
    save_file(tensors if changed is None else changed, path, metadata={"format": "pt"})
    return directory
