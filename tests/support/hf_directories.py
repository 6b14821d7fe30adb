"""Hugging Face directories of random models, and changes to them. Needs no torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from jaxlm import models
from jaxlm.config import ModelConfig
from jaxlm.interop.architectures import ARCHITECTURES
from jaxlm.interop.hf_config import HFConfig
from jaxlm.types import Tree
from support.trees import assert_same, random_params


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
    """Return random parameters as they are read: rows that pad the vocabulary are zeros."""
    built = models.build(model)
    return random_params(built, 0, std=0.25, scales_near_one=True, zero_padding=True)


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
